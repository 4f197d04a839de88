package ahead

import (
	"cmp"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/covey-cache/covey"
)

// Node is an agent that reads a manifest, and the bytes that its cache may hold.
type Node struct {
	ID       covey.PeerID
	Capacity int64
}

// placement says which node brings which part of a manifest for all, and which
// of this node's share it keeps. It is immutable.
//
// Every node computes the same owners from the same nodes, by a rendezvous hash
// weighted with the capacities: a node that comes or goes moves only its own
// share, and nobody is asked. Nodes that disagree for a moment about who is there
// cost a copy too many, since the home of a block grants one read whoever asks.
type placement struct {
	nodes []Node
	// hashes and weights are the nodes'.
	hashes  []uint64
	weights []float64
	self    int
	// limit is the highest second hash of a unit that this node keeps. What does
	// not fit is the same in every epoch and, being chosen by a hash, spread
	// evenly over any order.
	limit uint64
	// owned and resident are this node's share in bytes, and what of it it keeps.
	owned, resident int64
}

// unit is what has one owner: a file where each is one sample and so read as a
// whole, else a block.
type unit uint64

// unitOf returns an object's unit, and blockHash names one of its blocks.
func unitOf(o *covey.Object, index int, whole bool) unit {
	if whole {
		index = -1
	}
	return unit(blockHash(o, index))
}

func blockHash(o *covey.Object, index int) uint64 {
	return mix(xxhash.Sum64String(o.Key) ^ bits(xxhash.Sum64String(o.Version)) + uint64(index+1)*0x9e3779b97f4a7c15)
}

func bits(x uint64) uint64 { return x>>31 | x<<33 }

// mix is MurmurHash3's finaliser, as in package dht.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// residentSalt makes a second hash of a unit, that knows nothing of its owner.
const residentSalt = 0x636f7665792f7265

func (u unit) second() uint64 { return mix(uint64(u) ^ residentSalt) }

// newPlacement ranks the nodes, self among them; they need not be in order.
func newPlacement(self covey.PeerID, nodes []Node) *placement {
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	p := &placement{nodes: nodes, limit: math.MaxUint64, self: -1}
	for i, n := range nodes {
		p.hashes = append(p.hashes, xxhash.Sum64String(string(n.ID)))
		p.weights = append(p.weights, float64(max(n.Capacity, 1)))
		if n.ID == self {
			p.self = i
		}
	}
	return p
}

// owner is the place in nodes of the unit's owner: the node with the highest
// weight / -ln(hash), which wins as often as its share of all weights.
func (p *placement) owner(u unit) int {
	best, top := 0, math.Inf(-1)
	for i, h := range p.hashes {
		x := mix(uint64(u) ^ h)
		// The middle of one of 2^53 equal parts of (0, 1).
		f := (float64(x>>11) + 0.5) / (1 << 53)
		if score := -p.weights[i] / math.Log(f); score > top {
			best, top = i, score
		}
	}
	return best
}

func (p *placement) mine(u unit) bool { return p.owner(u) == p.self }

// keeps reports whether this node keeps a unit of its own share.
func (p *placement) keeps(u unit) bool { return u.second() <= p.limit }

// all says that this node has room for its whole share, and so, as capacities weigh
// the shares, have the others.
func (p *placement) all() bool { return p.limit == math.MaxUint64 }

// maxMeasured is how many units are looked at to measure a node's share. With a
// hundred thousand the share is known to a third of a per cent; a thousand nodes
// need 2 s for them.
const maxMeasured = 100_000

// measure finds out how large this node's share is, and how much of it fits in
// room bytes.
func (p *placement) measure(d Data, room int64) {
	type part struct{ second, size uint64 }
	var parts []part
	total := d.Files()
	step := 1
	if d.Whole() {
		step = max(1, total/maxMeasured)
	}
	for file := 0; file < total; file += step {
		o := d.Object(file)
		if d.Whole() {
			if u := unitOf(&o, 0, true); p.mine(u) {
				parts = append(parts, part{u.second(), uint64(diskUse(o.Size) * int64(step))})
			}
			continue
		}
		for b := range o.Blocks() {
			if u := unitOf(&o, b, false); p.mine(u) {
				parts = append(parts, part{u.second(), uint64(diskUse(o.BlockRange(b).Len))})
			}
		}
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.second, b.second) })
	for _, x := range parts {
		p.owned += int64(x.size)
		if p.limit == math.MaxUint64 && p.owned > room {
			p.limit = x.second - 1
			p.resident = p.owned - int64(x.size)
		}
	}
	if p.limit == math.MaxUint64 {
		p.resident = p.owned
	}
}

// diskUse is what n bytes take in the cache, which counts in pages.
func diskUse(n int64) int64 { return (n + 4095) &^ 4095 }
