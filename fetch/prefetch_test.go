package fetch

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

func TestPrefetchBringsWhatIsMissing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"n1": honest})
		e := extentOf("a", 40)
		r.store.fill(e, 0, 1)
		r.home.holds(e, []int{2, 3}, "n1")
		running(t, r.Fetcher, func() {
			if n := r.Prefetch(e, e.All()|1<<63); n != 40 {
				t.Errorf("accepted %d of 40", n)
			}
			time.Sleep(time.Second)
		})
		if r.store.Present(e) != e.All() {
			t.Errorf("present %b", r.store.Present(e))
		}
		got := r.Totals()
		if got.Neighbour != 2*blockSize || got.Origin != 36*blockSize-100 || got.PrefetchEnded != 38 || got.Local != 0 {
			t.Errorf("counted %+v", got)
		}
		if n := len(r.home.asked); n > 5 {
			t.Errorf("%d questions for 38 blocks, want at most one for each eight", n)
		}
		for _, w := range r.home.asked {
			if !w.Prefetch || w.Need.Len() > defaultPrefetchFlights {
				t.Errorf("asked %+v", w)
			}
		}
	})
}

func TestPrefetchIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.PrefetchQueue, o.PrefetchFlights = 10, 4 })
		r.origin.took = 100 * time.Millisecond
		a, b := extentOf("a", 8), extentOf("b", 8)
		if n := r.Prefetch(a, a.All()); n != 8 {
			t.Errorf("accepted %d of 8", n)
		}
		if n := r.Prefetch(b, b.All()); n != 2 {
			t.Errorf("accepted %d into a queue with two places", n)
		}
		if n := r.Prefetch(a, a.All()); n != 8 {
			t.Errorf("accepted %d of what is queued already", n)
		}
		if got := r.Totals(); got.Queued != 10 || got.PrefetchDropped != 6 {
			t.Errorf("%+v", got)
		}
		running(t, r.Fetcher, func() { time.Sleep(time.Second) })
		if r.origin.peak != 4 {
			t.Errorf("%d reads at once, want 4", r.origin.peak)
		}
		if r.store.Present(a) != a.All() || r.store.Present(b) != 3 {
			t.Errorf("present %b and %b, want the lowest slots", r.store.Present(a), r.store.Present(b))
		}
	})
}

// Prefetch has half of the memory; a demand finds the other half.
func TestPrefetchLeavesMemoryToDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.StagingBytes = 8 * minCharge })
		r.origin.took = time.Second
		a, b := extentOf("a", 16), extentOf("b", 1)
		running(t, r.Fetcher, func() {
			r.Prefetch(a, a.All())
			time.Sleep(500 * time.Millisecond)
			if got := r.Totals().StagingBytes; got != 4*minCharge {
				t.Errorf("prefetch took %d bytes, want half of the staging area", got)
			}
			began := time.Now()
			mustGet(t.Context(), t, r.Fetcher, b, 0)
			if took := time.Since(began); took > 1100*time.Millisecond {
				t.Errorf("a demand waited %v", took)
			}
			time.Sleep(10 * time.Second)
		})
		if r.store.Present(a) != a.All() {
			t.Errorf("present %b", r.store.Present(a))
		}
	})
}

// A demand does not wait behind the queue, nor reads again what is under way.
func TestDemandJoinsPrefetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.PrefetchFlights = 1 })
		r.origin.took = time.Second
		e := extentOf("a", 8)
		running(t, r.Fetcher, func() {
			r.Prefetch(e, e.All())
			time.Sleep(500 * time.Millisecond)
			for _, slot := range []int{0, 7} { // under way, and last in the queue
				began := time.Now()
				mustGet(t.Context(), t, r.Fetcher, e, slot)
				if took := time.Since(began); took > 1100*time.Millisecond {
					t.Errorf("slot %d took %v", slot, took)
				}
			}
			time.Sleep(10 * time.Second)
		})
		for i, l := range e.Blocks {
			if n := r.origin.count(l); n != 1 {
				t.Errorf("slot %d: %d reads of the origin", i, n)
			}
		}
	})
}

