package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// failing is an origin that refuses.
func failing(err error) func(context.Context, covey.Locator) (io.ReadCloser, error) {
	return func(_ context.Context, l covey.Locator) (io.ReadCloser, error) {
		return nil, fmt.Errorf("get %s: %w", l, err)
	}
}

// Each row is one block that some source has; want is where it must come from.
func TestSources(t *testing.T) {
	e := extentOf("a", 1)
	data := content(e.Blocks[0])
	digest := covey.Sum(data)
	held := func(peers ...covey.PeerID) dht.BlockPlan {
		return dht.BlockPlan{State: dht.Held, Peers: peers, Digest: digest}
	}
	fetching := dht.BlockPlan{State: dht.Fetching, Peers: []covey.PeerID{"parent"}}
	granted := dht.BlockPlan{State: dht.Granted, Lease: 9}
	unavailable := fmt.Errorf("resolve: %w", covey.ErrUnavailable)
	missing := func(context.Context, covey.Locator, []byte, bool) error { return covey.ErrNotFound }

	type step struct {
		plan dht.BlockPlan
		err  error
	}
	for _, tc := range []struct {
		name      string
		peers     peerBytes
		home      []step // the last one repeats
		want      Source
		asked     int // questions to the home, 0 for any
		failed    []covey.PeerID
		corrupt   []string
		overrides int64
		within    time.Duration
	}{
		{
			name:  "a neighbour has it",
			peers: peerBytes{"a": honest}, home: []step{{plan: held("a")}},
			want: Neighbour, asked: 1, within: 10 * time.Millisecond,
		},
		{ // fault 33: the liar is named, the next holder is used.
			name:  "the first holder lies",
			peers: peerBytes{"a": liar, "b": honest}, home: []step{{plan: held("a", "b")}},
			want: Neighbour, asked: 1, corrupt: []string{"neighbour:a"}, within: 10 * time.Millisecond,
		},
		{ // fault 33
			name:  "every holder lies",
			peers: peerBytes{"a": liar, "b": liar}, home: []step{{plan: held("a", "b")}, {plan: granted}},
			want: Origin, asked: 2, failed: []covey.PeerID{"a", "b"},
			corrupt: []string{"neighbour:a", "neighbour:b"}, within: 10 * time.Millisecond,
		},
		{ // fault 35: records of dead peers cost no time.
			name:  "holders are dead",
			peers: peerBytes{"c": honest}, home: []step{{plan: held("a", "b", "c")}},
			want: Neighbour, asked: 1, within: 10 * time.Millisecond,
		},
		{ // fault 34: a peer that claims what it does not have.
			name:  "a holder does not have it",
			peers: peerBytes{"a": missing}, home: []step{{plan: held("a")}, {plan: granted}},
			want: Origin, asked: 2, failed: []covey.PeerID{"a"}, within: 10 * time.Millisecond,
		},
		{ // fault 3
			name:  "a holder is stopped",
			peers: peerBytes{"a": stopped, "b": honest}, home: []step{{plan: held("a", "b")}},
			want: Neighbour, asked: 1, within: minTry + 100*time.Millisecond,
		},
		{ // fault 3
			name:  "the only holder is stopped",
			peers: peerBytes{"a": stopped}, home: []step{{plan: held("a")}, {plan: granted}},
			want: Origin, asked: 2, failed: []covey.PeerID{"a"}, within: minTry + 100*time.Millisecond,
		},
		{
			name:  "follow a parent, confirmed",
			peers: peerBytes{"parent": honest}, home: []step{{plan: fetching}, {plan: held("parent")}},
			want: Neighbour, asked: 2, within: 10 * time.Millisecond,
		},
		{
			name:  "follow a parent whose report is slow",
			peers: peerBytes{"parent": honest}, home: []step{{plan: fetching}, {plan: fetching}, {plan: fetching}, {plan: held("parent")}},
			want: Neighbour, asked: 4, within: 100 * time.Millisecond,
		},
		{ // fault 33
			name:  "the parent lies",
			peers: peerBytes{"parent": liar, "b": honest}, home: []step{{plan: fetching}, {plan: held("parent", "b")}},
			want: Neighbour, asked: 2, corrupt: []string{"neighbour:parent"}, within: 10 * time.Millisecond,
		},
		{
			name:  "the parent never reports",
			peers: peerBytes{"parent": honest}, home: []step{{plan: fetching}},
			want: Origin, overrides: 1, within: 4 * time.Second,
		},
		{ // fault 1: the reader of the block dies.
			name: "the parent is dead",
			home: []step{{plan: fetching}, {plan: granted}},
			want: Origin, asked: 2, failed: []covey.PeerID{"parent"}, within: 10 * time.Millisecond,
		},
		{ // fault 3
			name:  "the parent is stopped",
			peers: peerBytes{"parent": stopped}, home: []step{{plan: fetching}},
			want: Origin, overrides: 1, within: maxPatience + 2*overrideJitter,
		},
		{
			name: "wait, then granted",
			home: []step{{plan: dht.BlockPlan{State: dht.Wait, After: 30 * time.Millisecond}}, {plan: granted}},
			want: Origin, asked: 2, within: 50 * time.Millisecond,
		},
		{
			name: "wait for ever",
			home: []step{{plan: dht.BlockPlan{State: dht.Wait, After: 24 * time.Hour}}},
			want: Origin, overrides: 1, within: maxPatience + 2*overrideJitter,
		},
		{ // fault 36, fault 37: nobody to ask.
			name: "no home",
			home: []step{{err: unavailable}},
			want: Origin, asked: 1, overrides: 1, within: 2 * overrideJitter,
		},
		{
			name:  "holders without a digest are not believed",
			peers: peerBytes{"a": honest}, home: []step{{plan: dht.BlockPlan{State: dht.Held, Peers: []covey.PeerID{"a"}}}},
			want: Origin, asked: 1, overrides: 1, within: 2 * overrideJitter,
		},
		{
			name: "held by nobody, for ever",
			home: []step{{plan: held()}},
			want: Origin, overrides: 1, within: time.Second,
		},
		{
			name: "a state that does not exist",
			home: []step{{plan: dht.BlockPlan{State: 99}}, {plan: granted}},
			want: Origin, within: time.Second,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRoom(t, tc.peers, says(func(n int, w dht.Want) (dht.BlockPlan, error) {
					s := tc.home[min(n, len(tc.home))-1]
					return s.plan, s.err
				}))
				began := time.Now()
				mustGet(t.Context(), t, r.Fetcher, e, 0)
				if took := time.Since(began); took > tc.within {
					t.Errorf("took %v, want at most %v", took, tc.within)
				}
				r.settle()
				got := r.Totals()
				if bytes := [...]int64{got.Local, got.Neighbour, got.Origin}; bytes[tc.want] != int64(len(data)) || bytes[0]+bytes[1]+bytes[2] != int64(len(data)) {
					t.Errorf("bytes by source %v, want all of %s", bytes, tc.want)
				}
				if got.Overrides != tc.overrides {
					t.Errorf("%d overrides, want %d", got.Overrides, tc.overrides)
				}
				asked := r.home.asked
				if tc.asked != 0 && len(asked) != tc.asked {
					t.Errorf("asked the home %d times, want %d", len(asked), tc.asked)
				}
				if last := asked[len(asked)-1].Failed; tc.failed != nil && !slices.Equal(last, tc.failed) {
					t.Errorf("told the home that %q failed, want %q", last, tc.failed)
				}
				if !slices.Equal(r.corrupt, tc.corrupt) {
					t.Errorf("corrupt %q, want %q", r.corrupt, tc.corrupt)
				}
				if tc.want == Origin && tc.overrides == 0 {
					if d := r.home.done; len(d) != 1 || d[0].Lease != 9 || d[0].Digest != digest {
						t.Errorf("reported %+v", d)
					}
				}
				if n := len(r.home.haves); n != 1 || r.home.haves[0].Digests[0] != digest {
					t.Errorf("announced %+v", r.home.haves)
				}
			})
		})
	}
}

