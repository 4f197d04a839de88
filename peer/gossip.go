package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
	"github.com/covey-cache/covey/peer/internal/mux"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// membersProtocol spreads the member table.
const membersProtocol protocol.ID = "/covey/members/1"

const (
	// floodWidth is how many members are told of news at once. In a mesh of up
	// to 17 that is everybody; in a larger one each passes it on, and after a few
	// steps all but one in e^16 have it. Anti-entropy finds the rest.
	floodWidth = 16
	// renewWidth is the same for renewals, of which there are many and none is
	// urgent.
	renewWidth = 3
	// renewFlush is how long renewals gather before they are passed on together.
	// A thousand members are reached in seven steps, 14 s, of a lease of 60.
	renewFlush = 2 * time.Second
	// maxFlood is how many records are worth telling everybody at once. More
	// come from a table that was read whole, and spread by anti-entropy.
	maxFlood = 64
	// maxRenewals bounds those that gather; what is dropped spreads by
	// anti-entropy.
	maxRenewals = 2048
	// pushTimeout is how long one member may take to hear of news.
	pushTimeout = 5 * time.Second
	// syncEvery is how often a random member's table is compared with this one,
	// give or take a half. News that every push missed reaches a thousand
	// members in about ten rounds, well within a lease.
	syncEvery = 3 * time.Second
	// wideSync is of how many comparisons one is with any member, connected or not.
	// Where members keep few connections these may form islands, whose leases would
	// end for the others. Once in 30 s costs a node two new connections at a time,
	// its own and somebody's to it, and reaches out of an island of four in 8 s.
	wideSync = 10
	// syncRounds bounds one comparison: 10,000 records come in ten answers.
	syncRounds = 20
	// byeTimeout and byeWidth bound the leaving.
	byeTimeout = time.Second
	byeWidth   = 128
)

// takeIn is merge and expel. That others still spread the record of somebody who
// was expelled is not worth a word.
func (n *Network) takeIn(records []*wire.SignedRecord, revocations []*wire.SignedRevocation, from peer.ID) error {
	err := n.expel(revocations, from)
	if merr := n.merge(records, from); merr != nil && !errors.Is(merr, member.ErrRevoked) {
		err = merr
	}
	return err
}

// merge takes in records that from sent, and passes on what is news. The error is
// that of the last record refused; the others have been taken.
func (n *Network) merge(records []*wire.SignedRecord, from peer.ID) error {
	var news []*wire.SignedRecord
	var refused error
	for _, m := range records {
		r, change, err := n.table.Merge(m, time.Now())
		if err != nil {
			refused = err
			continue
		}
		if n.merged(r, change, m) {
			news = append(news, m)
		}
	}
	if len(news) > 0 && len(news) <= maxFlood {
		n.flood(news, from)
	}
	n.metrics.setLive(n.table)
	return refused
}

// merged does what a change of the table entails, and reports whether it is news
// for everybody.
func (n *Network) merged(r member.Record, change member.Change, m *wire.SignedRecord) bool {
	book := n.host.Peerstore()
	switch change {
	case member.Joined, member.Renewed:
		book.ClearAddrs(r.Peer)
		book.AddAddrs(r.Peer, r.Addrs, peerstore.PermanentAddrTTL)
		if change == member.Renewed {
			n.queueRenewal(m)
			return false
		}
		n.log.Info("member joined", "peer", r.Peer.String(), "host", r.Host, "zone", r.Zone, "rack", r.Rack)
		n.gate.settle(r.Peer)
	case member.Left:
		n.log.Info("member left", "peer", r.Peer.String())
		n.dropped(r.Peer)
	case member.Disputed:
		n.mu.Lock()
		n.renewLocked(time.Now(), r.Seq)
		own := n.own
		n.mu.Unlock()
		n.flood([]*wire.SignedRecord{own}, "")
		return false
	default:
		return false
	}
	return true
}

// dropped forgets what was kept for a member that is none any more.
func (n *Network) dropped(p peer.ID) {
	n.host.Peerstore().ClearAddrs(p)
	n.mu.Lock()
	l := n.links[p]
	delete(n.links, p)
	n.mu.Unlock()
	if l != nil {
		l.drop()
	}
}

