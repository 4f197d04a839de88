package dataset

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// fill puts n files into a directory.
func fill(b *memBucket, dir string, n int) {
	for i := range n {
		b.put(fmt.Sprintf("%s%06d", dir, i), 100, "v1")
	}
}

// expect looks a path up and checks the version ("" for a directory), or the
// error, and how many requests it took.
func expect(t *testing.T, d *Dataset, path string, version string, want error, lists, stats int) Entry {
	t.Helper()
	b := d.Bucket().(*memBucket)
	b.requests()
	e, err := d.Lookup(t.Context(), path)
	l, s := b.requests()
	if !errors.Is(err, want) || e.Version != version {
		t.Fatalf("lookup %q: version %q, %v; want %q, %v", path, e.Version, err, version, want)
	}
	if errors.Is(want, covey.ErrUnavailable) && errors.Is(err, covey.ErrNotFound) {
		t.Fatalf("lookup %q is both not found and unavailable: %v", path, err)
	}
	if l != lists || s != stats {
		t.Fatalf("lookup %q took %d LIST and %d STAT, want %d and %d", path, l, s, lists, stats)
	}
	return e
}

// counted returns the value of a counter without labels.
func counted(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestLookupSmallDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("d/a", "d/b", "d/sub/x")
		d := open(t, b, "", Options{})
		if e := expect(t, d, "", "", nil, 0, 0); e.Kind != Dir {
			t.Fatal(e)
		}
		e := expect(t, d, "d/a", "v1", nil, 1, 0)
		if e.Name != "a" || e.Kind != File || e.Size != 100 || !e.ModTime.Equal(time.Unix(1700000000, 123456789)) {
			t.Fatalf("%+v", e)
		}
		expect(t, d, "d/b", "v1", nil, 0, 0)
		expect(t, d, "d/nope", "", covey.ErrNotFound, 0, 0)
		if e := expect(t, d, "d/sub", "", nil, 0, 0); e.Kind != Dir {
			t.Fatal(e)
		}
		b.put("d/nope", 1, "v1")
		b.put("d/b", 100, "v2")
		time.Sleep(DefaultMaxAge - time.Nanosecond)
		expect(t, d, "d/nope", "", covey.ErrNotFound, 0, 0)
		time.Sleep(time.Nanosecond)
		expect(t, d, "d/nope", "v1", nil, 1, 0)
		expect(t, d, "d/b", "v2", nil, 0, 0)
	})
}

func TestLookupLargeDirectoryAsksForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("d/sub/x")
		fill(b, "d/", smallDir)
		d := open(t, b, "", Options{})
		if e, err := d.Lookup(t.Context(), "d/000500"); err != nil || e.Version != "v1" {
			t.Fatal(e, err)
		}
		synctest.Wait() // the listing goes on to its end
		expect(t, d, "d/sub", "", nil, 0, 0)
		time.Sleep(DefaultMaxAge)
		b.put("d/000500", 100, "v2")
		expect(t, d, "d/000500", "v2", nil, 1, 1)
		expect(t, d, "d/000500", "v2", nil, 0, 0)
		expect(t, d, "d/sub", "", nil, 1, 1)
		b.remove("d/000501")
		expect(t, d, "d/000501", "", covey.ErrNotFound, 2, 1)
		expect(t, d, "d/000501", "", covey.ErrNotFound, 0, 0)
		time.Sleep(DefaultMaxAge)
		expect(t, d, "d/000500", "v2", nil, 1, 1)
	})
}

func TestLookupsShareOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		fill(b, "d/", smallDir+1)
		b.delay = time.Second
		d := open(t, b, "", Options{})
		herd := func() {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if e, err := d.Lookup(t.Context(), "d/000001"); err != nil || e.Kind != File {
						t.Error(e, err)
					}
				})
			}
			wg.Wait()
			time.Sleep(5 * time.Second)
		}
		herd()
		if l, s := b.requests(); l != 2 || s != 0 {
			t.Errorf("cold: %d LIST, %d STAT", l, s)
		}
		time.Sleep(DefaultMaxAge)
		herd()
		if l, s := b.requests(); l != 1 || s != 1 {
			t.Errorf("aged: %d LIST, %d STAT", l, s)
		}
	})
}

