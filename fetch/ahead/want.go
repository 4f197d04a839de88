package ahead

import (
	"container/heap"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey/blockstore"
)

// want is a block that somebody will read: a rank of this node, or any rank when
// the block is of this node's share.
//
// The group's lock guards all of it.
type want struct {
	hash        uint64 // its key in group.wants
	file, block int
	size        int64
	// job is the one that it waits, or waited, for.
	job *Job
	// due is the lowest position at which a rank needs it.
	due uint64
	// refs are the samples in the windows of this node's ranks that it is part of,
	// and uses how often it was handed out of memory.
	refs, uses int
	// rank and at are the first of those samples that is not behind its rank: a
	// read of the block shows that the rank has got there.
	rank *rank
	at   uint64
	// mine says that it is of this node's share, to be kept.
	mine  bool
	state state
	tries int
	// after is when it may be fetched: a retry waits, and what is another node's
	// share waits for that node's head start.
	after time.Time
	// staged is set for a block in memory that the store does not have.
	staged *shared
	place  int // in the heap
}

type state uint8

const (
	waiting state = iota
	flying
	ready
)

// queue orders wants by when they are due. It implements heap.Interface.
type queue []*want

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is for package heap.
func (q *queue) Push(x any) {
	w := x.(*want)
	w.place = len(*q)
	*q = append(*q, w)
}

// Pop is for package heap.
func (q *queue) Pop() any {
	old := *q
	w := old[len(old)-1]
	*q = old[:len(old)-1]
	w.place = -1
	return w
}

func (q *queue) add(w *want) { heap.Push(q, w) }

func (q *queue) remove(w *want) {
	if w.place >= 0 && w.place < len(*q) && (*q)[w.place] == w {
		heap.Remove(q, w.place)
	}
}

// shared is a block in memory with a reference for the group and one for each
// reader; the last one to go releases it.
type shared struct {
	blockstore.Handle
	refs atomic.Int64
}

func newShared(h blockstore.Handle) *shared {
	s := &shared{Handle: h}
	s.refs.Store(1)
	return s
}

func (s *shared) drop() {
	if s.refs.Add(-1) == 0 {
		s.Release()
	}
}

func (s *shared) hold() blockstore.Handle {
	s.refs.Add(1)
	return &held{shared: s}
}

// held is one reader's handle.
type held struct {
	*shared
	released atomic.Bool
}

// Release gives up the handle. A second call does nothing.
func (h *held) Release() {
	if !h.released.Swap(true) {
		h.drop()
	}
}