// queueRenewal keeps a renewal to be passed on with others.
func (n *Network) queueRenewal(m *wire.SignedRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.renewals) < maxRenewals {
		n.renewals = append(n.renewals, m)
	}
}

// flushRenewals passes on the renewals that have gathered.
func (n *Network) flushRenewals() {
	n.mu.Lock()
	var batch []*wire.SignedRecord
	if now := time.Now(); now.Sub(n.flushed) >= renewFlush {
		batch, n.renewals, n.flushed = n.renewals, nil, now
	}
	n.mu.Unlock()
	for len(batch) > 0 {
		k := min(len(batch), maxFlood)
		n.push(n.targets(renewWidth, ""), batch[:k])
		batch = batch[k:]
	}
}

// flood tells others of news at once.
func (n *Network) flood(records []*wire.SignedRecord, from peer.ID) {
	n.push(n.targets(floodWidth, from), records)
}

// targets picks live members, connected ones first, without the one given. News
// make no connections above half of those that this node keeps: where members
// keep fewer than floodWidth, every join would have all of them dial.
func (n *Network) targets(most int, except peer.ID) []peer.ID {
	live, _ := n.table.Live()
	room := max(n.opts.MaxConnections/2-len(n.host.swarm.Conns()), 1)
	var connected, others []peer.ID
	for _, i := range rand.Perm(len(live)) {
		p := peer.ID(live[i])
		switch {
		case p == n.id || p == except:
		case n.host.Network().Connectedness(p) == network.Connected:
			if connected = append(connected, p); len(connected) == most {
				return connected
			}
		case len(others) < min(most, room):
			others = append(others, p)
		}
	}
	all := append(connected, others...)
	return all[:min(len(all), most)]
}

// partners picks the member to compare tables with, none when there is none.
func (n *Network) partners() []peer.ID {
	live, _ := n.table.Live()
	if len(live) < 2 || rand.N(wideSync) > 0 {
		return n.targets(1, "")
	}
	for {
		if p := peer.ID(live[rand.N(len(live))]); p != n.id {
			return []peer.ID{p}
		}
	}
}

// push sends records to each target on its own. When too many pushes are under
// way it sends less: anti-entropy makes up for it.
func (n *Network) push(targets []peer.ID, records []*wire.SignedRecord) {
	n.pushPart(targets, &wire.Push{Records: records})
}

// pushPart is push of any news.
func (n *Network) pushPart(targets []peer.ID, news *wire.Push) {
	body := wire.Marshal(&wire.Gossip{Part: &wire.Gossip_Push{Push: news}})
	for _, p := range targets {
		if !n.pushes.TryAcquire(1) {
			return
		}
		started := n.spawn(func() {
			defer n.pushes.Release(1)
			ctx, cancel := context.WithTimeout(n.ctx, pushTimeout)
			defer cancel()
			if err := n.do(ctx, p, membersProtocol, body, discardReply); err != nil {
				n.log.Debug("push of member records failed", "peer", p.String(), "error", err)
			}
		})
		if !started {
			n.pushes.Release(1)
		}
	}
}

// discardReply takes a reply that says nothing.
func discardReply(size uint64) ([]byte, error) {
	if size > wire.MaxBody {
		return nil, fmt.Errorf("reply of %d bytes: %w", size, covey.ErrInvalid)
	}
	return make([]byte, size), nil
}

// gossip sends one message of the members protocol and reads the reply.
func (n *Network) gossip(ctx context.Context, l *link, m *wire.Gossip) (*wire.GossipReply, error) {
	var buf []byte
	err := n.ask(ctx, l, &ask{proto: membersProtocol, body: fixed(wire.Marshal(m)), dst: func(size uint64) (_ []byte, err error) {
		buf, err = discardReply(size)
		return buf, err
	}})
	if err != nil {
		return nil, err
	}
	reply := new(wire.GossipReply)
	return reply, wire.Unmarshal(buf, reply)
}

