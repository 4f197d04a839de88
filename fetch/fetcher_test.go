package fetch

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

func TestLocalHitCountsAndAnnouncesOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		e := extentOf("a", 3)
		r.store.fill(e, 1)
		for range 3 {
			mustGet(t.Context(), t, r.Fetcher, e, 1)
		}
		r.CountLocal(7)
		if got, want := r.Totals().Local, 3*blockSize+7; got != want {
			t.Errorf("local bytes %d, want %d", got, want)
		}
		if n := len(r.home.haves); n != 1 || !r.home.haves[0].Have.Has(1) || r.home.haves[0].Extent != e.ID {
			t.Errorf("announced %d times: %+v", n, r.home.haves)
		}
		if len(r.home.asked) != 0 {
			t.Error("a local hit asked the home")
		}
	})
}

func TestSlotOutOfRange(t *testing.T) {
	r := newRoom(t, noPeers(t))
	for _, slot := range []int{-1, 3, 64} {
		_, err := r.Get(t.Context(), extentOf("a", 3), slot)
		wantKind(t, err, covey.ErrInvalid)
	}
}

// fault 39: many readers of one block make one read of the origin.
func TestConcurrentCallersShareOneFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.origin.took = 40 * time.Millisecond
		e := extentOf("a", 2)
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				mustGet(t.Context(), t, r.Fetcher, e, 0)
			})
		}
		wg.Wait()
		r.settle()
		if n := r.origin.count(e.Blocks[0]); n != 1 {
			t.Errorf("%d reads of the origin, want 1", n)
		}
		if got := r.Totals(); got.Origin != blockSize || got.Local+got.Neighbour+got.Overrides != 0 {
			t.Errorf("counted %+v", got)
		}
		if n := len(r.home.asked); n != 1 {
			t.Errorf("asked the home %d times, want once", n)
		}
	})
}

func TestFirstCallerDoesNotCancelOthers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// Not granted: a fetch from a neighbour, which nobody but callers keeps.
		slow := func(ctx context.Context, l covey.Locator, buf []byte, _ bool) error {
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
			return honest(ctx, l, buf, false)
		}
		r := newRoom(t, peerBytes{"n1": slow})
		e := extentOf("a", 1)
		r.home.holds(e, []int{0}, "n1")
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() {
			_, err := r.Get(ctx, e, 0)
			first <- err
		}()
		synctest.Wait()
		second := make(chan struct{})
		go func() {
			defer close(second)
			mustGet(t.Context(), t, r.Fetcher, e, 0)
		}()
		synctest.Wait()
		cancel()
		wantKind(t, <-first, context.Canceled)
		<-second
		if got := r.Totals().Neighbour; got != blockSize-100 {
			t.Errorf("neighbour bytes %d", got)
		}
	})
}

func TestLastCallerLeavingEndsTheFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var ended time.Duration
		began := time.Now()
		r := newRoom(t, peerBytes{"n1": func(ctx context.Context, l covey.Locator, buf []byte, w bool) error {
			defer func() { ended = time.Since(began) }()
			return stopped(ctx, l, buf, w)
		}})
		e := extentOf("a", 1)
		r.home.holds(e, []int{0}, "n1")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := r.Get(ctx, e, 0)
		wantKind(t, err, covey.ErrUnavailable)
		wantKind(t, err, context.DeadlineExceeded)
		r.settle()
		if ended != 100*time.Millisecond {
			t.Errorf("the fetch ended after %v", ended)
		}
	})
}

// The lease was given: the bytes are wanted by others, and end in the store.
func TestGrantedReadOutlivesItsCallers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.origin.took = time.Second
		e := extentOf("a", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := r.Get(ctx, e, 0)
		wantKind(t, err, context.DeadlineExceeded)
		r.settle()
		if len(r.home.done) != 1 || r.home.done[0].Err != nil {
			t.Errorf("reported %+v", r.home.done)
		}
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if n := r.origin.count(e.Blocks[0]); n != 1 {
			t.Errorf("%d reads of the origin", n)
		}
	})
}

// A grant that arrives when everybody has left goes back to the home.
func TestGrantNobodyWaitsForIsHandedBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.home.rtt = 200 * time.Millisecond
		e := extentOf("a", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := r.Get(ctx, e, 0)
		wantKind(t, err, context.DeadlineExceeded)
		r.settle()
		if len(r.home.done) != 1 || r.home.done[0].Err == nil || r.home.done[0].Lease != 1 {
			t.Errorf("reported %+v, want the lease given back", r.home.done)
		}
		if r.origin.count(e.Blocks[0]) != 0 {
			t.Error("read the origin for nobody")
		}
	})
}

