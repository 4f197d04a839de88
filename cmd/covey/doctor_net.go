package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/origin"
)

// maxDials bounds the peers that are tried at once: a mesh may have 10,000.
const maxDials = 64

// checkPeers tries to reach each peer: one that the agent is connected to is
// reached already, any other is dialled. The order is that of peers.
func checkPeers(ctx context.Context, peers []gateway.Peer) []finding {
	found := make([]finding, len(peers))
	slots := make(chan struct{}, maxDials)
	var all sync.WaitGroup
	for i, p := range peers {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			found[i] = checkPeer(ctx, p)
		})
	}
	all.Wait()
	return found
}

func checkPeer(ctx context.Context, p gateway.Peer) finding {
	name := fmt.Sprintf("peer %s (%s)", p.Host, p.ID)
	if p.Connected {
		return finding{ok, name + " is connected", ""}
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	var last error
	for _, address := range p.Addresses {
		target, known := dialTarget(address)
		if !known {
			continue
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
		if err == nil {
			conn.Close()
			return finding{ok, name + " answers on " + target, ""}
		}
		last = err
	}
	if last == nil {
		return finding{warn, name + " has no address to try", "look whether it runs"}
	}
	return finding{fail, fmt.Sprintf("%s is out of reach: %v", name, last),
		"look whether it runs and a firewall lets its port through; last seen " + p.LastSeen.Format(time.RFC3339)}
}

// dialTarget turns an address like /ip4/10.0.0.7/tcp/7171 (or HOST:PORT) into
// one for net.Dial.
func dialTarget(address string) (string, bool) {
	if !strings.HasPrefix(address, "/") {
		_, _, err := net.SplitHostPort(address)
		return address, err == nil
	}
	parts := strings.Split(address, "/")
	if len(parts) < 5 || parts[3] != "tcp" || !slices.Contains([]string{"ip4", "ip6", "dns", "dns4", "dns6"}, parts[1]) {
		return "", false
	}
	return net.JoinHostPort(parts[2], parts[4]), true
}

// checkSources opens each source once, as a mount would.
func checkSources(ctx context.Context, sources []string) []finding {
	slices.Sort(sources)
	var found []finding
	for _, source := range slices.Compact(sources) {
		found = append(found, checkSource(ctx, source))
	}
	return found
}

func checkSource(ctx context.Context, source string) finding {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	if _, err := origin.Open(ctx, source, origin.Options{}); err != nil {
		return finding{fail, fmt.Sprintf("source %s: %v", source, err), "look at its address and credentials"}
	}
	return finding{ok, "source " + source + " can be listed", ""}
}
