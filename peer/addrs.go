package peer

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
)

// listenMultiaddr turns HOST:PORT into what libp2p listens on. A name is resolved
// once; no host at all means every IPv4 address.
func listenMultiaddr(hostport string) (ma.Multiaddr, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", hostport, covey.ErrInvalid)
	}
	if host == "" {
		hostport = "0.0.0.0" + hostport
	}
	at, err := net.ResolveTCPAddr("tcp", hostport)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %s: %w", hostport, err.Error(), covey.ErrInvalid)
	}
	return multiaddrOf(at)
}

// advertised returns the addresses at which others can reach this node: the one
// it listens on, or for an unspecified one those of all interfaces. Loopback is
// among them only when there is nothing else. It is called for every new record,
// because interfaces come and go.
func (n *Network) advertised() []ma.Multiaddr {
	var addrs []ma.Multiaddr
	for _, a := range n.host.swarm.ListenAddresses() {
		ip, err := manet.ToIP(a)
		if err != nil {
			continue
		}
		if !ip.IsUnspecified() {
			addrs = append(addrs, a)
			continue
		}
		if port, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			addrs = append(addrs, interfaceAddrs(ip.To4() != nil, port)...)
		}
	}
	addrs = slices.DeleteFunc(addrs, func(a ma.Multiaddr) bool { return !member.AllowedAddr(a) })
	return addrs[:min(len(addrs), member.MaxAddrs)]
}

// interfaceAddrs lists the machine's own addresses with the port.
func interfaceAddrs(only4 bool, port string) []ma.Multiaddr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var addrs, loopback []ma.Multiaddr
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil || (only4 && !prefix.Addr().Is4()) || !member.AllowedIP(prefix.Addr()) {
			continue
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		m, err := multiaddrOf(net.TCPAddrFromAddrPort(netip.AddrPortFrom(prefix.Addr(), uint16(n))))
		switch {
		case err != nil:
		case prefix.Addr().IsLoopback():
			loopback = append(loopback, m)
		default:
			addrs = append(addrs, m)
		}
	}
	if len(addrs) == 0 {
		return loopback
	}
	return addrs
}

// hostPorts writes addresses as HOST:PORT.
func hostPorts(addrs []ma.Multiaddr) []string {
	var list []string
	for _, a := range addrs {
		host, err := a.ValueForProtocol(a[0].Protocol().Code)
		if err != nil {
			continue
		}
		if port, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			list = append(list, net.JoinHostPort(host, port))
		}
	}
	return list
}
