package dht

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// maxChildren is how many peers are sent to one peer for a block that is
	// being spread. Four make a block reach 1,024 peers in five hops, and cost a
	// parent's line four blocks.
	maxChildren = 4

	// crowdLife is how long a crowd is remembered after somebody last joined it:
	// until those that got the block have announced it, a second later, twice.
	crowdLife = 2 * time.Second

	// maxCrowd bounds one block's crowd, at 12 bytes each. Whoever comes later
	// waits until somebody of it has announced the block.
	maxCrowd = 4096

	// maxHops is how far the last of a crowd is from a root while there is room
	// nearer by: 1,365 peers with four children each.
	maxHops = 5

	// maxLooked bounds the peers with room that are compared for one asker. The
	// others would have the block later.
	maxLooked = 64

	// sendTime is what a home reckons a peer's line to be taken for by one block.
	// A block of 4 MiB takes 3.4 ms at 10 Gbit/s; the peer sends blocks of other
	// homes besides. Only differences matter: too long a time makes a home look
	// farther back at who has sent, too short a one makes it forget that.
	sendTime = 10 * time.Millisecond

	// maxBacklog bounds what a home holds against a peer: a peer that has had
	// nothing to send for that long is as good as any other.
	maxBacklog = crowdLife
)

// crowd is the tree in which a block spreads while it is read, or while fewer
// than enoughCopies hold it: its roots are the reader or the holders, and each
// further peer was told to follow its parent.
//
// INVARIANT: a node's parent comes before it, so there is no cycle of peers that
// wait for each other.
// INVARIANT: the nodes before open have maxChildren children, or are maxHops from
// a root.
type crowd struct {
	slot    uint8
	touched stamp
	open    int
	nodes   []treeNode
}

type treeNode struct {
	peer   peerNum
	parent int32 // -1 for a root
	kids   uint8
	hops   uint8 // to a root, at most maxHops
}

// senders is a home's account of what the peers that it names have to send: when
// each line is free again, in time since the table was made.
type senders struct {
	now   time.Duration
	peers []*numbered
}

// backlog is what a peer has to send, at most maxBacklog.
func (s senders) backlog(p peerNum) time.Duration {
	return min(max(time.Duration(s.peers[p].free.Load())-s.now, 0), maxBacklog)
}

// send puts one more block on a peer's line.
func (s senders) send(p peerNum) {
	s.peers[p].free.Store(int64(s.now + s.backlog(p) + sendTime))
}

// senders is taken after the asker has its number.
func (t *table) senders(now time.Time) senders {
	return senders{now: now.Sub(t.start), peers: t.peers.all()}
}

// crowdOf returns the crowd of a slot, or nil.
func (en *entry) crowdOf(slot int) *crowd {
	for _, c := range en.crowds {
		if int(c.slot) == slot {
			return c
		}
	}
	return nil
}

// disperse forgets the crowd of a slot: another reader begins.
func (en *entry) disperse(slot int) {
	en.crowds = slices.DeleteFunc(en.crowds, func(c *crowd) bool { return int(c.slot) == slot })
}

// gather returns the crowd of a slot and makes one of the roots when there is
// none. The roots are in random order, so that they share what comes.
func (en *entry) gather(slot int, roots []peerNum, at stamp) *crowd {
	c := en.crowdOf(slot)
	if c == nil {
		c = &crowd{slot: uint8(slot)}
		for _, i := range rand.Perm(len(roots)) {
			c.nodes = append(c.nodes, treeNode{peer: roots[i], parent: -1})
		}
		en.crowds = append(en.crowds, c)
	}
	c.touched = at
	return c
}

