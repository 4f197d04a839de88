package fetch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// held is a home that takes a report at once and whose answer is on its way for
// a while.
type held struct {
	asker
	back time.Duration
}

func (h held) Done(ctx context.Context, home covey.PeerID, o dht.Outcome) error {
	if err := h.asker.Done(ctx, home, o); err != nil {
		return err
	}
	return sleep(ctx, h.back)
}

// From the moment that the home knows of a block, it sends others here for it,
// who do not wait: they get it, though the home's answer to this peer is still
// on its way.
func TestServeWhileTheHomesAnswerIsOnItsWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const back = 500 * time.Millisecond
		r := newRoom(t, noPeers(t), func(o *Options) { o.Directory = held{o.Directory.(asker), back} })
		r.origin.took = 100 * time.Millisecond
		e := extentOf("a", 1)
		l := e.Blocks[0]
		go mustGet(t.Context(), t, r.Fetcher, e, 0)
		synctest.Wait()
		// Not before the bytes are here.
		_, err := r.Serve(t.Context(), l, false)
		wantKind(t, err, covey.ErrNotFound)

		time.Sleep(200 * time.Millisecond)
		r.home.mu.Lock()
		reports := len(r.home.done)
		r.home.mu.Unlock()
		if reports != 1 {
			t.Fatalf("the home has %d reports", reports)
		}
		began := time.Now()
		h, err := r.Serve(t.Context(), l, false)
		if err != nil {
			t.Fatalf("refused what the home says is here: %v", err)
		}
		checkBytes(t, h, l)
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		// Who waits was told that the block is being read, and has to ask the
		// home for its digest: it is served when the home has answered.
		w, err := r.Serve(t.Context(), l, true)
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(began) == 0 {
			t.Error("served who waits before the home has answered")
		}
		w.Release()
		// The handle outlives the flight.
		r.settle()
		checkBytes(t, h, l)
		h.Release()
	})
}

// A fetch that failed has nothing to serve, although its report is under way.
func TestServeOfAFailedFetchIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.Directory = held{o.Directory.(asker), time.Second} })
		r.origin.open = failing(covey.ErrDenied)
		e := extentOf("a", 1)
		_, err := r.Get(t.Context(), e, 0)
		wantKind(t, err, covey.ErrDenied)
		_, err = r.Serve(t.Context(), e.Blocks[0], false)
		wantKind(t, err, covey.ErrNotFound)
		if errors.Is(err, covey.ErrDenied) {
			t.Error("told a neighbour why")
		}
	})
}

func TestAdmitted(t *testing.T) {
	const slow = admittedWait / 2
	t.Run("waits for the store", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			r.store.slow = slow
			e := extentOf("a", 3)
			o := e.Blocks[0].Object
			for slot := range 2 {
				mustGet(t.Context(), t, r.Fetcher, e, slot)
			}
			began := time.Now()
			if !r.Admitted(o) {
				t.Error("nothing to wait for")
			}
			if took := time.Since(began); took == 0 || took > slow+time.Second {
				t.Errorf("waited %v", took)
			}
			if got, want := r.store.Present(e), covey.FirstBits(2); got != want {
				t.Errorf("the store has %x, want %x", got, want)
			}
			if r.Admitted(o) || r.AdmittedBlock(e.Blocks[0]) {
				t.Error("waited for what is in the store")
			}
		})
	})
	// fault 14: the disk stalls under an open.
	t.Run("does not wait for a disk that stalls", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			r.store.slow = 30 * time.Second
			e := extentOf("a", 3)
			for slot := range 3 {
				mustGet(t.Context(), t, r.Fetcher, e, slot)
			}
			began := time.Now()
			if !r.Admitted(e.Blocks[0].Object) || time.Since(began) > 2*time.Second {
				t.Errorf("waited %v", time.Since(began))
			}
			r.settle()
		})
	})
	t.Run("waits for a refusal too", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			e := extentOf("a", 2)
			r.store.fill(e, 1)
			r.store.slow, r.store.limit = slow, 1
			mustGet(t.Context(), t, r.Fetcher, e, 0)
			if !r.AdmittedBlock(e.Blocks[0]) || r.store.Present(e).Has(0) {
				t.Error("did not wait, or a full store took a block")
			}
		})
	})
	t.Run("does not wait for a read under way", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			r.origin.took = time.Second
			e := extentOf("a", 1)
			go mustGet(t.Context(), t, r.Fetcher, e, 0)
			synctest.Wait()
			began := time.Now()
			if r.Admitted(e.Blocks[0].Object) || time.Since(began) != 0 {
				t.Error("waited for a read")
			}
			r.settle()
		})
	})
}

// What came from a neighbour is a replica, with as many holders as its home named;
// what the origin gave is a primary.
func TestReplicasAreTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"n1": honest, "n2": honest})
		e := extentOf("a", 2)
		r.home.holds(e, []int{0}, "n1", "n2")
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		mustGet(t.Context(), t, r.Fetcher, e, 1)
		r.settle()
		if n, is := r.store.replicas[e.Blocks[0]]; !is || n != 2 {
			t.Errorf("the neighbours' block is a replica: %v, of %d holders, want 2", is, n)
		}
		if _, is := r.store.replicas[e.Blocks[1]]; is || !r.store.Present(e).Has(1) {
			t.Error("the origin's block is a replica, or not there")
		}
	})
}
