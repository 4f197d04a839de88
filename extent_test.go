package covey_test

import (
	"slices"
	"testing"

	"github.com/covey-cache/covey"
)

func TestBlocksCoverTheObject(t *testing.T) {
	const bs = covey.DefaultBlockSize
	for _, size := range []int64{0, 1, bs - 1, bs, bs + 1, 3*bs + 7} {
		o := covey.Object{Origin: "s3://b", Key: "k", Size: size, BlockSize: bs}
		var end int64
		for i := range o.Blocks() {
			r := o.Block(i).Range()
			if r.Off != end || r.Len <= 0 {
				t.Fatalf("size %d block %d: range %+v after %d", size, i, r, end)
			}
			end = r.End()
		}
		if end != size {
			t.Errorf("size %d: blocks end at %d", size, end)
		}
	}
}

func TestExtentIDFollowsItsBlocks(t *testing.T) {
	o := covey.Object{Origin: "s3://b", Key: "k", Version: "1", Size: 3 * covey.DefaultBlockSize, BlockSize: covey.DefaultBlockSize}
	blocks := []covey.Locator{o.Block(0), o.Block(1), o.Block(2)}
	a, b := covey.NewExtent(blocks), covey.NewExtent(slices.Clone(blocks))
	if a.ID != b.ID {
		t.Error("equal blocks, different extents")
	}
	if c := covey.NewExtent(blocks[:2]); c.ID == a.ID {
		t.Error("different blocks, equal extents")
	}
	// A value from another implementation's point of view: it must never change.
	const want = "bafkr4iawcvyxcl5ikbfa5cz637mdpvliz3zxqzte7zw3yazt2tn34ote6i"
	if got := a.ID.String(); got != want {
		t.Errorf("extent ID %s, want %s", got, want)
	}
	if a.All() != 0b111 {
		t.Errorf("All() = %b", a.All())
	}
}

func TestBitmap(t *testing.T) {
	var b covey.Bitmap
	for _, i := range []int{0, 5, 63} {
		b = b.With(i)
	}
	if got := slices.Collect(b.Slots()); !slices.Equal(got, []int{0, 5, 63}) {
		t.Errorf("slots %v", got)
	}
	if !b.Has(63) || b.Has(62) || b.Len() != 3 || b.Without(5).Has(5) {
		t.Errorf("bitmap %b", b)
	}
	if covey.FirstBits(64) != ^covey.Bitmap(0) || covey.FirstBits(0) != 0 || covey.FirstBits(3) != 7 {
		t.Error("FirstBits")
	}
}