// sync makes this table and a member's hold the same records.
func (n *Network) sync(ctx context.Context, p peer.ID) error {
	l := n.link(p)
	if l == nil {
		return fmt.Errorf("sync with %s: not a member: %w", p, covey.ErrUnavailable)
	}
	reply, err := n.gossip(ctx, l, &wire.Gossip{Part: &wire.Gossip_Summary{Summary: n.table.Summary(time.Now())}})
	if err != nil {
		return fmt.Errorf("sync with %w", err)
	}
	for round := 0; !reply.GetSame() && round < syncRounds; round++ {
		reply, err = n.gossip(ctx, l, &wire.Gossip{Part: &wire.Gossip_Digest{Digest: &wire.Digest{
			Entries: n.table.Digest(time.Now()), Revoked: n.table.RevokedKeys(),
		}}})
		if err != nil {
			return fmt.Errorf("sync with %w", err)
		}
		if err := n.takeIn(reply.GetRecords(), reply.GetRevocations(), p); err != nil {
			n.log.Warn("member record not accepted", "peer", p.String(), "error", err)
		}
		wanted, err := n.table.Records(reply.GetWant(), time.Now())
		if err != nil {
			return fmt.Errorf("sync with %s: %w", p, err)
		}
		revoked, err := n.table.Revocations(reply.GetWantRevoked())
		if err != nil {
			return fmt.Errorf("sync with %s: %w", p, err)
		}
		if len(wanted)+len(revoked) > 0 {
			news := &wire.Push{Records: wanted, Revocations: revoked}
			if _, err := n.gossip(ctx, l, &wire.Gossip{Part: &wire.Gossip_Push{Push: news}}); err != nil {
				return fmt.Errorf("sync with %w", err)
			}
		}
		if !reply.GetMore() {
			break
		}
	}
	return nil
}

// serveMembers answers the members protocol.
func (n *Network) serveMembers(_ context.Context, from peer.ID, body []byte) (mux.Answer, error) {
	var m wire.Gossip
	if err := wire.Unmarshal(body, &m); err != nil {
		return mux.Answer{}, err
	}
	reply := &wire.GossipReply{}
	switch part := m.GetPart().(type) {
	case *wire.Gossip_Push:
		if err := n.takeIn(part.Push.GetRecords(), part.Push.GetRevocations(), from); err != nil {
			n.log.Warn("member record not accepted", "peer", from.String(), "error", err)
		}
	case *wire.Gossip_Summary:
		reply.Same = part.Summary == n.table.Summary(time.Now())
	case *wire.Gossip_Digest:
		var err error
		reply.Records, reply.More, reply.Want, err = n.table.Compare(part.Digest.GetEntries(), time.Now())
		if err != nil {
			return mux.Answer{}, err
		}
		var more bool
		reply.Revocations, more, reply.WantRevoked, err = n.table.CompareRevoked(part.Digest.GetRevoked())
		if err != nil {
			return mux.Answer{}, err
		}
		reply.More = reply.More || more
	default:
		return mux.Answer{}, fmt.Errorf("empty member message: %w", covey.ErrInvalid)
	}
	b := wire.Marshal(reply)
	return mux.Answer{Size: len(b), Body: bytes.NewReader(b)}, nil
}

// probe looks whether a member answers, and thereby lets it into Live or keeps
// it out.
func (n *Network) probe(l *link) {
	defer l.probed()
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	_, err := n.gossip(ctx, l, &wire.Gossip{Part: &wire.Gossip_Summary{}})
	switch {
	case err == nil || errors.Is(err, mux.ErrBusy):
		n.reachable(l.peer)
	case n.ctx.Err() == nil && n.table.Has(l.peer):
		n.unreachable(l, err)
	}
}

// bye tells connected members that this one is leaving, and waits for them.
func (n *Network) bye() {
	if n.signer == nil {
		return
	}
	n.mu.Lock()
	n.seq++
	r := n.record(time.Now())
	n.mu.Unlock()
	r.Left, r.Addrs = true, nil
	body := wire.Marshal(&wire.Gossip{Part: &wire.Gossip_Push{Push: &wire.Push{Records: []*wire.SignedRecord{n.signer.Sign(r)}}}})
	ctx, cancel := context.WithTimeout(n.ctx, byeTimeout)
	defer cancel()
	done := make(chan struct{})
	started := 0
	for _, p := range n.targets(byeWidth, "") {
		if n.host.Network().Connectedness(p) != network.Connected {
			continue
		}
		if n.spawn(func() {
			defer func() { done <- struct{}{} }()
			_ = n.do(ctx, p, membersProtocol, body, discardReply) // its lease ends by itself
		}) {
			started++
		}
	}
	for range started {
		<-done
	}
}
