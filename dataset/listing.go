package dataset

import (
	"iter"
	"sort"
	"sync/atomic"
	"time"
)

// listing is what one LIST run learnt of a directory. It grows while the run
// goes on and is immutable from then on. One goroutine, the run's, writes it;
// all may read it.
type listing struct {
	path string
	seq  uint64    // the order in which runs began
	at   time.Time // when the run began: the age of everything in it
	view atomic.Pointer[view]
	cuts cuts
	// hidden is how many keys cannot be shown, and late the directories that
	// the listing misses because they came when their place had been passed.
	// Both are set before the end is published.
	hidden int
	late   []string

	// dirty says that an entry is known to be another by now, so that the next
	// ReadDir lists again. Lookups know better from the facts.
	dirty atomic.Bool
	// oversize marks the listing of a directory that has more entries than are
	// kept at all. It has no entries and stays, so that lookups ask by name.
	oversize bool
}

// dirCost is what a directory costs beside its entries, counted in entries:
// maps, list elements and headers, about 400 bytes.
const dirCost = 4

// view is the state of a listing at one time. It is immutable.
//
// INVARIANT: chunks hold the first n entries of the directory in ascending order
// of the name: no name up to the last is missing.
type view struct {
	chunks []*chunk
	n      int
	exists bool // some key has the directory's prefix
	done   bool
	err    error         // with done: why the listing is not complete
	grown  chan struct{} // closed when there is a later view; nil when done
}

func newListing(path string, seq uint64, at time.Time) *listing {
	l := &listing{path: path, seq: seq, at: at}
	l.view.Store(&view{grown: make(chan struct{})})
	return l
}

// extend publishes more entries. Only the run calls it.
func (l *listing) extend(entries []Entry, exists bool) {
	old := l.view.Load()
	v := &view{chunks: old.chunks, n: old.n, exists: old.exists || exists, grown: make(chan struct{})}
	for len(entries) > 0 {
		k := min(len(entries), chunkLen)
		v.chunks = append(v.chunks, newChunk(v.n, entries[:k]))
		v.n += k
		entries = entries[k:]
	}
	l.view.Store(v)
	close(old.grown)
}

// finish publishes the end. Only the run calls it, once.
func (l *listing) finish(err error) {
	old := l.view.Load()
	l.view.Store(&view{chunks: old.chunks, n: old.n, exists: old.exists, done: true, err: err})
	close(old.grown)
}

// find returns where the name is. When it is not found (c is nil), settled says
// whether that is certain already.
func (v *view) find(name string) (c *chunk, i int, settled bool) {
	k := sort.Search(len(v.chunks), func(k int) bool {
		c := v.chunks[k]
		return c.name(len(c.recs)-1) >= name
	})
	if k == len(v.chunks) {
		return nil, 0, v.done && v.err == nil
	}
	c = v.chunks[k]
	i = sort.Search(len(c.recs), func(i int) bool { return c.name(i) >= name })
	if c.name(i) != name {
		return nil, 0, true
	}
	return c, i, true
}

// from yields the entries from index i on, packed.
func (v *view) from(i int) iter.Seq2[*chunk, int] {
	return func(yield func(*chunk, int) bool) {
		k := sort.Search(len(v.chunks), func(k int) bool {
			return v.chunks[k].base+len(v.chunks[k].recs) > i
		})
		for ; k < len(v.chunks); k++ {
			c := v.chunks[k]
			for j := i - c.base; j < len(c.recs); j++ {
				if !yield(c, j) {
					return
				}
				i++
			}
		}
	}
}

// after yields the entries whose name is greater than the given one.
func (v *view) after(name string) iter.Seq2[*chunk, int] {
	k := sort.Search(v.n, func(i int) bool {
		for c, j := range v.from(i) {
			return c.name(j) > name
		}
		return true
	})
	return v.from(k)
}

// between yields the entries with an index from start up to, but not, end.
func (v *view) between(start, end int) iter.Seq2[*chunk, int] {
	return func(yield func(*chunk, int) bool) {
		for c, i := range v.from(start) {
			if c.base+i >= end || !yield(c, i) {
				return
			}
		}
	}
}
