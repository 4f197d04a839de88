package blockstore

import (
	"testing"

	"github.com/covey-cache/covey"
)

// Admit finds the digest that Put would have been told, whether or not another
// processor computes it, and the block is read back under it.
func TestAdmitComputesTheDigest(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Budget: 1 << 30}
	s := mustOpen(t, opts)
	small, large := object("small", 1000), object("large", 3*sumAside)
	large.BlockSize = 2 * sumAside
	for range 2 { // the second time it is there
		for _, o := range []covey.Object{small, large} {
			for i := range o.Blocks() {
				if err := s.Admit(o.Block(i), placeOf(o.Block(i)), content(o.Block(i))); err != nil {
					t.Fatal(err)
				}
				wantBlock(t, s, o.Block(i))
			}
		}
	}
	mustClose(t, s)
	s = mustOpen(t, opts)
	for i := range large.Blocks() {
		wantBlock(t, s, large.Block(i))
	}
	if v, err := s.Verify(t.Context(), nil, nil); err != nil || v.Blocks != 3 || v.Bad != 0 {
		t.Errorf("verify: %+v, %v", v, err)
	}
}
