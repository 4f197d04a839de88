package peer

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch"
)

// The versions of the exchange, newest first. Two members speak the newest that
// both know; a version is given up when no release that speaks nothing newer is
// supported any more.
const (
	exchangeProtocol protocol.ID = "/covey/exchange/2"
	// exchangeFirst is without offsets: its answer is always the whole block.
	exchangeFirst protocol.ID = "/covey/exchange/1"
)

// foreignFor is how long a member that speaks no common version of a protocol is
// not asked for it again; an upgrade of it is noticed that much later.
const foreignFor = time.Minute

// errForeign says that a member and this node have no version of a protocol in
// common. The member is well and stays in Live.
var errForeign = fmt.Errorf("no version of the protocol in common: %w", covey.ErrUnavailable)

// offers returns the versions of a protocol that this node speaks, newest first.
func (n *Network) offers(proto protocol.ID) []protocol.ID {
	if proto == exchangeProtocol {
		return n.opts.exchanges
	}
	return []protocol.ID{proto}
}

// isForeign reports whether the other side refused every version offered.
func isForeign(err error) bool {
	var none multistream.ErrNotSupported[protocol.ID]
	return errors.As(err, &none)
}

// foreign notes that a member speaks no version of a protocol that this node
// does. It is told once in foreignFor.
func (n *Network) foreign(l *link, proto protocol.ID) {
	l.mu.Lock()
	if l.strange == nil {
		l.strange = make(map[protocol.ID]time.Time)
	}
	l.strange[proto] = time.Now().Add(foreignFor)
	l.mu.Unlock()
	n.metrics.foreign.WithLabelValues(string(proto)).Inc()
	n.log.Warn("member speaks no version of a protocol that this node does; one of the two needs an upgrade",
		"peer", l.peer.String(), "protocol", string(proto))
}

// Nearness says how far a member is and how many bytes a second its network
// interface carries, 0 when it does not say. Zones are told apart by name, racks
// and hosts by their own and those above them; what a record leaves empty is
// shared with nobody.
func (n *Network) Nearness(p covey.PeerID) (fetch.Distance, float64) {
	m, ok := n.table.Get(peer.ID(p))
	if !ok {
		return fetch.Far, 0
	}
	rate := float64(m.NICBits) / 8
	same := func(a, b string) bool { return a != "" && a == b }
	zone := same(m.Zone, n.opts.Zone)
	alike := zone || m.Zone == n.opts.Zone // a rack of no zone is in any
	switch {
	case alike && same(m.Host, n.opts.Host):
		return fetch.SameHost, rate
	case alike && same(m.Rack, n.opts.Rack):
		return fetch.SameRack, rate
	case zone:
		return fetch.SameZone, rate
	default:
		return fetch.Far, rate
	}
}
