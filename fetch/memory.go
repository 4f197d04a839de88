package fetch

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// staging is the memory of blocks under way. It is bounded in bytes, and a
// buffer counts until the last handle on it is released, so that a store
// without room and slow readers cannot make the agent grow.
//
// Prefetch may fill half of it and never waits here; demand may fill all of it
// and waits in turn.
type staging struct {
	limit int64
	// holds counts the handles that are not yet released.
	holds atomic.Int64
	// onSpare, if set, is called without the lock when prefetch may have room.
	onSpare func()

	pools [maxClass + 1]sync.Pool // of *buffer, by class

	// mu is a leaf lock; it guards used and waiting.
	//
	// INVARIANT: used is the sum of the charges of the buffers handed out.
	// INVARIANT: while a claim waits, nobody else is let in before it.
	mu      sync.Mutex
	used    int64
	waiting list.List // of *claim, oldest in front
}

// claim is a demand for memory that waits.
type claim struct {
	charge  int64
	granted chan struct{}
}

// Buffers come in powers of two, so that a short last block can use what a full
// one left: from 4 KiB to the largest block.
const (
	minClass = 12
	maxClass = 26
)

// minCharge is what a buffer counts at least. It bounds the flights as well:
// with 256 MiB there are at most 1,024, however small their blocks are.
const minCharge = 256 << 10

// buffer is memory for one block. free gives it back, exactly once.
type buffer struct {
	s     *staging
	mem   []byte // the whole class
	data  []byte // the block's part of it
	class int
}

func classOf(n int) int { return max(bits.Len(uint(n-1)), minClass) }

func chargeOf(n int) int64 { return max(int64(1)<<classOf(n), minCharge) }

// take returns a buffer of n bytes, after waiting for room until ctx ends.
func (s *staging) take(ctx context.Context, n int) (*buffer, error) {
	c := &claim{charge: chargeOf(n), granted: make(chan struct{})}
	s.mu.Lock()
	if s.waiting.Len() == 0 && s.fits(c.charge, s.limit) {
		s.used += c.charge
		s.mu.Unlock()
		return s.buffer(n), nil
	}
	el := s.waiting.PushBack(c)
	s.mu.Unlock()

	select {
	case <-c.granted:
		return s.buffer(n), nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-c.granted: // both happened: give it on
		s.used -= c.charge
	default:
		s.waiting.Remove(el)
	}
	s.admit() // a smaller claim may have waited behind this one
	s.mu.Unlock()
	return nil, fmt.Errorf("no staging memory for %d bytes: %w", n, covey.ErrUnavailable)
}

// trySpare returns a buffer for prefetch, or nil when there is no room now.
func (s *staging) trySpare(n int) *buffer {
	charge := chargeOf(n)
	s.mu.Lock()
	ok := s.waiting.Len() == 0 && s.fits(charge, s.limit/2)
	if ok {
		s.used += charge
	}
	s.mu.Unlock()
	if !ok {
		return nil
	}
	return s.buffer(n)
}

// fits says whether a charge may be added; s.mu is held.
func (s *staging) fits(charge, limit int64) bool {
	return s.used == 0 || s.used+charge <= limit
}

// admit lets in the claims that have room now; s.mu is held.
func (s *staging) admit() {
	for el := s.waiting.Front(); el != nil; el = s.waiting.Front() {
		c := el.Value.(*claim)
		if !s.fits(c.charge, s.limit) {
			return
		}
		s.used += c.charge
		s.waiting.Remove(el)
		close(c.granted)
	}
}

func (s *staging) buffer(n int) *buffer {
	class := classOf(n)
	b, ok := s.pools[class].Get().(*buffer)
	if !ok {
		b = &buffer{s: s, mem: make([]byte, 1<<class), class: class}
	}
	b.data = b.mem[:n]
	return b
}

func (b *buffer) free() {
	s, charge := b.s, chargeOf(len(b.data))
	b.data = nil
	s.pools[b.class].Put(b)
	s.mu.Lock()
	s.used -= charge
	s.admit()
	spare := s.used < s.limit/2
	s.mu.Unlock()
	if spare && s.onSpare != nil {
		s.onSpare()
	}
}

func (s *staging) inUse() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// memory is a block in a buffer. Release frees the buffer.
type memory struct {
	buf    *buffer
	digest covey.Digest
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read block at %d: %w", off, covey.ErrInvalid)
	}
	if off >= int64(len(m.buf.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.buf.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) Len() int             { return len(m.buf.data) }
func (m *memory) Digest() covey.Digest { return m.digest }
func (m *memory) Release()             { m.buf.free() }

// block is what a flight found, shared by everyone who waited for it: a memory
// block or a handle of the store. The last hold releases what is behind it.
type block struct {
	bytes blockstore.Handle
	refs  atomic.Int64
	holds *atomic.Int64 // staging.holds
	// source is set before anybody else sees the block; Local for one of the store.
	source Source
}

// newBlock returns a block with one reference, the flight's.
func newBlock(h blockstore.Handle, holds *atomic.Int64) *block {
	b := &block{bytes: h, holds: holds}
	b.refs.Store(1)
	return b
}

func (b *block) unref() {
	if b.refs.Add(-1) == 0 {
		b.bytes.Release()
	}
}

// hold returns a handle for one caller. The flight's reference must still be
// there.
func (b *block) hold() *hold {
	b.refs.Add(1)
	b.holds.Add(1)
	return &hold{block: b}
}

// hold is one caller's handle. After Release it reads nothing: the buffer may
// hold another block by then.
type hold struct {
	block    *block
	released atomic.Bool
}

func (h *hold) ReadAt(p []byte, off int64) (int, error) {
	if h.released.Load() {
		return 0, os.ErrClosed
	}
	return h.block.bytes.ReadAt(p, off)
}

func (h *hold) Len() int             { return h.block.bytes.Len() }
func (h *hold) Digest() covey.Digest { return h.block.bytes.Digest() }

// Release gives up the hold. A second call does nothing.
func (h *hold) Release() {
	if h.released.Swap(true) {
		return
	}
	h.block.holds.Add(-1)
	h.block.unref()
}
