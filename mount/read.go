package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/covey-cache/covey"
)

// Read answers from held blocks, straight into the reply buffer. It also serves
// passthrough handles, for which the kernel sends fadvise(WILLNEED) as a read.
//
// A reply that is short before the end of the file would be padded with zeros by
// the kernel, so a read is whole or an error.
func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	t.reads.Add(1)
	h, ok := t.handles.get(in.Fh)
	switch {
	case ok:
		return t.serve(cancel, in, h, buf)
	case t.profile.small.Load():
		return t.readUnopened(cancel, in, buf)
	}
	return nil, fuse.EBADF
}

// serve answers a read through the handle.
func (t *tree) serve(cancel <-chan struct{}, in *fuse.ReadIn, h *handle, buf []byte) (fuse.ReadResult, fuse.Status) {
	off := int64(in.Offset)
	if h.draft != nil {
		return h.draft.read(buf[:min(len(buf), int(in.Size))], off)
	}
	if off < 0 || off >= h.object.Size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(int64(len(buf)), int64(in.Size), h.object.Size-off)]
	if len(buf) == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	if h.backing != nil && h.backing.file != nil {
		if n, err := h.backing.file.ReadAt(buf, off); n < len(buf) && !errors.Is(err, io.EOF) {
			return nil, fuse.EIO
		}
		return t.reply(buf), fuse.OK
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	random := t.ahead(ctx, h, off, len(buf))
	if random && len(buf) <= maxExact {
		if done, err := t.readExact(ctx, h, buf, off); err != nil {
			return nil, t.failed(ctx, h.path, err)
		} else if done {
			return t.reply(buf), fuse.OK
		}
	}
	if err := t.fill(ctx, h, buf, off); err != nil {
		return nil, t.failed(ctx, h.path, err)
	}
	return t.reply(buf), fuse.OK
}

// result is the answer of a read, used again when it has gone out.
type result struct {
	data []byte
}

var results = sync.Pool{New: func() any { return new(result) }}

// reply returns the answer with the given bytes, which lie in the request's own
// buffer.
func (t *tree) reply(p []byte) fuse.ReadResult {
	r := results.Get().(*result)
	r.data = p
	return r
}

// Bytes implements fuse.ReadResult.
func (r *result) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }

// Size implements fuse.ReadResult.
func (r *result) Size() int { return len(r.data) }

// Done implements fuse.ReadResult.
func (r *result) Done() {
	r.data = nil
	results.Put(r)
}

// maxExact is the largest random read that may be read exactly: a sixteenth of a
// block. With more, the rest of the block is worth its transfer.
const maxExact = 256 << 10

// readExact reads a small random range without its block, where the cache has no
// room for that. false says that the block is the way.
func (t *tree) readExact(ctx context.Context, h *handle, p []byte, off int64) (done bool, err error) {
	index := int(off / h.object.BlockSize)
	within := off - int64(index)*h.object.BlockSize
	if within+int64(len(p)) > h.object.BlockSize || h.holds(index) {
		return false, nil
	}
	e, slot, err := h.place(ctx, t.names, index)
	if err != nil {
		return false, err
	}
	return t.blocks.ReadRange(ctx, e, slot, within, p)
}

// fill fills p from off on, block by block.
func (t *tree) fill(ctx context.Context, h *handle, p []byte, off int64) error {
	size := h.object.BlockSize
	for len(p) > 0 {
		index := int(off / size)
		within := off - int64(index)*size
		n := min(int64(len(p)), size-within)
		if err := t.readBlock(ctx, h, p[:n], index, within); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readBlock fills p from one block. Held bytes that cannot be read (a disk
// fault) are fetched anew, once.
func (t *tree) readBlock(ctx context.Context, h *handle, p []byte, index int, within int64) error {
	var last error
	for range 2 {
		b, err := t.block(ctx, h, index)
		if err != nil {
			return err
		}
		last = b.readAt(p, within)
		if last != nil {
			h.discard(b)
		}
		h.done(b)
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("read block %d of %s: %w", index, h.path, last)
}

// ahead asks for what a reader in some order will want next, and takes back what
// one who left had asked for. random says that the read is in no order.
func (t *tree) ahead(ctx context.Context, h *handle, off int64, n int) (random bool) {
	if h.streams == nil {
		return false
	}
	w := h.streams.note(off, n, h.object.BlockSize, h.object.Blocks())
	if w.from < w.to {
		t.forgoBlocks(ctx, h, w.from, w.to)
	}
	for i := 0; i < w.n; {
		// Neighbours go together, in whichever direction they come.
		lo, hi := w.blocks[i], w.blocks[i]+1
		for i++; i < w.n && (w.blocks[i] == hi || w.blocks[i] == lo-1); i++ {
			lo, hi = min(lo, w.blocks[i]), max(hi, w.blocks[i]+1)
		}
		t.prefetchBlocks(ctx, h, lo, hi)
	}
	if w.n > 0 && w.blocks[w.n-1] == h.object.Blocks()-1 {
		t.nextShard(ctx, h)
	}
	if w.n > 0 && t.metrics != nil {
		t.metrics.aheadAsked.Add(float64(w.n) * float64(h.object.BlockSize))
	}
	return w.random
}

// forgoBlocks takes back what was asked for of the file's blocks [from, to).
func (t *tree) forgoBlocks(ctx context.Context, h *handle, from, to int) {
	wasted := 0
	t.eachExtent(ctx, h, from, to, func(e *covey.Extent, slots covey.Bitmap) {
		wasted += slots.Len() - t.blocks.Forgo(e, slots)
	})
	if t.metrics != nil {
		t.metrics.aheadUnread.Add(float64(wasted) * float64(h.object.BlockSize))
	}
}

// prefetchBlocks asks for the file's blocks [from, to).
func (t *tree) prefetchBlocks(ctx context.Context, h *handle, from, to int) {
	t.eachExtent(ctx, h, from, to, func(e *covey.Extent, slots covey.Bitmap) { t.blocks.Prefetch(e, slots) })
}

// eachExtent calls f with the extents of the file's blocks [from, to). Failing to
// say where those blocks are only costs the read that will want them.
func (t *tree) eachExtent(ctx context.Context, h *handle, from, to int, f func(e *covey.Extent, slots covey.Bitmap)) {
	for from < to {
		e, slot, err := h.place(ctx, t.names, from)
		if err != nil {
			return
		}
		first := from - slot
		slots := e.All() &^ covey.FirstBits(slot) & covey.FirstBits(min(to-first, len(e.Blocks)))
		f(e, slots)
		from += max(slots.Len(), 1)
	}
}
