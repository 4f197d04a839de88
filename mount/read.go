package mount

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/covey-cache/covey"
)

// Read answers from held blocks, straight into the reply buffer. It also serves
// passthrough handles, for which the kernel sends fadvise(WILLNEED) as a read.
//
// A reply that is short before the end of the file would be padded with zeros by
// the kernel, so a read is whole or an error.
func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, ok := t.handles.get(in.Fh)
	if !ok {
		return nil, fuse.EBADF
	}
	t.reads.Add(1)
	off := int64(in.Offset)
	if off < 0 || off >= h.object.Size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(int64(len(buf)), int64(in.Size), h.object.Size-off)]
	if len(buf) == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	if h.backing != nil {
		if n, err := h.backing.file.ReadAt(buf, off); n < len(buf) && !errors.Is(err, io.EOF) {
			return nil, fuse.EIO
		}
		return fuse.ReadResultData(buf), fuse.OK
	}
	r := reader{tree: t, handle: h, cancel: cancel, header: &in.InHeader}
	defer r.end()
	r.ahead(off, len(buf))
	if err := r.read(buf, off); err != nil {
		return nil, t.failed(r.context(), h.path, err)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// reader is one READ request on a handle that the daemon serves. It has a
// context only once it has to wait for something: a read of held blocks is a
// copy and nothing else.
type reader struct {
	*tree
	*handle
	cancel <-chan struct{}
	header *fuse.InHeader
	ctx    context.Context
	stop   func()
}

func (r *reader) context() context.Context {
	if r.ctx == nil {
		r.ctx, r.stop = r.begin(r.cancel, r.header)
	}
	return r.ctx
}

func (r *reader) end() {
	if r.stop != nil {
		r.stop()
	}
}

// read fills p from off on, block by block.
func (r *reader) read(p []byte, off int64) error {
	size := r.object.BlockSize
	for len(p) > 0 {
		index := int(off / size)
		within := off - int64(index)*size
		n := min(int64(len(p)), size-within)
		if err := r.readBlock(p[:n], index, within); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readBlock fills p from one block. Held bytes that cannot be read (a disk
// fault) are fetched anew, once.
func (r *reader) readBlock(p []byte, index int, within int64) error {
	var last error
	for range 2 {
		b, err := r.block(r.handle, index, r.context)
		if err != nil {
			return err
		}
		last = b.readAt(p, within)
		if last != nil {
			r.discard(b)
		}
		r.done(b)
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("read block %d of %s: %w", index, r.path, last)
}

// ahead asks for what a sequential reader will want next. Failing to say where
// those blocks are only costs the read that will want them.
func (r *reader) ahead(off int64, n int) {
	r.mu.Lock()
	from, to := r.stream.note(off, n, r.object.BlockSize, r.object.Blocks())
	r.mu.Unlock()
	for from < to {
		e, slot, err := r.place(r.context(), r.names, from)
		if err != nil {
			return
		}
		first := from - slot
		slots := e.All() &^ covey.FirstBits(slot) & covey.FirstBits(min(to-first, len(e.Blocks)))
		r.blocks.Prefetch(e, slots)
		from += max(slots.Len(), 1)
	}
}
