package mount

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// PutFunc gives the cache one block, as blockstore.Store.Put does.
type PutFunc func(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error

// AdmitFile gives the cache every block of an object whose bytes are in the file:
// one that was just uploaded from it. It stops at the first block that the cache
// does not take, and holds one block in memory.
func AdmitFile(ctx context.Context, names Names, path string, e dataset.Entry, f *os.File, put PutFunc) error {
	o := names.Object(path, e)
	buf := make([]byte, min(o.BlockSize, o.Size))
	for i := range o.Blocks() {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := o.BlockRange(i)
		data := buf[:r.Len]
		if _, err := io.ReadFull(io.NewSectionReader(f, r.Off, r.Len), data); err != nil {
			return fmt.Errorf("read block %d of a staged file: %w", i, err)
		}
		x, slot, err := names.Extent(ctx, path, e, i)
		if err != nil {
			return err
		}
		if slot < 0 || slot >= len(x.Blocks) || x.Blocks[slot] != o.Block(i) {
			return fmt.Errorf("extent of block %d of %s: %w", i, path, covey.ErrStale)
		}
		if err := put(o.Block(i), covey.Place{Extent: x.ID, Slot: uint8(slot)}, covey.Sum(data), data); err != nil {
			return err
		}
	}
	return nil
}
