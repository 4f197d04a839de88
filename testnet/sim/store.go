package sim

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"math"
	"math/bits"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dht"
)

// syncEvery is how much of the newest a store loses with its process, as the
// real one does: the group that was not committed yet.
const syncEvery = time.Second

// kind is what a copy is: of replicas, spare ones have many other holders.
type kind int

const (
	spare kind = iota
	replica
	primary
)

// manyHolders is from how many other holders on a replica is spare, as in package
// blockstore.
const manyHolders = 3

// unbounded is the budget of a store in which everything fits.
const unbounded = math.MaxInt64 / 2

// store is a node's cache: fetch.Store with the policy `epoch` of the block
// store and no disk. Primaries evict nothing but replicas, replicas nothing; the
// unit that gives way is a block, where the real store's is an object. What was
// admitted with the bytes of the origin costs one bit; what was not is kept as it
// came.
//
// mu is a leaf lock and guards what follows it.
type store struct {
	w      *world
	budget int64

	mu     sync.Mutex
	have   []uint64
	used   int64
	odd    map[int][]byte // bytes that are not the origin's
	recent []admission    // of the last second
	// replicas are the numbers of those admitted, oldest first; some may have
	// been dropped since.
	replicas [primary][]int
}

type admission struct {
	block int
	at    time.Time
}

func newStore(w *world, budget int64) *store {
	return &store{w: w, budget: budget, have: make([]uint64, (len(w.data.blocks)+63)/64)}
}

func (s *store) has(b int) bool { return s.have[b/64]>>(b%64)&1 == 1 }

// holds is has for others than the store itself.
func (s *store) holds(b int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has(b)
}

// blocks is how many are here.
func (s *store) blocks() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, word := range s.have {
		n += bits.OnesCount64(word)
	}
	return n
}

// errAbsent is made once: a thousand nodes miss twenty million times.
var errAbsent = fmt.Errorf("not in the store: %w", covey.ErrNotFound)

// Get holds a block.
func (s *store) Get(l covey.Locator) (blockstore.Handle, error) {
	b := s.w.data.number(l)
	if b < 0 {
		return nil, fmt.Errorf("get %s: %w", l, covey.ErrInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.has(b) {
		return nil, errAbsent
	}
	if odd, ok := s.odd[b]; ok {
		return &handle{bytes: odd, digest: covey.Sum(odd)}, nil
	}
	return &handle{bytes: s.w.data.bytesOf(b), digest: s.w.data.blocks[b].digest}, nil
}

// Present returns which blocks of the extent are here.
func (s *store) Present(e *covey.Extent) covey.Bitmap {
	n, ok := s.w.data.byID[e.ID]
	if !ok {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.present(n)
}

func (s *store) present(extent int) (have covey.Bitmap) {
	for slot := range s.w.data.extents[extent].Blocks {
		if s.has(s.w.data.starts[extent] + slot) {
			have = have.With(slot)
		}
	}
	return have
}

// Put admits a block that was read from the origin. Replicas give way to it.
func (s *store) Put(l covey.Locator, _ covey.Place, d covey.Digest, p []byte) error {
	return s.admit(l, d, p, primary)
}

// PutReplica admits a block of a neighbour, where there is room.
func (s *store) PutReplica(l covey.Locator, _ covey.Place, d covey.Digest, p []byte, holders int) error {
	if holders >= manyHolders {
		return s.admit(l, d, p, spare)
	}
	return s.admit(l, d, p, replica)
}

func (s *store) admit(l covey.Locator, d covey.Digest, p []byte, k kind) error {
	b := s.w.data.number(l)
	if b < 0 || d.IsZero() || int64(len(p)) != l.Range().Len {
		return fmt.Errorf("admit %s: %w", l, covey.ErrInvalid)
	}
	genuine := bytes.Equal(p, s.w.data.bytesOf(b)) && d == s.w.data.blocks[b].digest
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has(b) {
		return nil
	}
	size := s.w.data.size(b)
	for s.used+size > s.budget {
		if k != primary || !s.evict() {
			s.w.marks.hit(markStoreFull)
			return fmt.Errorf("admit %s: %w", l, covey.ErrFull)
		}
	}
	s.used += size
	s.have[b/64] |= 1 << (b % 64)
	if k != primary && s.bounded() {
		s.replicas[k] = append(s.replicas[k], b)
	}
	if !genuine {
		if s.odd == nil {
			s.odd = map[int][]byte{}
		}
		s.odd[b] = bytes.Clone(p)
	}
	s.note(b)
	return nil
}

// note remembers an admission for as long as a crash would lose it; s.mu is held.
func (s *store) note(b int) {
	now := time.Now()
	for len(s.recent) > 0 && now.Sub(s.recent[0].at) >= syncEvery {
		s.recent = s.recent[1:]
	}
	s.recent = append(s.recent, admission{b, now})
}

// evict drops the replica that gives way first, the oldest of those that many
// others hold; false when there is none. s.mu is held.
func (s *store) evict() bool {
	for k := spare; k < primary; k++ {
		for len(s.replicas[k]) > 0 {
			b := s.replicas[k][0]
			s.replicas[k] = s.replicas[k][1:]
			if s.has(b) {
				s.drop(b)
				s.w.marks.hit(markReplicaEvicted)
				return true
			}
		}
	}
	return false
}

// bounded reports whether the store can ever be full.
func (s *store) bounded() bool { return s.budget < unbounded }

// Drop removes a block.
func (s *store) Drop(l covey.Locator) error {
	if b := s.w.data.number(l); b >= 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(b)
	}
	return nil
}

func (s *store) drop(b int) {
	if s.has(b) {
		s.have[b/64] &^= 1 << (b % 64)
		s.used -= s.w.data.size(b)
		delete(s.odd, b)
	}
}

// crash loses what was admitted within the last second, as a kill does, or
// everything. It returns how many blocks those were.
func (s *store) crash(everything bool) (lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if everything {
		for _, word := range s.have {
			lost += bits.OnesCount64(word)
		}
		clear(s.have)
		s.used, s.odd, s.recent, s.replicas = 0, nil, nil, [primary][]int{}
		return lost
	}
	for _, r := range s.recent {
		if time.Since(r.at) < syncEvery && s.has(r.block) {
			s.drop(r.block)
			lost++
		}
	}
	s.recent = nil
	return lost
}

// heldOf is what the store has of one extent, as the directory wants to hear it.
func (s *store) heldOf(id covey.ExtentID) (dht.Have, bool) {
	n, ok := s.w.data.byID[id]
	if !ok {
		return dht.Have{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := dht.Have{Extent: id, Have: s.present(n)}
	for slot := range h.Have.Slots() {
		b := s.w.data.starts[n] + slot
		digest := s.w.data.blocks[b].digest
		if odd, ok := s.odd[b]; ok {
			digest = covey.Sum(odd)
		}
		h.Digests = append(h.Digests, digest)
	}
	return h, h.Have != 0
}

// all is everything in the store.
func (s *store) all() iter.Seq[dht.Have] {
	return func(yield func(dht.Have) bool) {
		for _, e := range s.w.data.extents {
			if h, ok := s.heldOf(e.ID); ok && !yield(h) {
				return
			}
		}
	}
}

// handle is a hold on bytes that nobody changes.
type handle struct {
	bytes  []byte
	digest covey.Digest
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(h.bytes)) {
		return 0, io.EOF
	}
	n := copy(p, h.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) Len() int             { return len(h.bytes) }
func (h *handle) Digest() covey.Digest { return h.digest }
func (h *handle) Release()             {}
