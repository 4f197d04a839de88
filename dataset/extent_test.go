package dataset

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const testBlock = covey.MinBlockSize

// extents returns every extent of a directory's files, in order, checking that
// each block is where Extent says, once.
func extents(t testing.TB, d *Dataset, dir string) []*covey.Extent {
	t.Helper()
	var out []*covey.Extent
	seen := map[covey.BlockID]bool{}
	for e, err := range d.ReadDir(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind != File {
			continue
		}
		path := joinPath(dir, e.Name)
		o := d.Object(path, e)
		for i := range o.Blocks() {
			x, slot, err := d.Extent(t.Context(), path, e, i)
			if err != nil || x.Blocks[slot] != o.Block(i) {
				t.Fatalf("block %d of %s: slot %d of %v, %v", i, path, slot, x, err)
			}
			if id := o.Block(i).ID(); seen[id] {
				t.Fatalf("block %d of %s twice", i, path)
			} else {
				seen[id] = true
			}
			// The extents of large files lie between those of groups.
			if !slices.Contains(out[max(0, len(out)-50):], x) {
				out = append(out, x)
			}
		}
	}
	n := 0
	for _, x := range out {
		n += len(x.Blocks)
	}
	if n != len(seen) {
		t.Fatalf("%d blocks in extents, %d in files", n, len(seen))
	}
	return out
}

// shape describes extents, one a line: blocks, first and last block, ID.
func shape(xs []*covey.Extent) string {
	var s strings.Builder
	for _, x := range xs {
		last := len(x.Blocks) - 1
		fmt.Fprintf(&s, "%2d %s %s %s\n", len(x.Blocks), x.Blocks[0], x.Blocks[last], x.ID)
	}
	return s.String()
}

// The extents of this listing are part of the protocol: peers of other versions
// cut the same.
func TestExtentsGolden(t *testing.T) {
	b := newBucket("set/d/sub/x", "set/d/empty")
	b.put("set/d/empty", 0, "v1")
	for i := range 600 {
		blocks := int64(1)
		switch {
		case i%100 == 50:
			blocks = 150
		case i%100 == 51:
			blocks = 15
		case i%100 == 52:
			blocks = 16
		case i > 300:
			blocks = int64(i % 7)
		}
		b.put(fmt.Sprintf("set/d/img_%04d.jpg", i), blocks*testBlock-1+min(1, 1-blocks), fmt.Sprintf("etag-%d", i))
	}
	d := open(t, b, "set/", Options{BlockSize: testBlock})
	got := shape(extents(t, d, "d"))
	file := filepath.Join("testdata", "extents.golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Fatalf("%v; got\n%s", err, got)
	}
	if other := shape(extents(t, open(t, b, "set/d/", Options{BlockSize: testBlock}), "")); other != got {
		t.Fatalf("a data set that begins further down cuts otherwise:\n%s", other)
	}
}

// model groups as cut.go says, in another way.
func model(names []string, blocks map[string]int) (groups [][]string) {
	var group []string
	n := 0
	for _, name := range names {
		b := blocks[name]
		h := blake3.Sum256([]byte(name))
		if n+b > 64 || n >= 16 && int(h[0])%32 < b {
			groups = append(groups, group)
			group, n = nil, 0
		}
		group = append(group, name)
		n += b
	}
	return append(groups, group)
}

func TestExtentsMatchModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBucket()
		blocks := map[string]int{}
		n := rapid.IntRange(1, 300).Draw(rt, "files")
		most := rapid.IntRange(1, 15).Draw(rt, "most")
		for i := range n {
			name := fmt.Sprintf("%05d-%d", i, rapid.IntRange(0, 1000).Draw(rt, "name"))
			blocks[name] = rapid.IntRange(1, most).Draw(rt, "blocks")
			b.put(name, int64(blocks[name])*testBlock, "v")
		}
		d := New(&origin.Source{Bucket: b, URL: "mem://bucket"}, Options{BlockSize: testBlock})
		defer d.Close()
		var got [][]string
		for _, x := range extents(t, d, "") {
			var group []string
			for _, l := range x.Blocks {
				group = append(group, l.Key)
			}
			got = append(got, slices.Compact(group))
		}
		if want := model(b.keys, blocks); !slices.EqualFunc(got, want, slices.Equal) {
			rt.Fatalf("got %v, want %v", got, want)
		}
	})
}