// parent says whom the asker is to follow, the same as before unless that is out
// of the question now: the one of those with room that has the least to send, by
// the home's own account. So who is first to ask, and reads or gets everything
// before the others, sends a block about once and not four times, and the trees of
// many blocks do not have the same peers inside and the same at their ends. ok is
// false when nobody is left.
func (c *crowd) parent(asker peerNum, s senders, out func(treeNode) bool) (_ peerNum, ok bool) {
	me := slices.IndexFunc(c.nodes, func(n treeNode) bool { return n.peer == asker })
	before := len(c.nodes)
	if me >= 0 {
		if p := c.nodes[me].parent; p >= 0 && !out(c.nodes[p]) {
			return c.nodes[p].peer, true
		}
		before = me // only elders: its own descendants wait for it
	}
	best := c.idlest(before, s, out)
	if best < 0 { // deeper than maxHops is better than nowhere
		best = slices.IndexFunc(c.nodes[:before], func(n treeNode) bool { return n.kids < maxChildren && !out(n) })
	}
	if best < 0 && me >= 0 { // one more than four is better than none
		best = slices.IndexFunc(c.nodes[:before], func(n treeNode) bool { return !out(n) })
	}
	if best < 0 || me < 0 && len(c.nodes) >= maxCrowd {
		return 0, false
	}
	p := &c.nodes[best]
	p.kids++
	s.send(p.peer)
	n := treeNode{peer: asker, parent: int32(best), hops: min(p.hops+1, maxHops)}
	if me >= 0 {
		n.kids = c.nodes[me].kids
		c.nodes[me] = n
	} else {
		c.nodes = append(c.nodes, n)
	}
	return c.nodes[best].peer, true
}

// idlest returns which of the nodes before a place has the least to send; each
// hop away from a root counts as one block more, for a root has the block, or will
// be the first to have it. It is -1 when none has room within maxHops.
func (c *crowd) idlest(before int, s senders, out func(treeNode) bool) int {
	best, looked := -1, 0
	var least time.Duration
	for i := c.open; i < before && looked < maxLooked; i++ {
		n := &c.nodes[i]
		if n.kids >= maxChildren || n.hops >= maxHops {
			if i == c.open {
				c.open++
			}
			continue
		}
		if out(*n) {
			continue
		}
		looked++
		if t := s.backlog(n.peer) + time.Duration(n.hops)*sendTime; best < 0 || t < least {
			best, least = i, t
		}
	}
	return best
}

// root reports whether the peer is one of those the crowd began with.
func (c *crowd) root(p peerNum) bool {
	return slices.ContainsFunc(c.nodes, func(n treeNode) bool { return n.parent < 0 && n.peer == p })
}

// follow places the asker of a slot in its crowd and returns its parent.
func (t *table) follow(en *entry, slot int, roots []peerNum, q question, at stamp) (peerNum, bool) {
	asker := t.peers.number(q.asker, q.ring)
	if c := en.crowdOf(slot); c != nil && c.root(asker) {
		en.disperse(slot) // it lost the block
	}
	return en.gather(slot, roots, at).parent(asker, t.senders(time.Now()), func(n treeNode) bool {
		if n.peer == asker || n.parent < 0 && !slices.Contains(roots, n.peer) {
			return true // a root that has the block no more
		}
		other := t.peers.at(n.peer)
		return other.absent(q.ring) || contains(q.want.Failed, other.id)
	})
}

// spread sends an asker to one of the few holders of a slot, or to a peer that
// was sent to one before. It reports false when the holders are enough, or
// nobody of the crowd is left.
func (t *table) spread(en *entry, slot int, c candidates, q question, at stamp) (BlockPlan, bool) {
	roots := c.holding(slot)
	if len(roots) >= enoughCopies {
		return BlockPlan{}, false
	}
	p, ok := t.follow(en, slot, roots, q, at)
	if !ok {
		return BlockPlan{}, false
	}
	b := BlockPlan{Slot: slot, State: Held, Peers: []covey.PeerID{t.peers.at(p).id}, Digest: en.digest(slot)}
	if !slices.Contains(roots, p) {
		b.State, b.Moving = Fetching, true
		return b, true
	}
	t.peers.at(p).load.Add(1)
	for _, other := range roots {
		if id := t.peers.at(other).id; other != p && len(b.Peers) < maxHandedOut {
			b.Peers = append(b.Peers, id)
		}
	}
	return b, true
}
