package mount

import (
	"sync"

	"github.com/covey-cache/covey"
)

// The window of blocks asked for ahead of a sequential reader: it starts with
// what hides one round trip, and doubles with each block read up to 32 MiB of
// default blocks, which is 100 ms of a 2.5 Gb/s origin.
const (
	minAhead = 2
	maxAhead = 8
)

// reorder is how far before or behind the expected offset a read may lie and
// still be part of the stream: the kernel sends up to 8 MiB of readahead as
// requests of 1 MiB, which arrive in any order.
const reorder = 8 << 20

// stream recognises a sequential reader of one handle. The handle's lock guards
// it.
type stream struct {
	end    int64 // highest end of a read of the stream
	seen   bool
	hits   int // reads in a row that continued the stream
	window int
	block  int // highest block that was read
	asked  int // blocks below this one have been asked for
}

// note takes one read into account and returns the blocks [from, to) to ask for
// now. A read elsewhere ends the stream, so random reads ask for nothing.
func (s *stream) note(off int64, n int, blockSize int64, blocks int) (from, to int) {
	end := off + int64(n)
	last := int((end - 1) / blockSize)
	if !s.seen || !s.continues(off, end) {
		*s = stream{end: end, seen: true, block: last, asked: last + 1}
		return 0, 0
	}
	s.end = max(s.end, end)
	s.hits++
	if last > s.block {
		s.block = last
		s.window = min(2*s.window, maxAhead)
	}
	// The first continuation may be chance: the header of a file, then its
	// index. The second is a stream.
	if s.hits < 2 {
		return 0, 0
	}
	s.window = max(s.window, minAhead)
	from, to = max(s.asked, s.block+1), min(s.block+1+s.window, blocks)
	if from >= to {
		return 0, 0
	}
	s.asked = to
	return from, to
}

// continues reports whether a read belongs to the stream: it overlaps or touches
// what was read, or lies within the kernel's readahead of its end and is a
// readahead request itself by its size.
func (s *stream) continues(off, end int64) bool {
	if off == s.end {
		return true
	}
	const readahead = 128 << 10
	return end-off >= readahead && s.hits > 0 && off > s.end-reorder && off < s.end+reorder
}

// follower recognises files of one directory that are opened in the order of
// the listing, by their slots in the extents that small files share.
type follower struct {
	mu     sync.Mutex // leaf; guards all
	extent covey.ExtentID
	slot   int
	run    bool // the rest of extent was asked for
}

// maxStride is how many slots one open may lie from the last one and still
// follow it: a loader's eight threads open files side by side.
const maxStride = 8

// note takes an open into account and returns which slots of the extent to ask
// for now: those behind it, once two opens in a row were neighbours.
func (f *follower) note(e *covey.Extent, slot int) covey.Bitmap {
	f.mu.Lock()
	defer f.mu.Unlock()
	same := e.ID == f.extent
	step := slot - f.slot
	follows := same && step > 0 && step <= maxStride ||
		!same && f.run && slot < maxStride
	switch {
	case same && f.run:
		f.slot = max(f.slot, slot)
		return 0
	case !follows:
		f.extent, f.slot, f.run = e.ID, slot, false
		return 0
	}
	f.extent, f.slot, f.run = e.ID, slot, true
	return e.All() &^ covey.FirstBits(slot+1)
}