// Every way in which a granted read can fail ends the fetch, and the home hears.
func TestOriginFailures(t *testing.T) {
	e := extentOf("a", 2)
	short := func(n int) func(context.Context, covey.Locator) (io.ReadCloser, error) {
		return func(_ context.Context, l covey.Locator) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(content(l)[:n])), nil
		}
	}
	for _, tc := range []struct {
		name string
		open func(context.Context, covey.Locator) (io.ReadCloser, error)
		kind error
	}{
		{"changed", failing(covey.ErrStale), covey.ErrStale},
		{"gone", failing(covey.ErrNotFound), covey.ErrNotFound},
		{"denied", failing(covey.ErrDenied), covey.ErrDenied},
		{"throttled", failing(covey.ErrThrottled), covey.ErrThrottled},
		{"short", short(100), covey.ErrUnavailable}, // fault 21
		{"empty", short(0), covey.ErrUnavailable},   // fault 21
		{"long", func(_ context.Context, l covey.Locator) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(append(content(l), 'x'))), nil
		}, covey.ErrCorrupt},
		{"changed at the last read", func(_ context.Context, l covey.Locator) (io.ReadCloser, error) { // fault 24
			return io.NopCloser(io.MultiReader(bytes.NewReader(content(l)), iotest.ErrReader(covey.ErrStale))), nil
		}, covey.ErrStale},
		{"hang", func(ctx context.Context, _ covey.Locator) (io.ReadCloser, error) { // fault 20
			<-ctx.Done()
			return nil, ctx.Err()
		}, covey.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRoom(t, noPeers(t))
				r.origin.open = tc.open
				began := time.Now()
				_, err := r.Get(t.Context(), e, 0)
				wantKind(t, err, tc.kind)
				if took := time.Since(began); took > defaultDeadline {
					t.Errorf("took %v", took)
				}
				r.settle()
				tries := 1
				if errors.Is(tc.kind, covey.ErrThrottled) {
					tries = maxThrottles // each under a grant of its own
				}
				if n := r.origin.count(e.Blocks[0]); n != tries {
					t.Errorf("tried %d times; the origin's own retries are behind it", n)
				}
				if d := r.home.done; len(d) != tries || d[0].Err == nil || !d[0].Digest.IsZero() {
					t.Errorf("reported %+v", d)
				}
				if r.store.puts != 0 || len(r.home.haves) != 0 {
					t.Error("kept or announced a failed read")
				}
				r.origin.open = nil
				mustGet(t.Context(), t, r.Fetcher, e, 0) // the next one begins anew
			})
		})
	}
}

