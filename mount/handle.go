package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
)

// heldBlocks is how many blocks an open handle holds from one read to the next,
// so that a sequential reader gets each block once: the one it reads, and the
// next one, into which the kernel's readahead reaches.
const heldBlocks = 2

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

	mu     sync.Mutex
	extent *covey.Extent // the one used last
	held   []*heldBlock  // most recently fetched last
	stream stream
	closed bool
}

// heldBlock is a block that a handle holds, released when it is no longer held
// and nobody copies from it.
type heldBlock struct {
	index   int
	block   blockstore.Handle
	users   int
	dropped bool
}

// acquire returns the block if it is held, with one more user.
func (h *handle) acquire(index int) *heldBlock {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acquireLocked(index)
}

func (h *handle) acquireLocked(index int) *heldBlock {
	for _, b := range h.held {
		if b.index == index {
			b.users++
			return b
		}
	}
	return nil
}

// hold keeps the block and returns it with one user; a block that another read
// brought first is used instead. The oldest block beyond the limit goes.
func (h *handle) hold(index int, block blockstore.Handle) *heldBlock {
	h.mu.Lock()
	if b := h.acquireLocked(index); b != nil {
		h.mu.Unlock()
		block.Release()
		return b
	}
	b := &heldBlock{index: index, block: block, users: 1}
	if h.closed {
		b.dropped = true
		h.mu.Unlock()
		return b
	}
	h.held = append(h.held, b)
	var old *heldBlock
	if len(h.held) > heldBlocks {
		old = h.held[0]
		h.held = append(h.held[:0], h.held[1:]...)
		old.dropped = true
		if old.users > 0 {
			old = nil
		}
	}
	h.mu.Unlock()
	if old != nil {
		old.block.Release()
	}
	return b
}

// done gives up one use of the block.
func (h *handle) done(b *heldBlock) {
	h.mu.Lock()
	b.users--
	last := b.users == 0 && b.dropped
	h.mu.Unlock()
	if last {
		b.block.Release()
	}
}

// discard stops holding the block; its bytes could not be read.
func (h *handle) discard(b *heldBlock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, x := range h.held {
		if x == b {
			h.held = append(h.held[:i], h.held[i+1:]...)
			b.dropped = true
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
