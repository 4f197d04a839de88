package dht

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/covey-cache/covey"
)

// kadNode is a real host on loopback with a running DHT.
type kadNode struct {
	host host.Host
	p    *Providers
	stop func()
}

func startKad(t *testing.T) *kadNode {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProviders(h, ProvidersOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	n := &kadNode{host: h, p: p}
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		closeHost(t, h)
		n.stop = func() {}
	}
	t.Cleanup(func() { n.stop() })
	return n
}

func closeHost(t *testing.T, h host.Host) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Errorf("close host: %v", err)
	}
}

// TestProvidersFindEachOther advertises on one of eight real hosts that all
// live on one loopback address, and finds it from every other; then the one
// that advertised goes, and the search still ends in time.
func TestProvidersFindEachOther(t *testing.T) {
	nodes := make([]*kadNode, 8)
	for i := range nodes {
		nodes[i] = startKad(t)
	}
	// What is advertised before anybody is known must not be lost.
	extents := make([]covey.ExtentID, 100)
	for i := range extents {
		extents[i] = testExtent(i)
	}
	nodes[0].p.Advertise(extents...)
	if _, err := nodes[0].p.Providers(t.Context(), extents[0]); err == nil {
		t.Fatal("a peer that knows nobody found somebody")
	}
	for i, n := range nodes {
		for _, m := range nodes[:i] {
			if err := n.host.Connect(t.Context(), peer.AddrInfo{ID: m.host.ID(), Addrs: m.host.Addrs()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := covey.PeerID(nodes[0].host.ID())
	for i, n := range nodes[1:] {
		for _, e := range []covey.ExtentID{extents[0], extents[50], extents[99]} {
			waitFor(t, 20*time.Second, func() bool {
				found, err := n.p.Providers(t.Context(), e)
				return err == nil && slices.Contains(found, want)
			}, "host %d does not find the advertised extent", i+1)
		}
	}
	if found, err := nodes[3].p.Providers(t.Context(), testExtent(1000)); err != nil || len(found) != 0 {
		t.Fatalf("an extent nobody has: %d found, %v", len(found), err)
	}
	nodes[0].stop() // fault 35: the records outlive the peer
	began := time.Now()
	if _, err := nodes[1].p.Providers(t.Context(), extents[7]); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > searchTimeout {
		t.Fatalf("search took %v", took)
	}
}

func TestProvidersGiveUpWhatIsNotRenewed(t *testing.T) {
	h, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	defer closeHost(t, h)
	p, err := NewProviders(h, ProvidersOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Advertise(testExtent(1), testExtent(2), testExtent(1))
	if got := len(p.next()); got != 2 {
		t.Fatalf("%d extents handed out, want 2", got)
	}
	p.Advertise(testExtent(1))
	if got := len(p.next()); got != 0 {
		t.Fatalf("%d known extents handed out again", got)
	}
	mark := time.Now()
	time.Sleep(time.Millisecond)
	p.Advertise(testExtent(2))
	if got := len(p.giveUp(mark)); got != 1 {
		t.Fatalf("%d extents given up, want the one not renewed", got)
	}
	p.Advertise(testExtent(1))
	if got := len(p.next()); got != 1 {
		t.Fatalf("an extent that was given up and came back was handed out %d times", got)
	}
	if _, err := NewProviders(nil, ProvidersOptions{}); err == nil {
		t.Fatal("no host was accepted")
	}
}

// waitFor polls a condition of real hosts, which no virtual clock reaches.
func waitFor(t *testing.T, limit time.Duration, ok func() bool, format string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf(format, args...)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
