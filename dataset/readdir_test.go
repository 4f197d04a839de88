package dataset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

func TestReadDirShows(t *testing.T) {
	long := strings.Repeat("n", 255)
	for _, tc := range []struct {
		name string
		keys []string
		path string
		want string
		err  error
	}{
		{"empty data set", nil, "", "", nil},
		{"files and directories", []string{"b", "a/x", "c/y/z"}, "", "a/ b c/", nil},
		{"name order is not key order", []string{"a-1", "a.txt", "a/x", "a0", "b"}, "", "a/ a-1 a.txt a0 b", nil},
		{"file and prefix clash", []string{"a", "a-1", "a/x"}, "", "a/ a-1", nil},
		{"marker alone", []string{"a/"}, "", "a/", nil},
		{"marker of the listed directory", []string{"a/"}, "a", "", nil},
		{"marker beside keys", []string{"a/", "a/x"}, "", "a/", nil},
		{"leading slash", []string{"/x", "y"}, "", "y", nil},
		{"double slash", []string{"a//b", "a/c"}, "a", "c", nil},
		{"only hidden keys below", []string{"a//b"}, "a", "", nil},
		{"dots", []string{"./a", "../b", "...", "..c/d"}, "", "... ..c/", nil},
		{"dot dot below", []string{"a/../b", "a/c"}, "a", "c", nil},
		{"NUL", []string{"a\x00b", "c\x00/d", "e"}, "", "e", nil},
		{"newline and case", []string{"A", "a", "a\nb"}, "", "A a a\nb", nil},
		{"invalid UTF-8", []string{"\xff\xfe", "a"}, "", "a \xff\xfe", nil},
		{"255 and 256 bytes", []string{long, long + "n", "o/" + long + "n/x"}, "", long + " o/", nil},
		{"256 bytes below", []string{"o/" + long + "n/x"}, "o", "", nil},
		{"missing directory", []string{"a"}, "b", "", covey.ErrNotFound},
		{"file as a directory", []string{"a"}, "a", "", covey.ErrNotFound},
		{"impossible path", []string{"a/../b"}, "a/..", "", covey.ErrNotFound},
	} {
		for _, page := range []int{1, 2, 1000} {
			t.Run(fmt.Sprintf("%s by %d", tc.name, page), func(t *testing.T) {
				b := newBucket()
				b.page = page
				for _, k := range tc.keys {
					b.put("pre/"+k, 1, "v")
				}
				b.put("pre.txt", 1, "v")
				d := open(t, b, "pre/", Options{})
				for range 2 { // listed, then cached
					got, err := names(t, d, tc.path)
					if s := strings.Join(got, " "); s != tc.want || !errors.Is(err, tc.err) {
						t.Fatalf("got %q, %v; want %q, %v", s, err, tc.want, tc.err)
					}
				}
			})
		}
	}
}

func TestKeysBeyondTheCacheAreHidden(t *testing.T) {
	b := newBucket("ok", strings.Repeat("d/", 400)+strings.Repeat("x", 225))
	b.put("version", 1, strings.Repeat("v", covey.MaxVersionLen+1))
	b.put("size", covey.MaxObjectSize+1, "v")
	b.put("negative", -1, "v")
	d := open(t, b, "", Options{})
	got, err := names(t, d, "")
	if want := []string{"d/", "ok"}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
	got, err = names(t, d, strings.TrimSuffix(strings.Repeat("d/", 400), "/"))
	if err != nil || len(got) != 0 {
		t.Fatalf("a key of 1,025 bytes: %q, %v", got, err)
	}
}

// Any set of keys in pages of any length comes out as the rule of NAMES.md says,
// in the order of the names.
func TestReadDirMatchesModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		part := rapid.StringMatching(`[a-b.\-/]{0,4}`)
		keys := rapid.SliceOfDistinct(part, func(s string) string { return s }).Draw(rt, "keys")
		b := newBucket()
		b.page = rapid.IntRange(1, 5).Draw(rt, "page")
		model := map[string]bool{} // name: is a directory
		for _, k := range keys {
			if k == "" {
				continue
			}
			b.put(k, 1, "v")
			name, _, dir := strings.Cut(k, "/")
			if name != "" && name != "." && name != ".." {
				model[name] = model[name] || dir
			}
		}
		want := []string{}
		for name, dir := range model {
			want = append(want, name)
			if dir {
				want[len(want)-1] += "/"
			}
		}
		slices.SortFunc(want, func(a, b string) int {
			return strings.Compare(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/"))
		})
		d := New(&origin.Source{Bucket: b, URL: "mem://bucket"}, Options{})
		defer d.Close()
		got, err := names(t, d, "")
		if err != nil || !slices.Equal(got, want) {
			rt.Fatalf("keys %q: got %q, %v; want %q", keys, got, err, want)
		}
	})
}

