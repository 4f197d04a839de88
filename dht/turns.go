package dht

import (
	"slices"
	"time"
)

const (
	// maxShare is how many reads of one extent a peer may have under way by turns:
	// a group of prefetched blocks.
	maxShare = 8

	// maxTurns bounds the peers whose reads of one extent are counted, at 8 bytes
	// each. Sixteen that share an origin's line leave little to gain by more.
	maxTurns = 16

	// turnLife is how long reads are counted after the last: beyond it the peers
	// that read the extent do not do so together.
	turnLife = 10 * time.Second
)

// turns counts who was granted how many blocks of an extent, while it is read.
type turns struct {
	last stamp
	of   []turn
}

type turn struct {
	peer peerNum
	n    uint32
}

func (t *turns) count(p peerNum, now stamp) {
	t.last = now
	for i := range t.of {
		if t.of[i].peer == p {
			t.of[i].n++
			return
		}
	}
	if len(t.of) < maxTurns {
		t.of = append(t.of, turn{peer: p, n: 1})
	}
}

// behind returns by how many grants the peer is behind the one that has most.
func (t *turns) behind(p peerNum) int {
	var mine, most uint32
	for _, x := range t.of {
		if x.peer == p {
			mine = x.n
		}
		most = max(most, x.n)
	}
	return int(most - mine)
}

func (t *turns) expire(now stamp) {
	if t.of != nil && now.since(t.last) > turnLife {
		*t = turns{}
	}
}

// share grants the asker spare slots in turn: as many as it is behind the peer
// that was granted most of this extent, so that peers that scan the same objects
// read equally much of them from the origin. Without it one that is ahead by a
// millisecond reads all of it, at the speed of one. The slots are the ones after
// all that is being read: the asker overtakes those that it follows, and they
// will follow it there.
func (a *answering) share() {
	if a.q.want.Spare == 0 || len(a.en.turns.of) == 0 {
		return
	}
	asker := a.t.peers.number(a.q.asker, a.q.ring)
	room, first := maxShare, 0
	for i := range a.en.leases {
		first = max(first, int(a.en.leases[i].slot)+1)
		if a.en.leases[i].peer == asker {
			room--
		}
	}
	room = min(room, a.en.turns.behind(asker))
	n := a.q.want.Count
	for i := 0; i < n && room > 0; i++ {
		slot := (first + i) % n
		if !a.q.want.Spare.Has(slot) || a.q.want.Need.Has(slot) || a.c.has(slot) || a.en.leaseOf(slot) != nil {
			continue
		}
		if _, ok := a.t.pacer.take(a.q.want.Bucket, a.now); !ok {
			break
		}
		a.v.plan.Blocks = append(a.v.plan.Blocks, a.t.grant(a.en, slot, asker, a.q.want.FirstByte, a.now))
		room--
	}
	slices.SortFunc(a.v.plan.Blocks, func(x, y BlockPlan) int { return x.Slot - y.Slot })
}