// fault 20, fault 28: with the origin gone, what a neighbour has is still read.
func TestNeighbourHidesOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"n1": honest})
		r.origin.open = failing(covey.ErrUnavailable)
		e := extentOf("a", 8)
		r.home.holds(e, []int{0, 1, 2, 3, 4, 5, 6, 7}, "n1")
		for slot := range 8 {
			mustGet(t.Context(), t, r.Fetcher, e, slot)
		}
		if n := len(r.home.asked); n != 1 {
			t.Errorf("asked the home %d times for one extent, want once", n)
		}
	})
}

func TestPlansAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"n1": honest})
		e := extentOf("a", 3)
		r.home.holds(e, []int{0, 1, 2}, "n1")
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		time.Sleep(planLife + time.Millisecond)
		mustGet(t.Context(), t, r.Fetcher, e, 1)
		if n := len(r.home.asked); n != 2 {
			t.Errorf("asked %d times, want again after %v", n, planLife)
		}
		// The digests stay: with no home and only the DHT's word for a holder,
		// they are what its bytes are held against.
		if r.planner.digest(e, 2) != covey.Sum(content(e.Blocks[2])) {
			t.Error("forgot a pinned digest")
		}
	})
}

func TestDemandsForOneExtentShareQuestions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.home.rtt = 10 * time.Millisecond
		e := extentOf("a", 32)
		var wg sync.WaitGroup
		for slot := range 32 {
			wg.Go(func() { mustGet(t.Context(), t, r.Fetcher, e, slot) })
		}
		wg.Wait()
		if n := len(r.home.asked); n != 2 {
			t.Errorf("asked the home %d times, want the first slot alone and the rest together", n)
		}
	})
}

