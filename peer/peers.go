package peer

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
)

// PeerInfo is what is known of one member.
//
//nolint:revive // "Info" alone would not say of what in this package
type PeerInfo struct {
	ID               covey.PeerID
	Name             string // the ID as text
	Host, Zone, Rack string
	Addrs            []string // HOST:PORT
	Capacity         int64    // bytes
	Self             bool
	Connected        bool
	// Live is false while a failed dial or a stall keeps the member out of
	// [Network.Live].
	Live bool
	// LastSeen is the later of its last answer and its newest record.
	LastSeen time.Time
	// RTT is an average of the round trips of member messages; 0 when there was
	// none yet.
	RTT time.Duration
	// SentBytes and ReceivedBytes count the payload of all protocols of this
	// package, since the peer became a member.
	SentBytes, ReceivedBytes uint64
	// SentRate and ReceivedRate are averages of the last seconds, in bytes a second.
	SentRate, ReceivedRate float64
	// Errors counts failed dials and stalls.
	Errors uint64
}

// Peers lists all members, this one included, ordered by ID.
func (n *Network) Peers() []PeerInfo {
	all := n.table.All()
	list := make([]PeerInfo, 0, len(all))
	for _, m := range all {
		list = append(list, n.peerInfo(m))
	}
	slices.SortFunc(list, func(a, b PeerInfo) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

func (n *Network) peerInfo(m member.Info) PeerInfo {
	info := PeerInfo{
		ID: covey.PeerID(m.Peer), Name: m.Peer.String(), Host: m.Host, Zone: m.Zone, Rack: m.Rack,
		Addrs: hostPorts(m.Addrs), Capacity: m.Capacity, Self: m.Peer == n.id, Live: !m.Down, LastSeen: m.Heard,
		Connected: m.Peer == n.id || n.host.Network().Connectedness(m.Peer) == network.Connected,
	}
	n.mu.Lock()
	l := n.links[m.Peer]
	n.mu.Unlock()
	if l == nil {
		return info
	}
	info.RTT = time.Duration(l.rtt.Load())
	info.SentBytes, info.ReceivedBytes, info.Errors = l.sent.Load(), l.received.Load(), l.errors.Load()
	info.SentRate, info.ReceivedRate = l.sentRate.perSecond(), l.receivedRate.perSecond()
	if seen := time.Unix(0, l.seen.Load()); seen.After(info.LastSeen) {
		info.LastSeen = seen
	}
	return info
}
