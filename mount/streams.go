package mount

import (
	"math"
	"sync"
	"time"
)

// The window of blocks asked for ahead of a reader, in blocks. It starts with what
// hides one round trip and doubles with each block read up to a target. The target
// starts with 32 MiB of default blocks, which is 30 ms at 1 GiB/s, and doubles
// whenever the reader has to wait for a block that was asked for: then latency
// times bandwidth is more than the window. It ends at 128 MiB, the part of the
// staging area that prefetch may fill.
const (
	minAhead    = 2
	firstTarget = 8
	maxAhead    = 32
)

// reorder is how far before or behind the expected offset a read may lie and
// still be part of the stream: the kernel sends up to 8 MiB of readahead as
// requests of 1 MiB, which arrive in any order.
const reorder = 8 << 20

// maxStreams is how many readers of one file are told apart: the workers of one
// loader, as a rule. One more takes the place of the one that read least recently.
const maxStreams = 8

// lateAfter is how long a reader may wait for a block that was asked for before
// the window is too small: more than a hit of the store takes on a busy host.
const lateAfter = 2 * time.Millisecond

// streams recognise who reads a file in order: forwards, backwards, or by equal
// steps. All handles of an inode share them, so that processes that share one pass
// over a file are one stream, and one that begins behind another finds its blocks.
//
// mu is a leaf lock and guards all.
type streams struct {
	mu     sync.Mutex
	all    [maxStreams]stream
	clock  uint64
	target int
	last   [2]int64 // offsets of the last two reads that no stream expected
	misses int
}

// stream is one of them.
type stream struct {
	used     uint64 // the clock at its last read, 0 for a free place
	off, end int64  // of the last read; of a forward stream, the highest end
	step     int64  // from one read to the next; 0 for forwards
	back     bool   // backwards, each read ending where the last began
	hits     int    // reads in a row that continued the stream
	window   int
	block    int // the furthest block that was read, in the direction of reading
	asked    int // forwards: blocks below have been asked for; backwards: from here on
	reach    int64
}

// coming are blocks to ask for, and blocks that were asked for and will not be read.
type coming struct {
	blocks [maxAhead]int
	n      int
	// Blocks [from, to) need not come any more.
	from, to int
	// random says that no stream expected the read.
	random bool
}

func (w *coming) add(block int) bool {
	if w.n > 0 && w.blocks[w.n-1] == block {
		return true
	}
	if w.n == len(w.blocks) {
		return false
	}
	w.blocks[w.n] = block
	w.n++
	return true
}

// note takes one read into account.
func (s *streams) note(off int64, n int, blockSize int64, blocks int) (w coming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	s.target = max(s.target, firstTarget)
	end := off + int64(n)
	for i := range s.all {
		x := &s.all[i]
		if x.used == 0 || !x.continues(off, end) {
			continue
		}
		x.used = s.clock
		s.misses = 0
		switch {
		case x.back || x.step == 0 && end == x.off && off != x.end:
			x.backward(off, end, blockSize, s.target, &w)
		case x.step != 0:
			x.stride(off, end, blockSize, blocks, s.target, &w)
		default:
			x.forward(end, blockSize, blocks, s.target, &w)
		}
		return w
	}
	s.miss(off, end, blockSize, blocks, &w)
	return w
}

// continues reports whether a read belongs to the stream. A forward one takes what
// touches its end, and what lies within the kernel's readahead of it and is a
// readahead request itself by its size.
func (x *stream) continues(off, end int64) bool {
	switch {
	case x.back:
		return end == x.off
	case x.step != 0:
		return off == x.off+x.step
	case off == x.end:
		return true
	case x.hits == 0:
		return end == x.off
	}
	const readahead = 128 << 10
	return end-off >= readahead && off > x.end-reorder && off < x.end+reorder
}

// advance counts a read of the stream, and another block of it. The first
// continuation may be chance: the header of a file, then its index. The second is
// a stream.
func (x *stream) advance(block, target int, further bool) bool {
	x.hits++
	if further {
		x.block = block
		x.window = min(2*x.window, target)
	}
	if x.hits < 2 {
		return false
	}
	x.window = max(x.window, minAhead)
	return true
}

func (x *stream) forward(end, blockSize int64, blocks, target int, w *coming) {
	x.end = max(x.end, end)
	last := int((end - 1) / blockSize)
	if !x.advance(last, target, last > x.block) {
		return
	}
	from, to := max(x.asked, x.block+1), min(x.block+1+x.window, blocks)
	for ; from < to && w.add(from); from++ {
		x.asked = from + 1
	}
}