// A stopped peer costs its two seconds once, not each block.
func TestSuspectsAreAskedLast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"a": stopped, "b": honest})
		e := extentOf("a", 8)
		r.home.holds(e, []int{0, 1, 2, 3, 4, 5, 6, 7}, "a", "b")
		began := time.Now()
		for slot := range 8 {
			mustGet(t.Context(), t, r.Fetcher, e, slot)
		}
		if took := time.Since(began); took > minTry+100*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

func TestOverridesAreFewAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t), func(o *Options) { o.Overrides = 3 })
		r.home.setDown(true)
		r.origin.took = 100 * time.Millisecond
		e := extentOf("a", 12)
		var wg sync.WaitGroup
		for slot := range 12 {
			wg.Go(func() { mustGet(t.Context(), t, r.Fetcher, e, slot) })
		}
		wg.Wait()
		if r.origin.peak > 3 || r.Totals().Overrides != 12 {
			t.Errorf("%d reads at once, %d overrides", r.origin.peak, r.Totals().Overrides)
		}
	})
}

// While no place for an override is free, the mesh is waited for.
func TestPatienceIsRenewedWithoutAPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"parent": stopped}, func(o *Options) { o.Overrides = 1 })
		e := extentOf("a", 2)
		for slot := range 2 {
			en := r.home.entry(e.ID, slot)
			en.reader, en.lease, en.expires = "parent", 99, time.Now().Add(maxPatience+time.Second)
		}
		r.origin.took = 10 * time.Second // the first override keeps the place
		go mustGet(t.Context(), t, r.Fetcher, e, 0)
		time.Sleep(time.Millisecond)
		mustGet(t.Context(), t, r.Fetcher, e, 1)
		r.settle()
		if got := r.Totals(); got.Overrides != 1 {
			t.Errorf("%d overrides, want one, and a grant when the parent's lease ran out", got.Overrides)
		}
	})
}

// The origin is believed when it contradicts the mesh, and somebody hears of it.
func TestOriginContradictsPinnedDigest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		wrong := dht.BlockPlan{State: dht.Held, Peers: []covey.PeerID{"a"}, Digest: covey.Sum([]byte("else"))}
		r := newRoom(t, peerBytes{"a": honest}, says(func(n int, _ dht.Want) (dht.BlockPlan, error) {
			if n > 1 {
				return dht.BlockPlan{}, covey.ErrUnavailable
			}
			return wrong, nil
		}))
		e := extentOf("a", 1)
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if want := []string{"neighbour:a", "origin:"}; !slices.Equal(r.corrupt, want) {
			t.Errorf("corrupt %q, want %q", r.corrupt, want)
		}
	})
}

func TestDeadlineOfTheFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{}, func(o *Options) { o.Deadline = 5 * time.Second })
		r.home.setDown(true)
		r.origin.open = func(ctx context.Context, _ covey.Locator) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		e := extentOf("a", 1)
		began := time.Now()
		_, err := r.Get(t.Context(), e, 0)
		wantKind(t, err, covey.ErrUnavailable)
		if errors.Is(err, covey.ErrNotFound) {
			t.Error("not found means that the origin said so")
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestPatienceFollowsTheOrigin(t *testing.T) {
	r := newRoom(t, noPeers(t))
	for _, tc := range []struct{ took, want time.Duration }{
		{10 * time.Millisecond, minPatience},
		{800 * time.Millisecond, 1600 * time.Millisecond},
		{time.Minute, maxPatience},
	} {
		if r.originTook = (latency{}); r.patience() != maxPatience {
			t.Error("impatient before anything is known")
		}
		for range minSamples {
			r.originTook.add(tc.took)
		}
		if got := r.patience(); got != tc.want {
			t.Errorf("patience %v at %v, want %v", got, tc.took, tc.want)
		}
	}
}
