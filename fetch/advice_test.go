package fetch

import (
	"errors"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// counsel is an Adviser of one block.
type counsel struct {
	staged blockstore.Handle
	block  covey.Locator
	keep   bool
	known  bool
	from   []Source // of the blocks that Keep was asked for
}

func (c *counsel) Staged(l covey.Locator) blockstore.Handle {
	if l == c.block && c.staged != nil {
		return c.staged
	}
	return nil
}

func (c *counsel) Holds(l covey.Locator) bool { return c.Staged(l) != nil }

func (c *counsel) Keep(_ covey.Locator, from Source) bool {
	c.from = append(c.from, from)
	return c.keep
}

func (c *counsel) Foreseen(covey.Locator) bool { return c.known }

// A block that the adviser does not want kept is read, and goes neither to the
// store nor stays with the home as this peer's.
func TestUnwantedBlockIsNotKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		c := &counsel{}
		r.Advise(c)
		e := extentOf("a", 4)
		h, from, err := r.Bring(t.Context(), e, 1)
		if err != nil || from != Origin {
			t.Fatalf("from %v, %v", from, err)
		}
		checkBytes(t, h, e.Blocks[1])
		h.Release()
		if r.store.puts != 0 || len(c.from) != 1 || c.from[0] != Origin {
			t.Errorf("%d puts, asked for %v", r.store.puts, c.from)
		}
		gone := false
		for _, v := range r.home.haves {
			gone = gone || v.Gone.Has(1)
		}
		if !gone {
			t.Error("the home still takes this peer for a holder")
		}
		// Prefetch does not rest because of it: the store is not full.
		if r.full.Load() != 0 {
			t.Error("prefetch rests as if the store were full")
		}
		c.keep = true
		if h, _, err = r.Bring(t.Context(), e, 1); err != nil {
			t.Fatal(err)
		}
		h.Release()
		if h, from, err = r.Bring(t.Context(), e, 1); err != nil || from != Local {
			t.Errorf("brought again from %v, %v", from, err)
		}
		h.Release()
	})
}

// What the adviser has in memory is what a reader gets, and what it will read
// ahead nobody else does.
func TestStagedBlockIsRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		e := extentOf("a", 4)
		data := content(e.Blocks[2])
		c := &counsel{block: e.Blocks[2], known: true, staged: &memory{buf: &buffer{data: data, s: r.staging, class: classOf(len(data))}, digest: covey.Sum(data)}}
		r.Advise(c)
		r.staging.used += chargeOf(len(data)) // the handle gives it back
		mustGet(t.Context(), t, r.Fetcher, e, 2)
		if n := r.origin.count(e.Blocks[2]); n != 0 {
			t.Errorf("the origin was read %d times for a block in memory", n)
		}
		if n := r.Prefetch(e, e.All()); n != len(e.Blocks) || r.queue.len() != 0 {
			t.Errorf("%d accepted, %d queued, of blocks that a plan foresees", n, r.queue.len())
		}
	})
}

// Bring takes no memory that a reader could want, and asks nobody without.
func TestBringDoesNotWaitForMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.StagingBytes = 4 * minCharge })
		r.origin.took = time.Second
		e := extentOf("a", 8)
		done := make(chan error)
		for slot := range 2 {
			go func() {
				h, _, err := r.Bring(t.Context(), e, slot)
				if err == nil {
					h.Release()
				}
				done <- err
			}()
		}
		time.Sleep(100 * time.Millisecond)
		if _, _, err := r.Bring(t.Context(), e, 5); !errors.Is(err, covey.ErrFull) {
			t.Errorf("with prefetch's half used up: %v", err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := r.origin.count(e.Blocks[5]); n != 0 {
			t.Errorf("%d reads", n)
		}
		if _, _, err := r.Bring(t.Context(), e, 8); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("a slot that is none: %v", err)
		}
	})
}
