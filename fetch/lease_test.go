package fetch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// slowReader yields its bytes step by step.
type slowReader struct {
	ctx  context.Context
	data []byte
	step int
	each time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	if err := sleep(r.ctx, r.each); err != nil {
		return 0, err
	}
	n := copy(p, r.data[:min(r.step, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}

// slowly reads each block in the given time, in ten steps.
func slowly(took time.Duration) func(context.Context, covey.Locator) (io.ReadCloser, error) {
	return func(ctx context.Context, l covey.Locator) (io.ReadCloser, error) {
		data := content(l)
		return io.NopCloser(&slowReader{ctx: ctx, data: data, step: (len(data) + 9) / 10, each: took / 10}), nil
	}
}

// A granted read reports as it goes, first to the second home alone.
func TestGrantedReadReportsProgress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		r.origin.open = slowly(1200 * time.Millisecond)
		e := extentOf("a", 1)
		running(t, r.Fetcher, func() { mustGet(t.Context(), t, r.Fetcher, e, 0) })
		r.home.mu.Lock()
		defer r.home.mu.Unlock()
		reads := r.home.reads
		if len(reads) != 3 || !reads[0].New || reads[1].New || reads[2].New {
			t.Fatalf("reported %+v, want at once and after 0.5 and 1 s", reads)
		}
		if reads[1].Bytes == 0 || reads[2].Bytes <= reads[1].Bytes || reads[0].Lease != reads[2].Lease || reads[0].Home != "home" {
			t.Errorf("reported %+v", reads)
		}
	})
}

// A demand follows a slow reader for as long as the home hears from it, however
// long that is, and reads the origin when the home does not. fault 3
func TestPatienceLastsWhileTheReaderMoves(t *testing.T) {
	e := extentOf("a", 1)
	for _, tc := range []struct {
		name      string
		took      time.Duration // of the parent
		moving    bool
		strict    bool
		want      Source
		within    time.Duration
		overrides int64
		err       bool
	}{
		{name: "moving", took: 8 * time.Second, moving: true, want: Neighbour, within: 8*time.Second + 10*time.Millisecond},
		{name: "standing still", took: 8 * time.Second, want: Origin, within: maxPatience + 2*overrideJitter, overrides: 1},
		{name: "moving without end", took: time.Hour, moving: true, want: Origin, within: defaultDeadline/2 + maxPatience + 2*overrideJitter, overrides: 1},
		{name: "standing still, strict", took: 8 * time.Second, strict: true, want: Neighbour, within: 12 * time.Second},
		{name: "without end, strict", took: time.Hour, strict: true, err: true, within: defaultDeadline},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				began := time.Now()
				parent := func(ctx context.Context, l covey.Locator, buf []byte, _ bool) error {
					if err := sleep(ctx, tc.took-time.Since(began)); err != nil {
						return err
					}
					return honest(ctx, l, buf, false)
				}
				r := newRoom(t, peerBytes{"parent": parent}, says(func(int, dht.Want) (dht.BlockPlan, error) {
					b := dht.BlockPlan{State: dht.Fetching, Peers: []covey.PeerID{"parent"}, Moving: tc.moving}
					if time.Since(began) >= tc.took {
						b.State, b.Digest = dht.Held, covey.Sum(content(e.Blocks[0]))
					}
					return b, nil
				}), func(o *Options) { o.Strict = tc.strict })
				if tc.err {
					_, err := r.Get(t.Context(), e, 0)
					wantKind(t, err, covey.ErrUnavailable)
					if n := r.origin.count(e.Blocks[0]); n != 0 {
						t.Errorf("read the origin %d times without a grant", n)
					}
				} else {
					mustGet(t.Context(), t, r.Fetcher, e, 0)
				}
				if took := time.Since(began); took > tc.within {
					t.Errorf("took %v, want at most %v", took, tc.within)
				}
				r.settle()
				if got := r.Totals(); got.Overrides != tc.overrides || !tc.err && (got.Origin > 0) != (tc.want == Origin) {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// A block that is there although its digest is not yet known waits at the home
// and not at the origin.
func TestRumourWaitsAtTheHome(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := extentOf("a", 1)
		digest := covey.Sum(content(e.Blocks[0]))
		var held []dht.Want
		r := newRoom(t, peerBytes{"parent": honest}, says(func(n int, w dht.Want) (dht.BlockPlan, error) {
			switch {
			case n == 1:
				return dht.BlockPlan{State: dht.Fetching, Peers: []covey.PeerID{"parent"}}, nil
			case w.Hold == 0:
				return dht.BlockPlan{State: dht.Wait, After: 250 * time.Millisecond, Moving: true}, nil
			}
			held = append(held, w)
			time.Sleep(700 * time.Millisecond)
			return dht.BlockPlan{State: dht.Held, Digest: digest}, nil
		}))
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if len(held) != 1 || held[0].Home != "home" || held[0].Got != 1 || held[0].Digests[0] != digest {
			t.Errorf("held questions %+v", held)
		}
	})
}

// fault 19: an origin that throttles is not asked again before the home says so,
// and the homes are told with each question.
func TestThrottledReadsComeBackUnderANewGrant(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := extentOf("a", 1)
		began := time.Now()
		var asked []time.Duration
		r := newRoom(t, noPeers(t), says(func(n int, w dht.Want) (dht.BlockPlan, error) {
			asked = append(asked, w.Throttled)
			if n == 2 {
				return dht.BlockPlan{State: dht.Throttled, After: 800 * time.Millisecond}, nil
			}
			return dht.BlockPlan{State: dht.Granted, Lease: uint64(n)}, nil
		}))
		n := 0
		r.origin.open = func(_ context.Context, l covey.Locator) (io.ReadCloser, error) {
			if n++; n == 1 {
				return nil, fmt.Errorf("get %s: %w", l, covey.ErrThrottled)
			}
			return io.NopCloser(bytes.NewReader(content(l))), nil
		}
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if took := time.Since(began); took < 800*time.Millisecond || took > time.Second {
			t.Errorf("took %v, want the home's pause", took)
		}
		if len(asked) != 3 || asked[0] != 0 || asked[1] == 0 || asked[2] == 0 {
			t.Errorf("told the homes of throttling %v", asked)
		}
		r.settle()
		if d := r.home.done; len(d) != 2 || d[0].Bucket != dht.Bucket("mem://origin") || d[0].Err == nil || d[1].Err != nil {
			t.Errorf("reported %+v", d)
		}
	})
}