// A common stem in front of a byte below the slash would hold back the whole
// listing, since the stem could be a directory. One request settles that.
func TestReadDirStreams(t *testing.T) {
	for _, stem := range []bool{false, true} {
		t.Run(fmt.Sprint("stem directory ", stem), func(t *testing.T) {
			b := newBucket()
			for i := range 10_000 {
				b.put(fmt.Sprintf("train-%05d-of-10000.tar", i), 1, "v")
			}
			if stem {
				b.put("train/x", 1, "v")
			}
			gate := make(chan struct{})
			b.inspect = func(req origin.ListRequest) (origin.Page, error, bool) {
				if strings.HasPrefix(req.Token, "train-05") {
					b.gate = gate
				}
				return origin.Page{}, nil, false
			}
			d := open(t, b, "", Options{})
			n := 0
			var last string
			for e, err := range d.ReadDir(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				if e.Name <= last {
					t.Fatalf("%q behind %q", e.Name, last)
				}
				if last = e.Name; n == 4000 {
					close(gate) // the fifth thousand is here while the sixth is not
				}
				n++
			}
			want := 10_000
			if stem {
				want++
			}
			if n != want || b.probes > 12 {
				t.Fatalf("%d entries, %d probes; want %d and one probe for each page at most", n, b.probes, want)
			}
		})
	}
}

// A file system has directories without keys: asked about ahead of its turn,
// such a one is not there, and comes all the same.
func TestDirectoryThatComesLate(t *testing.T) {
	b := newBucket("train/")
	fill(b, "train-", 5000)
	b.inspect = func(req origin.ListRequest) (origin.Page, error, bool) {
		return origin.Page{}, nil, req.Prefix == "train/"
	}
	d := open(t, b, "", Options{Immutable: true})
	if got, err := names(t, d, ""); err != nil || len(got) != 5000 {
		t.Fatal(len(got), err)
	}
	if e, err := d.Lookup(t.Context(), "train"); err != nil || e.Kind != Dir {
		t.Fatal("lookup after the listing that missed it:", e, err)
	}
	for range 2 {
		if got, err := names(t, d, ""); err != nil || len(got) != 5001 || got[0] != "train/" {
			t.Fatal("the listing after that:", len(got), err)
		}
	}
	if b.requests(); len(d.listings.items) == 0 {
		t.Fatal("not kept")
	}
	if _, err := names(t, d, ""); err != nil {
		t.Fatal(err)
	}
	if lists, _ := b.requests(); lists != 0 {
		t.Fatal("listed for ever")
	}
}

func TestWalkListsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		for i := range 40 {
			fill(b, fmt.Sprintf("%02d/", i), 3)
			fill(b, fmt.Sprintf("%02d/sub/", i), 3)
		}
		b.delay = time.Second
		d := open(t, b, "", Options{Immutable: true})
		begin, n := time.Now(), 0
		for _, err := range d.Walk(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		took := time.Since(begin)
		if lists, _ := b.requests(); n != 240 || lists != 81 || took > 60*time.Second {
			t.Errorf("%d files with %d LIST in %v; one after the other they take 81 s", n, lists, took)
		}
	})
}

func TestReadDirsShareOneRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		for i := range 5000 {
			b.put(fmt.Sprintf("%06d", i), 1, "v")
		}
		b.delay = time.Second
		d := open(t, b, "", Options{})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 200 * time.Millisecond)
				if got, err := names(t, d, ""); err != nil || len(got) != 5000 {
					t.Errorf("%d entries, %v", len(got), err)
				}
			})
		}
		wg.Wait()
		if lists, _ := b.requests(); lists != 5 {
			t.Errorf("%d requests for 20 readers of five pages", lists)
		}
	})
}

