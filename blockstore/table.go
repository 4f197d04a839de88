package blockstore

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/covey-cache/covey"
)

// table says for every object the store has any block of, which blocks are here
// and which of them were checked in this process's life. It is what answers
// Present, and a Get that misses, without I/O.
//
// An object of up to 64 blocks costs 80 bytes in a slab without pointers, which
// the garbage collector never walks, and 5 to 11 bytes in an open-addressed
// bucket array; 20 million objects fit in 1.8 GB. A Go map from ObjectID to a
// pointer would cost three times that. The buckets are cut into 256 by the ID's
// first byte, so that growing moves a 256th of them at a time.
//
// The caller's lock guards it.
type table struct {
	slab    [][]entry
	free    []uint32
	buckets [256]buckets
	big     map[uint32]*bigBits // by slot, for objects of over 64 blocks

	mixed map[uint32]bitset // by slot, the replicas of objects with flagMixed

	queues []ends // by queue
	clock  *atomic.Uint32

	objects, whole, blocks int
}

// entry is what the table knows of one object. An entry's address is stable
// until the object is removed.
//
// INVARIANT: seen is a subset of have, and count is the size of that.
type entry struct {
	id         covey.ObjectID
	have, seen uint64 // unused in objects of over 64 blocks: see big
	slot       uint32
	blocks     uint32 // of the whole object
	count      uint32 // blocks here
	stamp      uint32 // when it was linked, by the clock; see flagTimed
	flags      entryFlags
	uses       uint8 // under lfu, halved from time to time
	queue      queue
	use        uint32 // disk use of the blocks here, in units; see flagCoded
	// older and newer are the neighbours in its queue, as slot+1, 0 at the ends.
	older, newer uint32
}

type entryFlags uint8

const (
	// flagSuspect marks an object that the last group before an unclean end
	// touched: its blocks are checked against their digests, not only their
	// checksums.
	flagSuspect entryFlags = 1 << iota
	// flagHanded marks an object whose file OpenWhole gave away in this
	// process's life, or that had readers when its tier failed and was opened anew.
	// Somebody may be reading it, so it is unlinked rather than changed.
	flagHanded
	// flagCoded marks an object of which some block is not stored as it is. It
	// is never passed through, and what it takes is in use; of others that
	// follows from which blocks are here.
	flagCoded
	// flagReplica marks an object of which every block here came from a neighbour,
	// flagMixed one of which some did: table.mixed says which.
	flagReplica
	flagMixed
	// flagMany marks one that many neighbours had when it came from one of them.
	flagMany
	// flagTimed marks one that is kept for a time: its stamp is when it came, in
	// seconds since 1970.
	flagTimed
)

type bigBits struct {
	have, seen bitset
	checked    int // size of seen
}

// buckets hold slot+1 of entries, 0 where empty, by linear probing. At most three
// in four are taken, which keeps a miss at 8 probes on average.
type buckets struct {
	slots []uint32
	used  int
}

const slabLen = 4096

func newTable() *table {
	return &table{big: make(map[uint32]*bigBits), mixed: make(map[uint32]bitset), clock: new(atomic.Uint32)}
}

func (t *table) at(slot uint32) *entry { return &t.slab[slot/slabLen][slot%slabLen] }

// hash needs no mixing: an ObjectID is itself a hash.
func hash(id *covey.ObjectID) uint64 { return binary.LittleEndian.Uint64(id[1:9]) }

// find returns the object's entry, or nil.
func (t *table) find(id *covey.ObjectID) *entry {
	b := &t.buckets[id[0]]
	if b.used == 0 {
		return nil
	}
	mask := uint64(len(b.slots) - 1)
	for i := hash(id) & mask; ; i = (i + 1) & mask {
		s := b.slots[i]
		if s == 0 {
			return nil
		}
		if e := t.at(s - 1); e.id == *id {
			return e
		}
	}
}

// add makes an entry for an object that has none.
func (t *table) add(id covey.ObjectID, blocks int) *entry {
	slot := t.take()
	e := t.at(slot)
	*e = entry{id: id, slot: slot, blocks: uint32(blocks), queue: kindKept}
	if blocks > 64 {
		t.big[slot] = &bigBits{have: newBitset(blocks), seen: newBitset(blocks)}
	}
	b := &t.buckets[id[0]]
	if (b.used+1)*4 > len(b.slots)*3 {
		t.grow(b)
	}
	t.insert(b, e)
	t.link(e)
	t.objects++
	if blocks == 0 {
		t.whole++
	}
	return e
}

