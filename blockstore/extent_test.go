package blockstore

import (
	"slices"
	"testing"

	"github.com/covey-cache/covey"
)

// Extent says of each extent what All says of it: while blocks are on their way
// to the index, once they are in it, after some are gone, and after a restart.
func TestExtentIsWhatAllYields(t *testing.T) {
	opts := Options{Dir: "tier", Budget: 64 << 20, FS: MemFS()}
	s := mustOpen(t, opts)
	large, small := object("large", 70*testBlock+1), object("small", 1)
	check := func(when string, extents int) {
		t.Helper()
		n := 0
		for want := range s.All() {
			n++
			got, ok := s.Extent(want.Extent)
			if !ok || got.Extent != want.Extent || got.Have != want.Have || !slices.Equal(got.Digests, want.Digests) {
				t.Errorf("%s: extent %s is %x with %d digests (%v), All yields %x with %d",
					when, want.Extent, got.Have, len(got.Digests), ok, want.Have, len(want.Digests))
			}
		}
		if n != extents {
			t.Errorf("%s: %d extents, want %d", when, n, extents)
		}
		if h, ok := s.Extent(extentOf(object("absent", 1), 0).ID); ok || h.Have != 0 {
			t.Errorf("%s: holds %+v of an extent that was never put", when, h)
		}
	}
	check("empty", 0)
	for i := large.Blocks() - 1; i >= 0; i -= 3 {
		put(t, s, large.Block(i))
	}
	check("just put", 2)
	mustClose(t, s)
	s = mustOpen(t, opts)
	check("in the index", 2)

	// Some in the index, some not yet; the first and the last slot among them.
	put(t, s, large.Block(0))
	put(t, s, large.Block(63))
	putAll(t, s, small)
	check("both", 3)
	h, _ := s.Extent(extentOf(large, 0).ID)
	if !h.Have.Has(0) || !h.Have.Has(63) || h.Have.Len() != len(h.Digests) {
		t.Errorf("holds %x with %d digests", h.Have, len(h.Digests))
	}
	for i, slot := range slices.Collect(h.Have.Slots()) {
		if h.Digests[i] != covey.Sum(content(large.Block(slot))) {
			t.Errorf("slot %d has another's digest", slot)
		}
	}

	for _, l := range []covey.Locator{large.Block(0), small.Block(0)} {
		if err := s.Drop(l); err != nil {
			t.Fatal(err)
		}
	}
	check("after a drop", 2)
	if _, ok := s.Extent(placeOf(small.Block(0)).Extent); ok {
		t.Error("still holds the extent whose only block was dropped")
	}
	mustClose(t, s)
	s = mustOpen(t, opts)
	check("after a restart", 2)
	mustClose(t, s)
	if _, ok := s.Extent(extentOf(large, 0).ID); ok {
		t.Error("a closed store holds something")
	}
}
