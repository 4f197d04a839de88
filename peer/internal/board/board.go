package board

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

// maxManifests bounds the manifests of a board: those of a large cluster's jobs,
// of which each member keeps a few.
const maxManifests = 1024

// Board is what members have told this one, by manifest. The zero value is ready.
type Board struct {
	mu    sync.Mutex // leaf lock; guards all below
	told  map[[32]byte]map[covey.PeerID]pinned
	swept time.Time
}

// sweepEvery is how often all of a board is gone through; the notices of one
// manifest are whenever somebody asks for them.
const sweepEvery = 10 * time.Second

// pinned is a notice with its end.
type pinned struct {
	node Node
	ends time.Time
}

// Pin takes in what a member says, and returns what others have said of the same
// manifest, in the order of their IDs. A board that is full leaves the notice out
// and answers all the same.
func (b *Board) Pin(from covey.PeerID, n *Notice, now time.Time) []Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire(now)
	if b.told == nil {
		b.told = map[[32]byte]map[covey.PeerID]pinned{}
	}
	nodes := b.told[n.Manifest]
	if nodes == nil && n.Life > 0 && len(b.told) < maxManifests {
		nodes = map[covey.PeerID]pinned{}
		b.told[n.Manifest] = nodes
	}
	if _, known := nodes[from]; nodes != nil && n.Life > 0 && (known || len(nodes) < MaxNodes) {
		nodes[from] = pinned{
			node: Node{Peer: from, Capacity: n.Capacity, Jobs: n.Jobs},
			ends: now.Add(min(n.Life, MaxLife)),
		}
	}
	if n.Life <= 0 {
		delete(nodes, from)
	}
	var others []Node
	for id, p := range nodes {
		switch {
		case !now.Before(p.ends):
			delete(nodes, id)
		case id != from:
			others = append(others, p.node)
		}
	}
	slices.SortFunc(others, func(a, b Node) int { return cmp.Compare(a.Peer, b.Peer) })
	return others
}

// expire forgets what has ended; b.mu is held.
func (b *Board) expire(now time.Time) {
	if now.Sub(b.swept) < sweepEvery {
		return
	}
	b.swept = now
	for m, nodes := range b.told {
		for id, p := range nodes {
			if !now.Before(p.ends) {
				delete(nodes, id)
			}
		}
		if len(nodes) == 0 {
			delete(b.told, m)
		}
	}
}
