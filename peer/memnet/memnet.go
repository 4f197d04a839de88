// Package memnet is a TCP network in memory, for simulation.
//
// It has named hosts with an IP address each; a host listens and dials as
// through the net package and sees *net.TCPAddr addresses. Connections are
// bounded buffers with an optional one-way latency; deadlines hold. Everything
// waits on channels and timers of the standard library alone, so that it runs in
// a testing/synctest bubble on virtual time.
//
// Hosts can be cut off from each other, which holds bytes back until the cut is
// mended, and killed, which resets their connections.
package memnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// firstPort is where ports for ":0" begin, as on a real system.
const firstPort = 32768

// backlog is how many connections may wait for Accept; more are refused.
const backlog = 128

// Network is a set of hosts that can reach each other. The zero Network is
// ready; all methods may be called concurrently.
type Network struct {
	// Latency is how long bytes take in one direction, and a third of what a
	// dial takes. It is not to be changed once a host has dialled.
	Latency time.Duration

	// mu guards the maps. It is taken before the lock of a pipe, never after.
	mu        sync.Mutex
	hosts     map[netip.Addr]*Host
	listeners map[netip.AddrPort]*listener
	conns     map[*conn]struct{}
	cut       map[[2]netip.Addr]bool
	nextPort  uint16
	// changed is closed, and replaced, when a cut is made or mended.
	changed chan struct{}
}

// Host is one machine of the network. It has the methods of peer.Sockets.
type Host struct {
	net  *Network
	addr netip.Addr
}

// Host returns the host with the given IP address, and makes it when it is new.
// It panics when the address is malformed.
func (n *Network) Host(ip string) *Host {
	addr := netip.MustParseAddr(ip)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.initLocked()
	h := n.hosts[addr]
	if h == nil {
		h = &Host{net: n, addr: addr}
		n.hosts[addr] = h
	}
	return h
}

func (n *Network) initLocked() {
	if n.hosts == nil {
		n.hosts = make(map[netip.Addr]*Host)
		n.listeners = make(map[netip.AddrPort]*listener)
		n.conns = make(map[*conn]struct{})
		n.cut = make(map[[2]netip.Addr]bool)
		n.changed = make(chan struct{})
		n.nextPort = firstPort
	}
}

// Cut holds back everything that from sends to to, dials included, until
// [Network.Mend]. It works in one direction; cut both for a partition.
func (n *Network) Cut(from, to *Host) { n.setCut(from, to, true) }

// Mend lets through what from sends to to, and what was held back.
func (n *Network) Mend(from, to *Host) { n.setCut(from, to, false) }

func (n *Network) setCut(from, to *Host, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]netip.Addr{from.addr, to.addr}] = cut
	close(n.changed)
	n.changed = make(chan struct{})
}

// isCut reports whether bytes are held back now, and what tells of a change.
func (n *Network) isCut(from, to netip.Addr) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[[2]netip.Addr{from, to}], n.changed
}

// Kill closes the host's listeners and resets its connections, as a process
// that is killed does. The host can listen again at once.
func (h *Host) Kill() {
	h.net.mu.Lock()
	var conns []*conn
	for c := range h.net.conns {
		if c.local.Addr() == h.addr || c.remote.Addr() == h.addr {
			conns = append(conns, c)
		}
	}
	var listeners []*listener
	for at, l := range h.net.listeners {
		if at.Addr() == h.addr {
			listeners = append(listeners, l)
		}
	}
	h.net.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // never fails
	}
	for _, c := range conns {
		c.reset()
	}
}

// Listen accepts connections at an address of this host; port 0 takes a free
// one.
func (h *Host) Listen(_ context.Context, network, address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || (at.Addr() != h.addr && !at.Addr().IsUnspecified()) {
		return nil, opError("listen", network, address, syscall.EADDRNOTAVAIL)
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	at = netip.AddrPortFrom(h.addr, at.Port())
	if at.Port() == 0 {
		at = netip.AddrPortFrom(h.addr, n.freePortLocked())
	}
	if n.listeners[at] != nil {
		return nil, opError("listen", network, address, syscall.EADDRINUSE)
	}
	l := &listener{net: n, at: at, queue: make(chan *conn, backlog), closed: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

func (n *Network) freePortLocked() uint16 {
	n.nextPort++
	if n.nextPort < firstPort {
		n.nextPort = firstPort
	}
	return n.nextPort
}

// DialContext connects to a listener. Nobody listening is refused after a round
// trip; a cut blocks until it is mended or ctx ends.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, opError("dial", network, address, err)
	}
	// There and back, twice: a cut in either direction blocks the handshake.
	for _, way := range [...][2]netip.Addr{{h.addr, to.Addr()}, {to.Addr(), h.addr}, {h.addr, to.Addr()}} {
		if err := h.net.pass(ctx, way[0], way[1]); err != nil {
			return nil, opError("dial", network, address, err)
		}
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil {
		return nil, opError("dial", network, address, syscall.ECONNREFUSED)
	}
	ours, theirs := n.pairLocked(netip.AddrPortFrom(h.addr, n.freePortLocked()), to)
	select {
	case l.queue <- theirs:
		n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
		return ours, nil
	default:
		return nil, opError("dial", network, address, syscall.ECONNREFUSED)
	}
}

// pass takes as long as a packet from one host to the other.
func (n *Network) pass(ctx context.Context, from, to netip.Addr) error {
	for {
		cut, changed := n.isCut(from, to)
		if !cut {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if n.Latency == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(n.Latency):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func opError(op, network, address string, err error) error {
	return &net.OpError{Op: op, Net: network, Err: fmt.Errorf("%s: %w", address, err)}
}

// listener is a net.Listener of the network.
type listener struct {
	net    *Network
	at     netip.AddrPort
	queue  chan *conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, opError("accept", "tcp", l.at.String(), net.ErrClosed)
	}
}

// Close also resets the connections that nobody accepted.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.at)
		l.net.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				c.reset()
			default:
				return
			}
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }
