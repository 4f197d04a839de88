package sim

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/fetch"
)

// source is where the bytes of a read came from.
type source int

const (
	sourceLocal source = iota
	sourceNeighbour
	sourceOrigin
	sources
)

// node is one host: its place, NICs and cache. The process on it comes and goes.
type node struct {
	w          *world
	num        int
	id         covey.PeerID
	rack, zone int
	up, down   link
	view       *view
	store      *store
	// life is the process, nil while it is dead.
	life atomic.Pointer[life]

	lies, claims atomic.Bool
	speed        atomic.Uint64 // float bits: share of the NIC's rate
	// gone says that nobody waits for it any more: it was killed for good.
	gone atomic.Bool

	// Counters over all lives. sent are directory messages and requests, served
	// the directory's questions answered for others, got and gave bytes of
	// blocks.
	sent, sentBytes, served, gave counter
	got                           [sources]counter

	// mu guards work, what the node is to read in this epoch, and life.reading.
	mu   sync.Mutex
	work *work
}

func (n *node) rate() float64 {
	return float64(n.w.c.Rates.NIC) * math.Float64frombits(n.speed.Load())
}

func (n *node) slow() bool { return math.Float64frombits(n.speed.Load()) < 1 }

// life is one process on a node: the directory and the fetcher of the product,
// over the simulated network, store and origin.
type life struct {
	node    *node
	ctx     context.Context
	end     context.CancelCauseFunc
	dir     *dht.Directory
	fetcher *fetch.Fetcher
	wg      sync.WaitGroup
	reading *work // that its readers are at; guarded by node.mu
}

var errKilled = errors.New("the node was killed")

// stagingBlocks is how many blocks a node's staging area holds, as the product's
// default of 256 MiB does with blocks of 4 MiB; minCharge is what fetch counts
// for a block as small as the payload.
const (
	stagingBlocks = 64
	minCharge     = 256 << 10
)

// start begins a life.
func (n *node) start() {
	l := &life{node: n}
	l.ctx, l.end = context.WithCancelCause(n.w.ctx)
	n.view.restart()
	p := port{w: n.w, from: l}
	l.dir = dht.NewDirectory(dht.DirectoryOptions{
		Members: n.view, Caller: p, Source: n.store.all, Own: n.store.heldOf,
	})
	l.fetcher = fetch.New(fetch.Options{
		Self: n.id, Store: n.store, Directory: l.dir, Exchange: p, Origins: newOrigins(&n.w.origin, l),
		OnCorrupt:    func(string, covey.Locator, covey.PeerID) { n.w.corrupt.Add(1); n.w.marks.hit(markCorrupt) },
		StagingBytes: stagingBlocks * minCharge, Topology: p, Scale: n.w.data.scale,
	})
	l.wg.Go(func() { _ = l.dir.Run(l.ctx) })     // it has no errors
	l.wg.Go(func() { _ = l.fetcher.Run(l.ctx) }) // nor has it, run once
	n.life.Store(l)
	n.w.joined(n.id)
	n.resume(l)
}

// kill ends the life at once; what was admitted in the last second is lost with
// it, or everything.
func (n *node) kill(everything bool) {
	l := n.life.Swap(nil)
	if l == nil {
		return
	}
	n.w.left(n.id)
	n.mu.Lock() // no reader begins any more
	l.end(errKilled)
	n.mu.Unlock()
	n.overridden(l)
	if lost := n.store.crash(everything); lost > 0 {
		n.w.marks.hit(markCrashLost)
	}
	n.w.lives.Go(l.wg.Wait)
}

// overridden adds what only the life's fetcher knows to the world's counts.
func (n *node) overridden(l *life) {
	if o := l.fetcher.Totals().Overrides; o > 0 {
		n.w.overrides.Add(o)
		n.w.marks.hit(markOverride)
	}
}
