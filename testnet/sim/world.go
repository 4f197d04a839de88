// Package sim runs a mesh of many nodes in one process and in virtual time: the
// directory and the fetcher of the product, one of each on every node, over a
// simulated network, origin and cache.
//
// It simulates above the transport, because a thousand libp2p hosts take 4 GiB
// and minutes before the first byte: what moves is a message or a block, and the
// network is a latency by distance, a NIC of a rate in each direction that serves
// one block after the other, and faults. What decides who reads what from whom is
// not simulated. Processor time is not either: an instant of virtual time may
// hold any amount of work.
//
// A block is 256 real bytes that count as the block's whole length on the clock
// and in every figure; digests are real digests of them. The cache is package
// blockstore's policy without its disk, membership package peer's rules without
// its messages. kad-dht is absent: where no home answers, the origin is read.
//
// Inputs, topology and fault schedule follow from the seed. The interleaving of
// what happens at one instant does not, and the product draws from the global
// random source; so every event is logged when asked for.
package sim

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/testnet/scenario"
)

// world is one run.
type world struct {
	c     scenario.Case
	ctx   context.Context
	stop  context.CancelFunc
	rng   *rand.Rand // of inputs and faults; only the goroutine of Run uses it
	data  *data
	nodes []*node
	byID  map[covey.PeerID]*node

	timers  sync.Pool // of *time.Timer, which belong to the bubble
	topoMu  sync.Mutex
	topo    atomic.Pointer[topology]
	base    atomic.Pointer[[]covey.PeerID]
	members members
	origin  under
	marks   markSet
	lives   sync.WaitGroup // of nodes that were killed
	events  *events
	began   time.Time
	limit   atomic.Bool // the case's limit ended the run

	pass      atomic.Pointer[pass]
	healed    time.Time // when the last fault has ended; zero when never
	overrides counter
	corrupt   counter
	wrong     counter
	unread    counter // blocks of nodes that were given up
	reads     readLog
	series    series
	taken     []EpochResult
	struck    []Strike
}

// newWorld builds the nodes; nothing runs yet.
func newWorld(ctx context.Context, c scenario.Case, log *events) *world {
	w := &world{c: c, events: log, began: time.Now(), byID: map[covey.PeerID]*node{}}
	w.ctx, w.stop = context.WithCancel(ctx)
	w.rng = rand.New(rand.NewPCG(c.Seed, 0))
	w.data = newData(c.Data, c.Seed)
	w.topo.Store(&topology{})
	w.members.is, w.members.leases = map[covey.PeerID]bool{}, map[covey.PeerID]time.Time{}
	w.origin.w = w
	w.origin.read = make([]atomic.Int32, len(w.data.blocks))
	w.origin.readers = map[int][]*node{}
	all := c.Nodes + c.Joiners()
	for i := range all {
		n := &node{w: w, num: i, id: covey.PeerID(fmt.Sprintf("node-%04d-%08x", i, w.rng.Uint32()))}
		n.rack = i * c.Racks / all
		n.zone = n.rack % c.Zones
		n.store = newStore(w, w.budget())
		n.view = &view{self: n}
		n.speed.Store(math.Float64bits(1))
		w.nodes = append(w.nodes, n)
		w.byID[n.id] = n
		if i < c.Nodes {
			w.members.is[n.id] = true
		} else {
			n.gone.Store(true)
		}
	}
	w.rebase()
	if end, ends := c.End(); ends {
		w.healed = w.began.Add(end)
	}
	return w
}

// budget is what each node may keep.
func (w *world) budget() int64 {
	switch a := w.c.Cache; {
	case a.IsZero():
		return unbounded
	case a.Share > 0:
		// Whole blocks, so that what the nodes may keep is what they can.
		full := w.data.wire(payload)
		return int64(a.Share*float64(w.data.bytes)/float64(w.c.Nodes)) / full * full
	default:
		return a.N
	}
}

// cacheBytes is what the nodes that there are from the start may keep together.
func (w *world) cacheBytes() int64 {
	if w.c.Cache.IsZero() {
		return w.data.bytes
	}
	return w.budget() * int64(w.c.Nodes)
}

// within reports whether a live node that the given one can talk to holds the
// block or is reading it.
func (w *world) within(n *node, b int) bool {
	topo := w.topo.Load()
	near := func(o *node) bool {
		return o != n && o.life.Load() != nil && topo.reaches(n.num, o.num) && topo.reaches(o.num, n.num) &&
			!o.lies.Load() && !o.claims.Load()
	}
	if slices.ContainsFunc(w.origin.readBy(b), near) {
		return true
	}
	return slices.ContainsFunc(w.nodes, func(o *node) bool { return near(o) && o.store.holds(b) })
}

// orders returns what each node reads in an epoch.
func (w *world) orders(epoch int) map[*node][]int {
	var present []*node
	for _, n := range w.nodes {
		if !n.gone.Load() {
			present = append(present, n)
		}
	}
	shared := w.shuffled(uint64(epoch) << 32)
	orders := map[*node][]int{}
	for i, n := range present {
		switch {
		case w.c.Share == scenario.Sharded:
			for at := i; at < len(shared); at += len(present) {
				orders[n] = append(orders[n], shared[at])
			}
		case w.c.Order == scenario.Shuffled:
			orders[n] = w.own(n, epoch)
		default:
			orders[n] = shared
		}
	}
	return orders
}

// own is the order of a node that reads everything in its own.
func (w *world) own(n *node, epoch int) []int {
	return w.shuffled(uint64(epoch)<<32 | uint64(n.num+1))
}

// shuffled is a permutation of all blocks, or their order where the scenario
// wants that.
func (w *world) shuffled(stream uint64) []int {
	order := make([]int, len(w.data.blocks))
	for i := range order {
		order[i] = i
	}
	if w.c.Order != scenario.Sequential {
		r := rand.New(rand.NewPCG(w.c.Seed, stream+1))
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	return order
}

// totals are the bytes of all nodes by source.
func (w *world) totals() (b Sources) {
	for _, n := range w.nodes {
		b.Local += n.got[sourceLocal].Load()
		b.Neighbour += n.got[sourceNeighbour].Load()
		b.Origin += n.got[sourceOrigin].Load()
	}
	return b
}

// Orders returns what each node of a case without faults reads in an epoch, by
// block number, so that another kind of mesh can be given the same to read.
func Orders(c scenario.Case, epoch int) [][]int {
	w := newWorld(context.Background(), c, nil)
	defer w.stop()
	for _, n := range w.nodes {
		n.gone.Store(false)
	}
	orders := w.orders(epoch)
	all := make([][]int, len(w.nodes))
	for n, order := range orders {
		all[n.num] = order
	}
	return all
}
