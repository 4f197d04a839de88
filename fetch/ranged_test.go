package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// fullRoom is a room whose store has just refused a block: slot 1 of the extent.
func fullRoom(t *testing.T, x Exchange) (*room, *covey.Extent) {
	r := newRoom(t, x)
	e := extentOf("k", 8)
	r.store.limit = 1
	mustGet(t.Context(), t, r.Fetcher, e, 0)
	r.settle()
	mustGet(t.Context(), t, r.Fetcher, e, 1)
	r.settle()
	return r, e
}

// ranged reads a range and reports whether it was read as such.
func ranged(ctx context.Context, t *testing.T, r *room, e *covey.Extent, slot int, off int64, n int) bool {
	t.Helper()
	p := make([]byte, n)
	done, err := r.ReadRange(ctx, e, slot, off, p)
	if err != nil {
		t.Errorf("slot %d at %d: %v", slot, off, err)
	}
	if done && !bytes.Equal(p, content(e.Blocks[slot])[off:off+int64(n)]) {
		t.Errorf("slot %d at %d: wrong bytes", slot, off)
	}
	return done
}

func TestRangesWhenTheStoreIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, e := fullRoom(t, noPeers(t))
		before, puts := r.origin.bytes, r.store.puts
		for range 3 {
			if !ranged(t.Context(), t, r, e, 2, 100, 50) {
				t.Fatal("the whole block would be fetched for 50 bytes that nobody has room for")
			}
		}
		r.settle()
		if got := r.origin.bytes - before; got != 150 {
			t.Errorf("%d bytes of the origin for three reads of 50", got)
		}
		if r.store.puts != puts || r.store.blocks[e.Blocks[2]] != nil {
			t.Error("a range was given to the store")
		}
		r.home.mu.Lock()
		back := 0
		for _, o := range r.home.done {
			if o.Slot == 2 && errors.Is(o.Err, errAbandoned) {
				back++
			}
		}
		r.home.mu.Unlock()
		if back != 1 {
			t.Errorf("%d grants handed back, want the one that came with the answer", back)
		}
		if ranged(t.Context(), t, r, e, 0, 0, 10) {
			t.Error("the origin was read for what the store has")
		}
		// The block is still to be had whole, for whoever wants that.
		mustGet(t.Context(), t, r.Fetcher, e, 2)
		r.settle()
		time.Sleep(2 * tightFor)
		if ranged(t.Context(), t, r, e, 3, 0, 10) {
			t.Error("the store may have room again, and nobody finds out")
		}
	})
}

func TestNoRangesWhileThereIsRoom(t *testing.T) {
	r := newRoom(t, noPeers(t))
	if ranged(t.Context(), t, r, extentOf("k", 4), 0, 0, 10) {
		t.Error("a range was read although the block fits")
	}
	for _, c := range []struct {
		slot int
		off  int64
	}{{-1, 0}, {4, 0}, {0, -1}, {0, 1 << 40}} {
		if done, err := r.ReadRange(t.Context(), extentOf("k", 4), c.slot, c.off, make([]byte, 10)); done || !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%+v: %v, %v", c, done, err)
		}
	}
}

func TestNoRangesOfWhatANeighbourHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, e := fullRoom(t, peerBytes{"other": honest})
		r.home.holds(e, []int{4}, "other")
		reads := r.origin.bytes
		if ranged(t.Context(), t, r, e, 4, 0, 10) || r.origin.bytes != reads {
			t.Error("the origin was read for what a neighbour holds")
		}
	})
}

func TestRangesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, e := fullRoom(t, noPeers(t))
		if !ranged(t.Context(), t, r, e, 5, 0, 100) {
			t.Fatal("not ranged")
		}
		r.origin.took = 50 * time.Millisecond
		before := r.origin.count(e.Blocks[5])
		short, cancel := context.WithCancel(t.Context())
		go func() { // the first caller gives up; the others have their bytes
			_, err := r.ReadRange(short, e, 5, 0, make([]byte, 100))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("a caller who left: %v", err)
			}
		}()
		synctest.Wait()
		for i := range int64(8) {
			go ranged(t.Context(), t, r, e, 5, 10*i, 20)
		}
		synctest.Wait()
		cancel()
		time.Sleep(time.Second)
		r.settle()
		if n := r.origin.count(e.Blocks[5]) - before; n != 1 {
			t.Errorf("%d requests for ranges within one", n)
		}
	})
}

func TestRangesOfAChangedObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, e := fullRoom(t, noPeers(t))
		for _, c := range []struct {
			text string
			err  error
			want error
		}{
			{"", covey.ErrStale, covey.ErrStale},
			{"short", nil, covey.ErrUnavailable},
			{"much longer than what was asked for", nil, covey.ErrCorrupt},
		} {
			r.origin.open = func(context.Context, covey.Locator) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader([]byte(c.text))), c.err
			}
			done, err := r.ReadRange(t.Context(), e, 6, 0, make([]byte, 10))
			if !done || !errors.Is(err, c.want) {
				t.Errorf("%q: %v, %v; want %v", c.text, done, err, c.want)
			}
		}
		r.origin.open = nil
	})
}