func (x *stream) backward(off, end, blockSize int64, target int, w *coming) {
	first := int(off / blockSize)
	if !x.back {
		x.back, x.block, x.asked = true, int(end/blockSize), int(end/blockSize)
	}
	x.off, x.end = off, end
	if !x.advance(first, target, first < x.block) {
		return
	}
	from, to := min(x.asked-1, x.block-1), max(x.block-x.window, 0)
	for ; from >= to && w.add(from); from-- {
		x.asked = from
	}
}

// stride asks for the blocks of the next reads, a window of them.
func (x *stream) stride(off, end, blockSize int64, blocks, target int, w *coming) {
	x.off, x.end = off, end
	x.hits++
	x.window = min(max(2*x.window, minAhead), target)
	size := blockSize * int64(blocks)
	next := x.reach
	if (next-off)*sign(x.step) <= 0 {
		next = off
	}
	for k := 0; k < x.window*maxDense; k++ {
		if (next-off)/x.step >= int64(x.window)*max(1, blockSize/abs(x.step)) {
			return
		}
		next += x.step
		if next < 0 || next >= size {
			return
		}
		if block := int(next / blockSize); block != x.asked {
			if !w.add(block) {
				return
			}
			x.asked = block
		}
		x.reach = next
	}
}

// maxDense bounds how many steps within one block are looked through at a time.
const maxDense = 64

func sign(v int64) int64 {
	if v < 0 {
		return -1
	}
	return 1
}

func abs(v int64) int64 { return v * sign(v) }

// miss takes a read that no stream expected: three at equal distances are a
// strided stream, each by itself may be the begin of another. What the stream in
// whose place it comes had asked for is given up.
func (s *streams) miss(off, end, blockSize int64, blocks int, w *coming) {
	oldest := &s.all[0]
	for i := range s.all {
		x := &s.all[i]
		if s.misses >= 2 && off-s.last[1] == s.last[1]-s.last[0] && off != s.last[1] && x.used != 0 && x.off == s.last[1] && x.hits == 0 {
			*x = stream{used: s.clock, off: off, end: end, step: off - s.last[1], hits: 1, reach: off, asked: int(off / blockSize)}
			s.misses = 0
			x.stride(off, end, blockSize, blocks, s.target, w)
			return
		}
		if x.used < oldest.used {
			oldest = x
		}
	}
	s.misses++
	// The first read of a file is the begin of something, as a rule.
	w.random = s.clock > 1
	s.last[0], s.last[1] = s.last[1], off
	w.from, w.to = oldest.unread()
	last := int((end - 1) / blockSize)
	*oldest = stream{used: s.clock, off: off, end: end, block: last, asked: last + 1}
}

// unread are the blocks that were asked for and not read yet.
func (x *stream) unread() (from, to int) {
	switch {
	case x.used == 0 || x.step != 0 || x.window == 0:
		return 0, 0
	case x.back:
		return x.asked, x.block
	}
	return x.block + 1, x.asked
}

// late says how long the reader waited for a block. When that was asked for and yet
// not here, the windows are too small.
func (s *streams) late(block int, took time.Duration) {
	if took < lateAfter {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.all {
		x := &s.all[i]
		forward := !x.back && x.step == 0 && block < x.asked && block >= x.block
		if x.used != 0 && x.window >= s.target && (forward || x.back && block >= x.asked && block <= x.block) {
			s.target = min(2*s.target, maxAhead)
			return
		}
	}
}

// end forgets all streams and calls forgo with what they asked for in vain.
func (s *streams) end(forgo func(from, to int)) {
	s.mu.Lock()
	all := s.all
	s.all, s.misses = [maxStreams]stream{}, 0
	s.mu.Unlock()
	for i := range all {
		if from, to := all[i].unread(); from < to && to <= math.MaxInt32 {
			forgo(from, to)
		}
	}
}

// sharedStreams returns the streams of an inode, made when first asked for.
func (in *inode) sharedStreams() *streams {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.streams == nil {
		in.streams = &streams{}
	}
	return in.streams
}

// endStreams takes back what the readers of a file had asked for, when the last of
// them has left.
func (t *tree) endStreams(h *handle) {
	h.streams.end(func(from, to int) { t.forgoBlocks(t.ctx, h, from, to) })
}