func (t *table) take() uint32 {
	if n := len(t.free); n > 0 {
		slot := t.free[n-1]
		t.free = t.free[:n-1]
		return slot
	}
	n := len(t.slab)
	if n == 0 || len(t.slab[n-1]) == slabLen {
		t.slab = append(t.slab, make([]entry, 0, slabLen))
		n++
	}
	last := t.slab[n-1]
	t.slab[n-1] = last[:len(last)+1]
	return uint32((n-1)*slabLen + len(last))
}

func (t *table) grow(b *buckets) {
	old := b.slots
	*b = buckets{slots: make([]uint32, max(8, 2*len(old)))}
	for _, s := range old {
		if s != 0 {
			t.insert(b, t.at(s-1))
		}
	}
}

func (t *table) insert(b *buckets, e *entry) {
	mask := uint64(len(b.slots) - 1)
	i := hash(&e.id) & mask
	for b.slots[i] != 0 {
		i = (i + 1) & mask
	}
	b.slots[i] = e.slot + 1
	b.used++
}

// remove forgets an object. The entry must not be used afterwards.
func (t *table) remove(e *entry) {
	t.unlink(e)
	t.objects--
	t.blocks -= int(e.count)
	if e.count == e.blocks {
		t.whole--
	}
	b := &t.buckets[e.id[0]]
	mask := uint64(len(b.slots) - 1)
	i := hash(&e.id) & mask
	for b.slots[i] != e.slot+1 {
		i = (i + 1) & mask
	}
	// Move later members of the run back into the hole, so that no probe needs
	// tombstones.
	for j := i; ; {
		j = (j + 1) & mask
		s := b.slots[j]
		if s == 0 {
			break
		}
		home := hash(&t.at(s-1).id) & mask
		if (j-home)&mask >= (j-i)&mask {
			b.slots[i] = s
			i = j
		}
	}
	b.slots[i] = 0
	b.used--
	delete(t.big, e.slot)
	t.unmix(e)
	t.free = append(t.free, e.slot)
	*e = entry{}
}

func (t *table) has(e *entry, i int) bool {
	if e.blocks > 64 {
		return t.big[e.slot].have.has(i)
	}
	return e.have>>uint(i)&1 == 1
}

func (t *table) seen(e *entry, i int) bool {
	if e.blocks > 64 {
		return t.big[e.slot].seen.has(i)
	}
	return e.seen>>uint(i)&1 == 1
}

// set adds a block that is not here.
func (t *table) set(e *entry, i int) {
	if e.blocks > 64 {
		t.big[e.slot].have.set(i)
	} else {
		e.have |= 1 << uint(i)
	}
	e.count++
	t.blocks++
	if e.count == e.blocks {
		t.whole++
	}
}

// mark notes that a block that is here was checked.
func (t *table) mark(e *entry, i int) {
	if t.seen(e, i) {
		return
	}
	if e.blocks > 64 {
		b := t.big[e.slot]
		b.seen.set(i)
		b.checked++
	} else {
		e.seen |= 1 << uint(i)
	}
}

// checked is how many blocks are here and checked.
func (t *table) checked(e *entry) int {
	if e.blocks > 64 {
		return t.big[e.slot].checked
	}
	return bits.OnesCount64(e.seen)
}

// unset forgets a block that is here.
func (t *table) unset(e *entry, i int) {
	if e.count == e.blocks {
		t.whole--
	}
	if e.blocks > 64 {
		b := t.big[e.slot]
		if b.seen.has(i) {
			b.checked--
		}
		b.have.clear(i)
		b.seen.clear(i)
	} else {
		e.have &^= 1 << uint(i)
		e.seen &^= 1 << uint(i)
	}
	e.count--
	t.blocks--
	t.unkindle(e, i)
}

// load replaces the blocks of a new entry by those of a record from the index.
func (t *table) load(e *entry, p *presence) {
	e.count = e.blocks
	switch {
	case e.blocks > 64:
		have := t.big[e.slot].have
		for i := range int(e.blocks) {
			if p.has(i) {
				have.set(i)
			}
		}
		e.count = uint32(have.len())
	default:
		for i := range int(e.blocks) {
			if p.has(i) {
				e.have |= 1 << uint(i)
			}
		}
		e.count = uint32(covey.Bitmap(e.have).Len())
	}
	if p.coded {
		e.flags |= flagCoded
		e.use = p.use
	}
	if p.replica {
		e.flags |= flagReplica
	}
	if p.added > 0 {
		e.flags |= flagTimed
		e.stamp = p.added
	}
	if p.replicas != nil {
		b := newBitset(int(e.blocks))
		for i := range int(e.blocks) {
			if p.has(i) && p.replicas[i/8]>>(uint(i)%8)&1 == 1 {
				b.set(i)
			}
		}
		t.mixed[e.slot] = b
		e.flags |= flagMixed
	}
	t.blocks += int(e.count)
	if e.count == e.blocks && e.blocks > 0 {
		t.whole++
	}
}
