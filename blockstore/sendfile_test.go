package blockstore

import (
	"bytes"
	"os"
	"testing"
)

// The file of a raw block has its bytes where it says; a coded block, and one that
// is in no file of the operating system's, has none to offer.
func TestFileOfBlock(t *testing.T) {
	o := object("text/a", 3*testBlock+77)
	all := codings(t)
	all["raw"] = Options{}
	for name, opts := range all {
		t.Run(name, func(t *testing.T) {
			opts.Dir, opts.Budget = t.TempDir(), 1<<30
			s := mustOpen(t, opts)
			putAll(t, s, o)
			for i := range o.Blocks() {
				h, err := s.Get(o.Block(i))
				if err != nil {
					t.Fatal(err)
				}
				f, off, ok := h.(interface {
					File() (*os.File, int64, bool)
				}).File()
				// What does not shrink, as the short end, is kept as it is.
				if ok != (name == "raw") && i == 0 {
					t.Errorf("block %d: a file: %v", i, ok)
				}
				if ok {
					got := make([]byte, h.Len())
					if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, content(o.Block(i))) {
						t.Errorf("block %d: other bytes in its file (%v)", i, err)
					}
				}
				h.Release()
			}
		})
	}
}