// The first caller's leaving does not end the listing for the others, and the
// last one's does.
func TestRunEndsWithItsLastFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		for i := range 100 {
			b.put(fmt.Sprintf("%06d", i), 1, "v")
		}
		b.page, b.delay = 1, time.Second
		d := open(t, b, "", Options{})
		read := func(timeout time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			for _, err := range d.ReadDir(ctx, "") {
				if err != nil {
					return err
				}
			}
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := read(10500 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("first: %v", err)
			}
		})
		wg.Go(func() {
			if err := read(20500 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("second: %v", err)
			}
		})
		wg.Wait()
		time.Sleep(time.Minute)
		if lists, _ := b.requests(); lists != 21 {
			t.Errorf("%d pages asked for in the 20.5 s that somebody waited", lists)
		}
		if err := read(time.Hour); err != nil {
			t.Error("a new run after one that was given up:", err)
		}
	})
}

// fault 27
func TestOriginThatListsForEver(t *testing.T) {
	page := func(next string, keys ...string) origin.Page {
		p := origin.Page{Next: next}
		for _, k := range keys {
			p.Objects = append(p.Objects, origin.Info{Key: k, Version: "v", Size: 1})
		}
		return p
	}
	for name, answer := range map[string]func(n int) origin.Page{
		"page repeats":      func(n int) origin.Page { return page(fmt.Sprint(n), "a", "b") },
		"token repeats":     func(n int) origin.Page { return page("t", fmt.Sprintf("k%09d", n)) },
		"goes back":         func(n int) origin.Page { return page(fmt.Sprint(n), fmt.Sprintf("k%09d", 1e8-n)) },
		"endless empty":     func(n int) origin.Page { return page(fmt.Sprint(n)) },
		"roll-up repeats":   func(n int) origin.Page { return origin.Page{Prefixes: []string{"a/"}, Next: fmt.Sprint(n)} },
		"outside of prefix": func(int) origin.Page { return origin.Page{Prefixes: []string{"../"}, Next: "x"} },
		"empty roll-up":     func(int) origin.Page { return origin.Page{Prefixes: []string{""}, Next: "x"} },
		"grows for ever":    func(n int) origin.Page { return page(fmt.Sprint(n), fmt.Sprintf("k%09d", n)) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBucket()
			n := 0
			b.inspect = func(origin.ListRequest) (origin.Page, error, bool) {
				n++
				return answer(n), nil, true
			}
			d := open(t, b, "", Options{MaxEntries: 5000})
			_, err := names(t, d, "")
			if !errors.Is(err, covey.ErrUnavailable) && !errors.Is(err, covey.ErrFull) {
				t.Fatalf("got %v", err)
			}
			if _, fresh, _ := d.cached(""); fresh {
				t.Fatal("the listing was kept")
			}
		})
	}
}

func TestRepeatedRollUpIsNoLoop(t *testing.T) {
	b := newBucket()
	pages := []origin.Page{
		{Prefixes: []string{"a/"}, Next: "1"},
		{Prefixes: []string{"a/"}, Objects: []origin.Info{{Key: "b"}}, Next: "2"},
		{Next: "3"},
		{Objects: []origin.Info{{Key: "c"}}},
	}
	n := 0
	b.inspect = func(origin.ListRequest) (origin.Page, error, bool) {
		n++
		return pages[n-1], nil, true
	}
	got, err := names(t, open(t, b, "", Options{}), "")
	if err != nil || !slices.Equal(got, []string{"a/", "b", "c"}) {
		t.Fatalf("%q, %v", got, err)
	}
}

// fault 20
func TestIncompleteListingNeverLooksComplete(t *testing.T) {
	b := newBucket()
	for i := range 3000 {
		b.put(fmt.Sprintf("%06d", i), 1, "v")
	}
	b.failAt = 3
	d := open(t, b, "", Options{})
	got, err := names(t, d, "")
	if len(got) == 0 || len(got) >= 3000 || !errors.Is(err, covey.ErrUnavailable) {
		t.Fatalf("%d entries, %v; want some, then the error", len(got), err)
	}
	if _, err := d.Lookup(t.Context(), "002999"); !errors.Is(err, covey.ErrUnavailable) {
		t.Fatalf("a name that was not reached: %v", err)
	}
	b.set(func() { b.failAt = 0 })
	if got, err := names(t, d, ""); err != nil || len(got) != 3000 {
		t.Fatalf("afterwards: %d entries, %v", len(got), err)
	}
}