// changed returns how many of the extents are new to after.
func changed(before, after []*covey.Extent) (n int) {
	old := map[covey.ExtentID]bool{}
	for _, x := range before {
		old[x.ID] = true
	}
	for _, x := range after {
		if !old[x.ID] {
			n++
		}
	}
	return n
}

// One file that comes or goes changes a few extents around it, in a directory
// of any length. The groups meet again with probability 0.37 at each boundary,
// so that to miss 40 in a row, or 20 extents, happens once in 10^8.
func TestOneFileChangesFewExtents(t *testing.T) {
	var total, runs, count, blocks int
	rapid.Check(t, func(rt *rapid.T) {
		b := newBucket()
		most := rapid.SampledFrom([]int{1, 1, 4, 15}).Draw(rt, "most")
		seed := rapid.Uint32().Draw(rt, "seed")
		rnd := seed
		next := func(n int) int {
			rnd = rnd*1664525 + 1013904223
			return int(rnd>>16) % n
		}
		for i := range 1000 {
			blocks := 1 + next(most)
			b.put(fmt.Sprintf("%08d-%d", i*10, seed), int64(blocks)*testBlock, "v")
		}
		list := func() (out []*covey.Extent) {
			d := New(&origin.Source{Bucket: b, URL: "mem://bucket"}, Options{BlockSize: testBlock})
			defer d.Close()
			for e, err := range d.ReadDir(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				x, slot, err := d.Extent(t.Context(), e.Name, e, 0)
				if err != nil || x.Blocks[slot].Key != e.Name {
					t.Fatal(x, slot, err)
				}
				if len(out) == 0 || out[len(out)-1].ID != x.ID {
					out = append(out, x)
				}
			}
			return out
		}
		before := list()
		at := rapid.IntRange(0, 999).Draw(rt, "at")
		if rapid.Bool().Draw(rt, "remove") {
			b.remove(b.keys[at])
		} else {
			b.put(fmt.Sprintf("%08d-%d", at*10+5, seed), int64(1+next(most))*testBlock, "v")
		}
		after := list()
		n := changed(before, after)
		if n > 20 {
			rt.Fatalf("%d of %d extents changed", n, len(after))
		}
		total += n
		runs++
		for _, x := range after {
			count++
			blocks += len(x.Blocks)
		}
	})
	t.Logf("mean: %.1f extents changed, %.1f blocks an extent", float64(total)/float64(runs), float64(blocks)/float64(count))
	if total > 6*runs || blocks < 35*count || blocks > 50*count {
		t.Errorf("%d changes in %d runs, %d blocks in %d extents", total, runs, blocks, count)
	}
}

func TestExtentOfALargeFileNeedsNoListing(t *testing.T) {
	b := newBucket()
	d := open(t, b, "", Options{BlockSize: testBlock})
	e := Entry{Name: "x", Kind: File, Size: 130*testBlock + 1, Version: "v"}
	for _, tc := range []struct{ index, slot, blocks int }{{0, 0, 64}, {63, 63, 64}, {64, 0, 64}, {128, 0, 3}, {130, 2, 3}} {
		x, slot, err := d.Extent(t.Context(), "x", e, tc.index)
		if err != nil || slot != tc.slot || len(x.Blocks) != tc.blocks || x.Blocks[slot].Index != tc.index {
			t.Errorf("block %d: slot %d of %d, %v", tc.index, slot, len(x.Blocks), err)
		}
		again, _, _ := d.Extent(t.Context(), "x", e, tc.index)
		if again != x {
			t.Errorf("block %d: the extent was made up twice", tc.index)
		}
	}
	if l, s := b.requests(); l+s > 0 {
		t.Errorf("%d LIST, %d STAT", l, s)
	}
}

func TestExtentOfWhatHasNone(t *testing.T) {
	d := open(t, newBucket("x"), "", Options{})
	for _, tc := range []struct {
		e     Entry
		index int
	}{
		{Entry{Name: "x", Kind: File}, 0},
		{Entry{Name: "x", Kind: File, Size: 1}, 1},
		{Entry{Name: "x", Kind: File, Size: 1}, -1},
		{Entry{Name: "x", Kind: Symlink, Size: 1, Link: "y"}, 0},
		{Entry{Name: "x", Kind: Dir}, 0},
		{Entry{Name: "x", Kind: File, Size: 1 << 60}, 0},
	} {
		if x, _, err := d.Extent(t.Context(), "x", tc.e, tc.index); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%v, block %d: %v, %v", tc.e, tc.index, x, err)
		}
	}
}

