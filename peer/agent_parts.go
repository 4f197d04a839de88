package peer

import (
	"context"
	"fmt"
	"iter"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/fetch/ahead"
)

// agentBlocks is what mounts read from: the fetcher, and the store's whole
// objects.
type agentBlocks struct {
	*fetch.Fetcher
	store *blockstore.Store
	ahead *ahead.Reader
	// manifest says that there is one.
	manifest bool
}

// Get is what a reader of a mount asks for. What the agent fetches for itself
// says nothing about whether a plan is right, and goes to the fetcher directly.
func (b *agentBlocks) Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error) {
	if slot >= 0 && slot < len(e.Blocks) {
		b.ahead.Asked(e.Blocks[slot])
	}
	return b.Fetcher.Get(ctx, e, slot)
}

// crowded reports whether less than a twentieth of the cache is free: about what
// a policy that evicts keeps free on its own.
func (a *Agent) crowded() bool {
	u := a.store.Usage()
	return u.Used >= u.Budget-u.Budget/20
}

// admittedAtMost is the largest object, in blocks, that OpenWhole waits for while
// the store is admitting it: those that an open completes. Of a larger one the
// next open finds the whole.
const admittedAtMost = 2

// OpenWhole opens the object's file when every block is cached, and waits for the
// store where the last bytes of a small object have only just arrived.
func (b *agentBlocks) OpenWhole(o covey.Object) (*os.File, error) {
	f, err := b.openWhole(o)
	if err == nil && o.Blocks() > 0 {
		// From here on the kernel reads by itself.
		b.ahead.Asked(o.Block(0))
	}
	return f, err
}

func (b *agentBlocks) openWhole(o covey.Object) (*os.File, error) {
	f, err := b.openCached(o)
	if err == nil || o.Blocks() > admittedAtMost || !b.Admitted(o) {
		return f, err
	}
	return b.openCached(o)
}

// openCached opens the object's file if every block is the manifest's. The store
// has held the file against its digests before it hands it out.
func (b *agentBlocks) openCached(o covey.Object) (*os.File, error) {
	if !b.manifest {
		return b.store.OpenWhole(o)
	}
	for i := range o.Blocks() {
		h, err := b.store.Get(o.Block(i))
		if err != nil {
			return nil, err
		}
		err = b.Vouch(o.Block(i), h.Digest())
		h.Release()
		if err != nil {
			// A read of the block tells the reader, or fetches the right one.
			return nil, fmt.Errorf("open whole: %s: %w", err.Error(), covey.ErrNotFound)
		}
	}
	return b.store.OpenWhole(o)
}

// agentServer answers members.
type agentServer struct{ a *Agent }

func (s agentServer) ServeDirectory(ctx context.Context, from covey.PeerID, request []byte) []byte {
	return s.a.directory.Serve(ctx, from, request)
}

func (s agentServer) ServeBlock(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error) {
	return s.a.fetcher.Serve(ctx, l, wait)
}

// held is everything in the store, as the directory wants to hear it.
func (a *Agent) held() iter.Seq[dht.Have] {
	return func(yield func(dht.Have) bool) {
		for h := range a.store.All() {
			if !yield(dht.Have{Extent: h.Extent, Have: h.Have, Digests: h.Digests}) {
				return
			}
		}
	}
}

// heldOf is what the store has of one extent.
func (a *Agent) heldOf(id covey.ExtentID) (dht.Have, bool) {
	h, ok := a.store.Extent(id)
	return dht.Have{Extent: h.Extent, Have: h.Have, Digests: h.Digests}, ok
}

// corruptCounter is covey_corrupt_blocks_total: blocks whose bytes were not what
// they should be, by where they came from.
type corruptCounter struct {
	vec *prometheus.CounterVec
}

var corruptSources = [...]string{"disk", "neighbour", "origin"}

func newCorruptCounter(reg prometheus.Registerer) *corruptCounter {
	c := &corruptCounter{vec: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "covey_corrupt_blocks_total",
		Help: "Blocks whose bytes did not match what is known of them, by where the bytes came from.",
	}, []string{"source"})}
	for _, s := range corruptSources {
		c.vec.WithLabelValues(s)
	}
	reg.MustRegister(c.vec)
	return c
}

func (c *corruptCounter) add(source string) { c.vec.WithLabelValues(source).Inc() }

func (c *corruptCounter) snapshot() map[string]int64 {
	m := map[string]int64{}
	for _, s := range corruptSources {
		m[s] = counterValue(c.vec.WithLabelValues(s))
	}
	return m
}