// A renewal that fails half-way goes on with what was known.
func TestReadDirGoesOnWithTheListingBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		for i := range 3000 {
			b.put(fmt.Sprintf("%06d", i), 1, "v")
		}
		d := open(t, b, "", Options{})
		if got, err := names(t, d, ""); err != nil || len(got) != 3000 {
			t.Fatal(len(got), err)
		}
		time.Sleep(2 * time.Minute)
		b.requests()
		b.set(func() { b.failAt = 2 })
		for range 2 { // with the failing run, then without asking
			if got, err := names(t, d, ""); err != nil || len(got) != 3000 {
				t.Fatal(len(got), err)
			}
		}
		time.Sleep(2 * time.Hour)
		if _, err := names(t, d, ""); !errors.Is(err, covey.ErrUnavailable) {
			t.Fatalf("past stale-if-error: %v", err)
		}
	})
}

func TestDirectoryLargerThanTheLimit(t *testing.T) {
	b := newBucket()
	for i := range 3000 {
		b.put(fmt.Sprintf("d/%06d", i), 1, "v")
	}
	d := open(t, b, "", Options{MaxEntries: 2000})
	if got, err := names(t, d, "d"); !errors.Is(err, covey.ErrFull) {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	b.requests()
	e, err := d.Lookup(t.Context(), "d/002999")
	if lists, stats := b.requests(); err != nil || e.Kind != File || lists != 1 || stats != 1 {
		t.Fatalf("%v, %v with %d LIST and %d STAT", e, err, lists, stats)
	}
	if _, err := d.Lookup(t.Context(), "d/003000"); !errors.Is(err, covey.ErrNotFound) {
		t.Fatal(err)
	}
	x, slot, err := d.Extent(t.Context(), "d/002999", e, 0)
	if err != nil || len(x.Blocks) != 1 || slot != 0 {
		t.Fatal(x, slot, err)
	}
}

func TestListingsAreBounded(t *testing.T) {
	b := newBucket()
	for i := range 50 {
		for j := range 100 {
			b.put(fmt.Sprintf("%02d/%03d", i, j), 1, "v")
		}
	}
	d := open(t, b, "", Options{MaxEntries: 1000})
	for i := range 50 {
		if got, err := names(t, d, fmt.Sprintf("%02d", i)); err != nil || len(got) != 100 {
			t.Fatal(len(got), err)
		}
		if d.listings.used > 1000 {
			t.Fatalf("%d entries kept", d.listings.used)
		}
	}
	b.requests()
	for _, path := range []string{"49", "48", "47", "00"} {
		if _, err := names(t, d, path); err != nil {
			t.Fatal(err)
		}
	}
	if lists, _ := b.requests(); lists != 1 {
		t.Fatalf("%d listings; the latest should be kept and the first gone", lists)
	}
}

func TestWalk(t *testing.T) {
	keys := []string{"a-1", "a.b/x", "a.c", "a/", "a/b/c", "a/b.c", "a0", "b/../c", "b/d"}
	b := newBucket(keys...)
	b.page = 2
	d := open(t, b, "", Options{})
	walk := func(path string) (out []string) {
		for f, err := range d.Walk(t.Context(), path) {
			if err != nil {
				return append(out, err.Error())
			}
			out = append(out, f.Path)
		}
		return out
	}
	want := []string{"a-1", "a.b/x", "a.c", "a/b.c", "a/b/c", "a0", "b/d"}
	if got := walk(""); !slices.Equal(got, want) || !slices.IsSorted(got) {
		t.Fatalf("got %q, want %q", got, want)
	}
	if got := walk("a"); !slices.Equal(got, []string{"a/b.c", "a/b/c"}) {
		t.Fatalf("a directory: %q", got)
	}
	if got := walk("a0"); !slices.Equal(got, []string{"a0"}) {
		t.Fatalf("a file: %q", got)
	}
	for _, err := range d.Walk(t.Context(), "nope") {
		if !errors.Is(err, covey.ErrNotFound) {
			t.Fatal(err)
		}
	}
	for f, err := range d.Walk(t.Context(), "") {
		if err != nil || f.Path != "a-1" {
			t.Fatal(f, err)
		}
		break
	}
}

func TestAfter(t *testing.T) {
	b := newBucket("d/a", "d/b/x", "d/c", "d/e")
	d := open(t, b, "", Options{})
	if _, _, ok := d.After("d/a"); ok {
		t.Error("an answer without a listing")
	}
	if _, err := names(t, d, "d"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"d/a": "d/c", "d/aa": "d/c", "d/c": "d/e", "d/e": "", "d/": "d/a"} {
		next, e, ok := d.After(path)
		if next != want || ok != (want != "") || ok && (e.Kind != File || "d/"+e.Name != want) {
			t.Errorf("after %q: %q, %+v, %v; want %q", path, next, e, ok, want)
		}
	}
}