// A name is answered when its page is there, not when the listing is complete;
// one that is far behind is asked for by itself.
func TestLookupDuringTheListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		fill(b, "d/", 50_000)
		b.delay = time.Second
		d := open(t, b, "", Options{})
		took := func(path string) time.Duration {
			begin := time.Now()
			if _, err := d.Lookup(t.Context(), path); err != nil {
				t.Error(err)
			}
			return time.Since(begin)
		}
		if s := took("d/000001"); s != time.Second {
			t.Errorf("first page after %v", s)
		}
		if s := took("d/002500"); s != 2*time.Second && s != 3*time.Second {
			t.Errorf("third page after %v", s)
		}
		if s := took("d/049999"); s > 12*time.Second {
			t.Errorf("last page after %v", s)
		}
		begin := time.Now()
		if _, err := d.Lookup(t.Context(), "d/000001x"); !errors.Is(err, covey.ErrNotFound) || time.Since(begin) != 0 {
			t.Errorf("a name that the listing has passed: %v after %v", err, time.Since(begin))
		}
	})
}

func TestLookupImmutable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("a")
		d := open(t, b, "", Options{Immutable: true})
		expect(t, d, "a", "v1", nil, 1, 0)
		b.put("a", 100, "v2")
		b.put("b", 100, "v1")
		time.Sleep(1000 * time.Hour)
		expect(t, d, "a", "v1", nil, 0, 0)
		expect(t, d, "b", "", covey.ErrNotFound, 0, 0)
		b.set(func() { b.fail = covey.ErrUnavailable })
		expect(t, d, "a", "v1", nil, 0, 0)
		b.set(func() { b.fail = nil })
		d.Invalidate("a")
		expect(t, d, "a", "v2", nil, 1, 0)
	})
}

func TestLookupWithoutAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("a", "s/x")
		d := open(t, b, "", Options{MaxAge: -1})
		expect(t, d, "a", "v1", nil, 1, 1)
		b.put("a", 100, "v2")
		expect(t, d, "a", "v2", nil, 1, 1)
		if e := expect(t, d, "s", "", nil, 1, 1); e.Kind != Dir {
			t.Fatal(e)
		}
		b.put("a/b", 1, "v1")
		if e := expect(t, d, "a", "", nil, 1, 1); e.Kind != Dir {
			t.Fatal("the directory wins:", e)
		}
		b.set(func() { b.fail = covey.ErrUnavailable })
		expect(t, d, "a", "", nil, 1, 1)
		time.Sleep(DefaultStaleIfError)
		expect(t, d, "a", "", covey.ErrUnavailable, 1, 1)
	})
}

// fault 28
func TestLookupWhileTheOriginIsAway(t *testing.T) {
	for _, kind := range []error{covey.ErrUnavailable, covey.ErrThrottled} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			registry := prometheus.NewRegistry()
			metrics := NewMetrics(registry)
			b := newBucket("a", "sub/x")
			d := open(t, b, "", Options{Metrics: metrics, Log: slog.New(slog.NewTextHandler(&log, nil))})
			expect(t, d, "a", "v1", nil, 1, 0)
			expect(t, d, "nope", "", covey.ErrNotFound, 0, 0)
			b.set(func() { b.fail = fmt.Errorf("list: %w", kind) })
			time.Sleep(DefaultMaxAge)
			expect(t, d, "a", "v1", nil, 1, 0)                        // asks, then stands in
			expect(t, d, "a", "v1", nil, 0, 0)                        // knows of the outage
			expect(t, d, "nope", "", covey.ErrUnavailable, 1, 0)      // could be there by now
			expect(t, d, "sub/x", "", covey.ErrUnavailable, 1, 0)     // was never seen
			expect(t, d, "other/x/y", "", covey.ErrUnavailable, 1, 0) // nor this
			if got, err := names(t, d, "sub"); err == nil || errors.Is(err, covey.ErrNotFound) {
				t.Fatalf("an unknown directory: %q, %v", got, err)
			}
			time.Sleep(askAgain)
			expect(t, d, "a", "v1", nil, 1, 0)
			if n := counted(t, registry, "covey_dataset_stale_answers_total"); n != 3 {
				t.Errorf("%v stale answers counted, want 3", n)
			}
			if n := strings.Count(log.String(), "cannot be reached"); n != 1 {
				t.Errorf("the outage was logged %d times:\n%s", n, &log)
			}
			time.Sleep(DefaultStaleIfError)
			expect(t, d, "a", "", covey.ErrUnavailable, 1, 0)
			b.set(func() { b.fail = nil })
			expect(t, d, "a", "v1", nil, 1, 0)
			if n := strings.Count(log.String(), "answers again"); n != 1 {
				t.Errorf("the end of the outage was logged %d times", n)
			}
		})
	}
}