// Several cold nodes that scan the same objects share the reading: the directory
// that an agent runs, over in-memory calls, without prefetch of any kind.
func TestScansShareTheOrigin(t *testing.T) {
	for _, each := range []time.Duration{time.Millisecond, 30 * time.Millisecond} {
		bubble(t, func(t *testing.T) {
			m, end := newRealMesh(t, 4)
			m.origin.took = each
			ctx, cancel := context.WithCancel(t.Context())
			var runs sync.WaitGroup
			for _, f := range m.peers {
				runs.Go(func() { _ = f.Run(ctx) }) // nil, always
			}
			var extents []*covey.Extent
			for i := range 12 {
				extents = append(extents, extentOf(fmt.Sprint("shared-", i), 32))
			}
			var wg sync.WaitGroup
			for _, f := range m.peers {
				for lane := range 4 {
					wg.Go(func() {
						for i := lane; i < len(extents); i += 4 {
							for slot := range extents[i].Blocks {
								mustGet(t.Context(), t, f.Fetcher, extents[i], slot)
							}
						}
					})
				}
			}
			wg.Wait()
			var most, all int64
			var shares [4]int64
			for i, f := range m.peers {
				n := f.Totals().Origin
				shares[i] = n / blockSize
				most, all = max(most, n), all+n
			}
			t.Logf("origin %v a read: the busiest of 4 reads %.0f %% of all, %v", each, 100*float64(most)/float64(all), shares)
			if most*100 > all*40 {
				t.Errorf("the busiest of 4 reads %d of %d bytes", most, all)
			}
			cancel()
			runs.Wait()
			end()
			m.checkOnce(t, extents)
		})
	}
}