// The block came into the store between a caller's look and its fetch.
func TestFetchOfWhatIsHere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		e := extentOf("a", 1)
		r.store.fill(e, 0)
		r.store.misses = 1
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		r.settle()
		if got := r.Totals(); got.Local != blockSize-100 || got.Origin != 0 || len(r.home.asked) != 0 {
			t.Errorf("counted %+v, asked %d times", got, len(r.home.asked))
		}
	})
}

func TestCallersHaveBytesBeforeTheStore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.store.slow = 5 * time.Second // fault 14: a stalled disk delays no reader
		e := extentOf("a", 1)
		began := time.Now()
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("took %v", took)
		}
		h, err := r.Serve(t.Context(), e.Blocks[0], true)
		if err != nil {
			t.Fatalf("serve while the block is being admitted: %v", err)
		}
		h.Release()
		if h, err = r.Serve(t.Context(), e.Blocks[0], false); err != nil {
			t.Fatalf("serve without waiting while the block is being admitted: %v", err)
		}
		h.Release()
		r.settle()
		if r.origin.count(e.Blocks[0]) != 1 {
			t.Error("read the origin again")
		}
	})
}

// fault 10: no room in the store costs nothing but the next read.
func TestFullStoreStillServes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.store.limit = 1
		e := extentOf("a", 4)
		r.store.fill(e, 3)
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		r.settle()
		if n := len(r.home.haves); n != 1 || !r.home.haves[0].Gone.Has(0) {
			t.Errorf("announced %+v, want that the block is gone", r.home.haves)
		}
		// Prefetch would read what cannot be kept.
		if n := r.Prefetch(e, e.All()); n != 1 {
			t.Errorf("accepted %d blocks, want only the one that is here", n)
		}
		time.Sleep(2 * fullRest)
		if n := r.Prefetch(e, e.All()); n != 4 {
			t.Errorf("accepted %d blocks after the rest, want 4", n)
		}
	})
}

func TestHandleOutlivesTheFetchAndTheBufferIsNotReused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		e := extentOf("a", 8)
		h, err := r.Get(t.Context(), e, 0)
		if err != nil {
			t.Fatal(err)
		}
		for slot := 1; slot < 8; slot++ {
			mustGet(t.Context(), t, r.Fetcher, e, slot)
		}
		r.settle()
		checkBytes(t, h, e.Blocks[0])
		if got := r.Totals(); got.Handles != 1 || got.StagingBytes != minCharge {
			t.Errorf("one handle is out: %+v", got)
		}
		h.Release()
		h.Release() // harmless
		if _, err := h.ReadAt(make([]byte, 1), 0); err == nil {
			t.Error("read through a released handle")
		}
	})
}

func TestStagingBoundsMemoryAndDemandWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.StagingBytes = 4 * minCharge })
		r.origin.took = 100 * time.Millisecond
		e := extentOf("a", 16)
		var wg sync.WaitGroup
		for slot := range 16 {
			wg.Go(func() { mustGet(t.Context(), t, r.Fetcher, e, slot) })
		}
		wg.Wait()
		r.settle()
		if r.origin.peak != 4 {
			t.Errorf("%d reads at once, want 4", r.origin.peak)
		}
	})
}

func TestStagingClaimThatLeavesLetsOthersIn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &staging{limit: 2 * minCharge}
		a, _ := s.take(t.Context(), 1000)
		ctx, cancel := context.WithCancel(t.Context())
		big := make(chan error, 1)
		go func() {
			_, err := s.take(ctx, 2*minCharge)
			big <- err
		}()
		synctest.Wait()
		small := make(chan *buffer, 1)
		go func() {
			b, _ := s.take(t.Context(), 1000)
			small <- b
		}()
		synctest.Wait()
		if s.trySpare(1000) != nil {
			t.Error("prefetch overtook a demand that waits")
		}
		cancel()
		wantKind(t, <-big, covey.ErrUnavailable)
		(<-small).free()
		a.free()
		if s.inUse() != 0 {
			t.Errorf("%d bytes in use", s.inUse())
		}
	})
}

