package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
)

// heldBlocks is how many blocks an open handle holds from one read to the next,
// so that a sequential reader gets each block once. The kernel has two windows
// of 8 MiB under way, which lie in up to 4 blocks of the default size at a time
// (5 for a moment, where a window does not begin with a block).
const heldBlocks = 4

// handle is one open file. Its object is of the version that was current at
// open, and so is every byte read through it.
//
// mu is a leaf lock and guards the fields below it. It is never held over I/O.
type handle struct {
	node    *node
	inode   *inode
	path    string
	entry   dataset.Entry
	object  covey.Object
	backing *backing // nil: the daemon serves the reads
	streams *streams // the inode's, or its own where nothing was opened
	draft   *draft   // nil: an object
	// writes says that the handle may write to the draft, for the process opener;
	// unclosed, that this one has not closed it yet. writes.mu guards unclosed.
	writes, unclosed bool
	opener           uint32

	mu     sync.Mutex
	extent *covey.Extent // the one used last
	held   []*heldBlock  // most recently fetched last
	closed bool
}

// heldBlock is a block that a handle holds or is getting. It is released when it
// is no longer held and nobody copies from it.
//
// INVARIANT: once ready is closed, exactly one of block and err is set.
type heldBlock struct {
	index   int
	ready   chan struct{}
	block   blockstore.Handle
	err     error
	users   int
	dropped bool
}

// claim returns the block's entry with one more user. Who is first to claim it
// must get the block and [handle.settle] it. The oldest entry beyond the limit
// goes.
func (h *handle) claim(index int) (b *heldBlock, first bool) {
	h.mu.Lock()
	for _, b := range h.held {
		if b.index == index {
			b.users++
			h.mu.Unlock()
			return b, false
		}
	}
	b = &heldBlock{index: index, ready: make(chan struct{}), users: 1, dropped: h.closed}
	var old *heldBlock
	if !h.closed {
		h.held = append(h.held, b)
		if len(h.held) > heldBlocks {
			old = h.held[0]
			h.held = append(h.held[:0], h.held[1:]...)
			old.dropped = true
			if old.users > 0 {
				old = nil
			}
		}
	}
	h.mu.Unlock()
	if old != nil {
		old.block.Release()
	}
	return b, true
}

// holds reports whether the handle has the block, or is getting it.
func (h *handle) holds(index int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.held, func(b *heldBlock) bool { return b.index == index })
}

// settle ends the getting of a claimed block. One that could not be got is no
// longer held.
func (h *handle) settle(b *heldBlock, block blockstore.Handle, err error) {
	h.mu.Lock()
	b.block, b.err = block, err
	h.mu.Unlock()
	if err != nil {
		h.discard(b)
	}
	close(b.ready)
}

// done gives up one use of the block.
func (h *handle) done(b *heldBlock) {
	h.mu.Lock()
	b.users--
	last := b.users == 0 && b.dropped
	h.mu.Unlock()
	if last && b.block != nil {
		b.block.Release()
	}
}

// discard stops holding the block: it could not be got, or not be read.
func (h *handle) discard(b *heldBlock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b.dropped = true
	for i, x := range h.held {
		if x == b {
			h.held = append(h.held[:i], h.held[i+1:]...)
			return
		}
	}
}

// dropBlocks releases every held block that nobody uses, and the others when
// their use ends.
func (h *handle) dropBlocks(closing bool) {
	h.mu.Lock()
	held := h.held
	h.held, h.closed = nil, h.closed || closing
	var free []*heldBlock
	for _, b := range held {
		b.dropped = true
		if b.users == 0 {
			free = append(free, b)
		}
	}
	h.mu.Unlock()
	for _, b := range free {
		b.block.Release()
	}
}

// block returns one of the handle's blocks with one more user, for
// [handle.done]. Requests that come to a block at once, as the kernel's readahead
// does, get it once.
func (t *tree) block(ctx context.Context, h *handle, index int) (*heldBlock, error) {
	for {
		b, first := h.claim(index)
		if first {
			block, err := t.fetch(ctx, h, index)
			h.settle(b, block, err)
			if err != nil {
				h.done(b)
				return nil, err
			}
			return b, nil
		}
		select {
		case <-b.ready:
		default:
			select {
			case <-b.ready:
			case <-ctx.Done():
				h.done(b)
				return nil, fmt.Errorf("wait for block %d of %s: %w", index, h.path, ctx.Err())
			}
		}
		err := b.err
		if err == nil {
			return b, nil
		}
		h.done(b)
		// Whose end it was that ended the getting: only the getter's own is
		// no answer for the others.
		if ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			continue
		}
		return nil, err
	}
}

func (t *tree) fetch(ctx context.Context, h *handle, index int) (blockstore.Handle, error) {
	e, slot, err := h.place(ctx, t.names, index)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	block, err := t.blocks.Get(ctx, e, slot)
	if err != nil {
		return nil, fmt.Errorf("fetch block %d of %s: %w", index, h.path, err)
	}
	if h.streams != nil {
		h.streams.late(index, time.Since(began))
	}
	return block, nil
}

// place returns the extent and slot of one of the object's blocks. Blocks of one
// file lie side by side in an extent, so the last extent usually answers.
func (h *handle) place(ctx context.Context, names Names, index int) (*covey.Extent, int, error) {
	h.mu.Lock()
	e := h.extent
	h.mu.Unlock()
	if slot, ok := slotOf(e, h.object, index); ok {
		return e, slot, nil
	}
	e, slot, err := names.Extent(ctx, h.path, h.entry, index)
	if err != nil {
		return nil, 0, fmt.Errorf("find block %d of %s: %w", index, h.path, err)
	}
	if slot < 0 || slot >= len(e.Blocks) {
		return nil, 0, fmt.Errorf("block %d of %s is in slot %d of %d", index, h.path, slot, len(e.Blocks))
	}
	// The listing may be younger than the handle: then the extent is of other
	// versions.
	if e.Blocks[slot].Object != h.object {
		return nil, 0, fmt.Errorf("find block %d of %s: %w", index, h.path, covey.ErrStale)
	}
	h.mu.Lock()
	h.extent = e
	h.mu.Unlock()
	return e, slot, nil
}

// slotOf finds a block of the object in the extent. An extent of a large file
// holds nothing else and in order; one of small files is short enough to scan.
func slotOf(e *covey.Extent, o covey.Object, index int) (int, bool) {
	if e == nil {
		return 0, false
	}
	is := func(i int) bool {
		return i >= 0 && i < len(e.Blocks) && e.Blocks[i].Index == index && e.Blocks[i].Object == o
	}
	if i := index - e.Blocks[0].Index; is(i) {
		return i, true
	}
	for i := range e.Blocks {
		if is(i) {
			return i, true
		}
	}
	return 0, false
}

// readAt fills p from the block, off bytes into it.
func (b *heldBlock) readAt(p []byte, off int64) error {
	n, err := b.block.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("block of %d bytes ends at %d of %d wanted: %w",
			b.block.Len(), off+int64(n), off+int64(len(p)), covey.ErrCorrupt)
	}
	return err
}