func TestPrefetchNeverOverrides(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.home.setDown(true)
		e := extentOf("a", 8)
		running(t, r.Fetcher, func() {
			r.Prefetch(e, e.All())
			time.Sleep(time.Minute)
		})
		if got := r.Totals(); got.Overrides != 0 || got.Origin != 0 || got.PrefetchEnded != 8 {
			t.Errorf("%+v", got)
		}
	})
}

// A demand that joins makes patience run from then on.
func TestDemandRaisesAStuckPrefetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"other": stopped})
		e := extentOf("a", 1)
		en := r.home.entry(e.ID, 0)
		en.reader, en.lease, en.expires = "other", 99, time.Now().Add(time.Hour)
		running(t, r.Fetcher, func() {
			r.Prefetch(e, e.All())
			time.Sleep(5 * time.Second)
			if r.Totals().Flights != 1 {
				t.Error("the prefetch does not wait")
			}
			began := time.Now()
			mustGet(t.Context(), t, r.Fetcher, e, 0)
			if took := time.Since(began); took < maxPatience || took > maxPatience+2*overrideJitter {
				t.Errorf("took %v", took)
			}
		})
		if got := r.Totals(); got.Overrides != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// A caller that joins a prefetch and leaves does not end it.
func TestPrefetchOutlivesACaller(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"n1": honest})
		r.home.rtt = 300 * time.Millisecond
		e := extentOf("a", 1)
		r.home.holds(e, []int{0}, "n1")
		running(t, r.Fetcher, func() {
			r.Prefetch(e, e.All())
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := r.Get(ctx, e, 0); err == nil {
				t.Error("got it before the home answered")
			}
			time.Sleep(time.Second)
		})
		if r.store.Present(e) != 1 {
			t.Error("the prefetch ended with a caller")
		}
	})
}

// The store had it after all: the home still learns who has it, and what it is.
func TestPrefetchOfWhatIsHere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		e := extentOf("a", 1)
		r.store.fill(e, 0)
		r.store.blind = true
		running(t, r.Fetcher, func() {
			r.Prefetch(e, e.All())
			time.Sleep(time.Second)
		})
		if r.origin.count(e.Blocks[0]) != 0 {
			t.Error("read the origin for what is here")
		}
		if d := r.home.done; len(d) != 1 || d[0].Err != nil || d[0].Digest != covey.Sum(content(e.Blocks[0])) {
			t.Errorf("reported %+v", d)
		}
	})
}

func TestQueueKeepsItsCount(t *testing.T) {
	q := newQueue(100, 8)
	for i := range 20 {
		q.add(extentOf(fmt.Sprint(i), 7), covey.FirstBits(7))
	}
	if q.len() != 100 {
		t.Errorf("%d waiting, want 100", q.len())
	}
	taken := 0
	for q.len() > 0 {
		e, slots := q.take()
		if e == nil {
			t.Fatalf("nothing to take with %d waiting", q.len())
		}
		if taken%3 == 0 {
			q.putBack(e, slots)
			_, slots = q.take()
		}
		taken += slots.Len()
		if again, _ := q.take(); again != nil {
			t.Fatal("took more than may fly")
		}
		q.ended(slots.Len())
	}
	if taken != 100 || q.begun != 0 || len(q.jobs) != 0 || q.order.Len() != 0 {
		t.Errorf("took %d, begun %d, %d jobs", taken, q.begun, len(q.jobs))
	}
}

func TestQueueGivesUpWhatNobodyWants(t *testing.T) {
	q := newQueue(100, 64)
	a, b := extentOf("a", 10), extentOf("b", 4)
	q.add(a, covey.FirstBits(10))
	q.add(b, covey.FirstBits(4))
	if n := q.remove(a.ID, covey.FirstBits(6).With(20)); n != 6 || q.len() != 8 {
		t.Errorf("%d slots taken back, %d left", n, q.len())
	}
	if n := q.remove(b.ID, covey.FirstBits(64)); n != 4 || q.remove(b.ID, covey.FirstBits(64)) != 0 {
		t.Errorf("%d slots of a whole extent taken back", n)
	}
	e, slots := q.take()
	if e != a || slots != covey.FirstBits(10)&^covey.FirstBits(6) {
		t.Errorf("took %b of %v", slots, e)
	}
	if e, _ := q.take(); e != nil || q.len() != 0 {
		t.Errorf("something is left: %v, %d", e, q.len())
	}
}