// What the listing does not know in this version is an extent of its own.
func TestExtentOfAnotherVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		fill(b, "d/", smallDir+1)
		d := open(t, b, "", Options{})
		old, err := d.Lookup(t.Context(), "d/000500")
		if err != nil {
			t.Fatal(err)
		}
		x, slot, err := d.Extent(t.Context(), "d/000500", old, 0)
		if err != nil || len(x.Blocks) < minGroup || x.Blocks[slot].Version != "v1" {
			t.Fatal(x, slot, err)
		}
		b.put("d/000500", 100, "v2")
		b.put("d/000500x", 100, "v1")
		d.Invalidate("d/000500")
		for _, path := range []string{"d/000500", "d/000500x"} {
			time.Sleep(DefaultMaxAge)
			e, err := d.Lookup(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			x, slot, err = d.Extent(t.Context(), path, e, 0)
			if err != nil || len(x.Blocks) != 1 || slot != 0 || x.Blocks[0].Version != e.Version {
				t.Fatal(x, slot, err)
			}
		}
		if _, err := names(t, d, "d"); err != nil { // renewed
			t.Fatal(err)
		}
		e, err := d.Lookup(t.Context(), "d/000500x")
		if err != nil {
			t.Fatal(err)
		}
		if x, _, err = d.Extent(t.Context(), "d/000500x", e, 0); err != nil || len(x.Blocks) < minGroup {
			t.Fatal(x, err)
		}
	})
}

// The extents up to where a listing has got are those of the complete one.
func TestExtentDuringTheListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		fill(b, "d/", 20_000)
		b.delay = time.Second
		d := open(t, b, "", Options{})
		e := Entry{Name: "001500", Kind: File, Size: 100, Version: "v1"}
		begin := time.Now()
		x, slot, err := d.Extent(t.Context(), "d/001500", e, 0)
		if took := time.Since(begin); err != nil || took > 3*time.Second {
			t.Fatal(err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e.Name = "019999"
		if _, _, err := d.Extent(ctx, "d/019999", e, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, _, err := d.Extent(t.Context(), "d/019999", e, 0); err != nil {
			t.Fatal(err)
		}
		e.Name = "001500"
		y, again, err := d.Extent(t.Context(), "d/001500", e, 0)
		if err != nil || x.ID != y.ID || slot != again {
			t.Fatal(y, again, err)
		}
	})
}

// fault 28
func TestExtentWithoutListing(t *testing.T) {
	b := newBucket("x", "y")
	b.fail = covey.ErrUnavailable
	d := open(t, b, "", Options{})
	x, slot, err := d.Extent(t.Context(), "x", Entry{Name: "x", Kind: File, Size: 100, Version: "v1"}, 0)
	if err != nil || slot != 0 || len(x.Blocks) != 1 {
		t.Fatal(x, slot, err) // what is cached here can still be read
	}
}

func TestOnlyTheFirstEntriesAreGrouped(t *testing.T) {
	b := newBucket()
	b.page = 5000
	keys := make([]string, groupedFirst+100)
	for i := range keys {
		keys[i] = fmt.Sprintf("%07d", i)
		b.infos[keys[i]] = origin.Info{Key: keys[i], Size: 1, Version: "v"}
	}
	b.keys = keys
	d := open(t, b, "", Options{})
	last := keys[groupedFirst-1]
	for _, tc := range []struct {
		name string
		solo bool
	}{{keys[len(keys)-1], true}, {keys[groupedFirst], true}, {last, false}, {keys[0], false}} {
		x, slot, err := d.Extent(t.Context(), tc.name, Entry{Name: tc.name, Kind: File, Size: 1, Version: "v"}, 0)
		if err != nil || x.Blocks[slot].Key != tc.name || x.Blocks[len(x.Blocks)-1].Key > last && !tc.solo {
			t.Fatal(x, slot, err)
		}
		if solo := len(x.Blocks) == 1; solo && !tc.solo && tc.name != last || !solo && tc.solo {
			t.Errorf("%s in an extent of %d", tc.name, len(x.Blocks))
		}
	}
}