// fault 26
func TestLookupDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("a")
		d := open(t, b, "", Options{})
		expect(t, d, "a", "v1", nil, 1, 0)
		b.set(func() { b.fail = covey.ErrDenied })
		time.Sleep(DefaultMaxAge)
		expect(t, d, "a", "", covey.ErrDenied, 1, 0) // an answer, not an outage
	})
}

// fault 24
// fault 25
func TestInvalidate(t *testing.T) {
	for _, n := range []int{1, smallDir + 1} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket("d/x", "d/y")
			fill(b, "d/", n)
			d := open(t, b, "", Options{})
			lists, stats, gone := 1, 0, 1
			if n > smallDir {
				lists, stats, gone = 1, 1, 2
			}
			if _, err := names(t, d, "d"); err != nil {
				t.Fatal(err)
			}
			b.put("d/x", 200, "v2")
			expect(t, d, "d/x", "v1", nil, 0, 0)
			d.Invalidate("d/x")
			expect(t, d, "d/x", "v2", nil, lists, stats)
			expect(t, d, "d/x", "v2", nil, 0, 0)
			for e, err := range d.ReadDir(t.Context(), "d") {
				if err != nil || e.Name == "x" && e.Version != "v2" {
					t.Fatal(e, err)
				}
			}
			b.remove("d/y")
			d.Invalidate("d/y")
			expect(t, d, "d/y", "", covey.ErrNotFound, gone, stats)
			d.Invalidate("d/x")
			b.set(func() { b.fail = covey.ErrUnavailable })
			expect(t, d, "d/x", "", covey.ErrUnavailable, lists, stats) // known to be wrong
		})
	}
}

// An answer that was under way when the doubt arose does not dispel it.
func TestInvalidateDuringTheListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("x")
		d := open(t, b, "", Options{})
		late := make(chan struct{})
		b.inspect = func(req origin.ListRequest) (origin.Page, error, bool) {
			if req.Prefix != "" {
				return origin.Page{}, nil, false
			}
			page := b.slice(req) // as of now
			b.mu.Unlock()
			<-late
			b.mu.Lock()
			return page, nil, true
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = d.Lookup(t.Context(), "x") })
		synctest.Wait()
		b.put("x", 100, "v2")
		d.Invalidate("x")
		expect(t, d, "x", "v2", nil, 1, 1)
		close(late)
		wg.Wait()
		synctest.Wait()
		expect(t, d, "x", "v2", nil, 0, 0)
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket("a", "b", "c", "e/x")
		d := open(t, b, "", Options{})
		var mu sync.Mutex
		var heard []string
		stop := d.Watch(func(path string, was, now Entry) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, fmt.Sprintf("%s %s%s-%s%s", path, was.Kind, was.Version, now.Kind, now.Version))
			_, _ = d.Lookup(t.Context(), path) // no lock is held
		})
		check := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Join(heard, "; "); got != strings.Join(want, "; ") {
				t.Fatalf("heard %q, want %q", got, want)
			}
			heard = nil
		}
		expect(t, d, "a", "v1", nil, 1, 0)
		check() // nothing was known
		b.put("a", 100, "v2")
		b.remove("b")
		b.put("bb", 100, "v1")
		b.put("c/x", 1, "v1")
		time.Sleep(DefaultMaxAge)
		expect(t, d, "a", "v2", nil, 1, 0)
		check("a filev1-filev2", "b filev1-nothing", "bb nothing-filev1", "c filev1-directory")
		fill(b, "big/", smallDir+1)
		if _, err := names(t, d, "big"); err != nil {
			t.Fatal(err)
		}
		b.put("big/000001", 100, "v2")
		d.Invalidate("big/000001")
		expect(t, d, "big/000001", "v2", nil, 1, 1)
		check("big/000001 filev1-filev2")
		d.Invalidate("big/000002")
		expect(t, d, "big/000002", "v1", nil, 1, 1)
		check() // the same, though the time is coarser
		stop()
		b.put("a", 100, "v3")
		d.Invalidate("a")
		expect(t, d, "a", "v3", nil, 1, 0)
		check()
	})
}

func TestClosedDataset(t *testing.T) {
	b := newBucket("a")
	d := open(t, b, "", Options{})
	expect(t, d, "a", "v1", nil, 1, 0)
	d.Close()
	expect(t, d, "a", "v1", nil, 0, 0)
	if _, err := names(t, d, "b"); !errors.Is(err, covey.ErrUnavailable) {
		t.Fatal(err)
	}
}