func TestServe(t *testing.T) {
	e := extentOf("a", 2)
	l := e.Blocks[0]
	t.Run("from the store", func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.store.fill(e, 0)
		h, err := r.Serve(t.Context(), l, false)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		checkBytes(t, h, l)
		if r.Totals().Local != 0 {
			t.Error("counted a neighbour's read as local")
		}
	})
	t.Run("never starts a fetch", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			for _, wait := range []bool{false, true} {
				began := time.Now()
				_, err := r.Serve(t.Context(), l, wait)
				wantKind(t, err, covey.ErrNotFound)
				if took := time.Since(began); took > announceHold || wait != (took == announceHold) {
					t.Errorf("wait %v took %v", wait, took)
				}
			}
			if len(r.home.asked) != 0 || len(r.table.awaited) != 0 {
				t.Error("asked the home, or forgot to forget")
			}
		})
	})
	t.Run("waits for a fetch that begins just after", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			r.origin.took = time.Second
			served := make(chan error, 1)
			go func() {
				h, err := r.Serve(t.Context(), l, true)
				if err == nil {
					checkBytes(t, h, l)
					h.Release()
				}
				served <- err
			}()
			time.Sleep(150 * time.Millisecond)
			mustGet(t.Context(), t, r.Fetcher, e, 0)
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("waits until the home knows", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			r.home.rtt = 300 * time.Millisecond
			go mustGet(t.Context(), t, r.Fetcher, e, 0)
			synctest.Wait()
			h, err := r.Serve(t.Context(), l, true)
			if err != nil {
				t.Fatal(err)
			}
			h.Release()
			if len(r.home.done) != 1 {
				t.Error("served a block that its home cannot confirm")
			}
		})
	})
	t.Run("not found when the fetch fails", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			r.origin.open = failing(covey.ErrDenied)
			r.origin.took = time.Second
			failed := make(chan error, 1)
			go func() {
				_, err := r.Get(t.Context(), e, 0)
				failed <- err
			}()
			synctest.Wait()
			_, err := r.Serve(t.Context(), l, true)
			wantKind(t, err, covey.ErrNotFound)
			if errors.Is(err, covey.ErrDenied) {
				t.Error("told a neighbour why")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			_, err = r.Serve(ctx, l, true)
			wantKind(t, err, covey.ErrNotFound)
			wantKind(t, <-failed, covey.ErrDenied)
		})
	})
}

func TestRunEndsEverything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"n1": stopped})
		r.origin.open = func(ctx context.Context, _ covey.Locator) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		e := extentOf("a", 12)
		r.home.holds(e, []int{1}, "n1")
		r.store.fill(e, 2)
		errs := make(chan error, 2)
		began := time.Now()
		running(t, r.Fetcher, func() {
			for slot := range 2 {
				go func() {
					_, err := r.Get(t.Context(), e, slot)
					errs <- err
				}()
			}
			r.Prefetch(e, e.All())
			time.Sleep(500 * time.Millisecond)
		})
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		for range 2 {
			wantKind(t, <-errs, covey.ErrUnavailable)
		}
		// The home need not wait for any lease.
		for _, en := range r.home.entries[e.ID] {
			if en.lease != 0 {
				t.Errorf("a lease was left: %+v", en)
			}
		}
		mustGet(t.Context(), t, r.Fetcher, e, 2) // what is here is still served
		_, err := r.Get(t.Context(), e, 5)
		wantKind(t, err, covey.ErrUnavailable)
		wantKind(t, r.Run(t.Context()), covey.ErrInvalid)
	})
}

// The names and labels are what dashboards are built on.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := newRoom(t, noPeers(t), func(o *Options) { o.Registry = reg })
	r.CountLocal(5)
	r.metrics.count(Neighbour, 7, time.Second)
	r.metrics.overrides.Add(2)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "{" + l.GetName() + "=" + l.GetValue() + "}"
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	want := map[string]float64{
		"covey_fetch_bytes_total{source=local}":     5,
		"covey_fetch_bytes_total{source=neighbour}": 7,
		"covey_fetch_bytes_total{source=origin}":    0,
		"covey_fetch_seconds{source=local}":         0,
		"covey_fetch_seconds{source=neighbour}":     1,
		"covey_fetch_seconds{source=origin}":        0,
		"covey_origin_overrides_total":              2,
		"covey_fetch_prefetch_dropped_total":        0,
		"covey_fetch_prefetch_forgone_total":        0,
		"covey_fetch_ranged_reads_total":            0,
		"covey_fetch_staging_bytes":                 0,
		"covey_fetch_flights":                       0,
		"covey_fetch_hedges_total":                  0,
		"covey_fetch_hedges_won_total":              0,
		"covey_fetch_hedges_denied_total":           0,
		"covey_fetch_hedge_wasted_bytes_total":      0,
		"covey_fetch_slow_neighbours_total":         0,
		"covey_fetch_banned_peers":                  0,
		"covey_audits_total{result=same}":           0,
		"covey_audits_total{result=differ}":         0,
		"covey_audits_total{result=failed}":         0,
		"covey_quarantined_blocks_total":            0,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOptionsValidateListsEveryFault(t *testing.T) {
	o := Options{Deadline: -1}
	err := o.Validate()
	if err == nil || len(err.(interface{ Unwrap() []error }).Unwrap()) != 5 {
		t.Errorf("faults: %v", err)
	}

}
