package blockstore

import (
	"math/bits"
	"time"
)

// queue numbers a list of objects that give way in the order in which they lie in
// it: those of one data set and one kind. Its low bits are the kind.
type queue uint16

const kindBits = 4

// The kinds, in the order in which they give way. Of replicas those go first that
// more neighbours have, and of these the large ones: small objects give most hits,
// and save most requests, for a byte.
const (
	kindManyLarge = iota
	kindManySmall
	kindFewLarge
	kindFewSmall
	// kindKept are primaries; under lru all objects; under lfu, with the logarithm
	// of their uses added, all objects.
	kindKept
)

const (
	// manyHolders is from how many other holders on a replica is spare: losing this
	// one and any other still leaves two.
	manyHolders = 3
	// largeObject is the size of a block, above which an object is several requests.
	largeObject = 4 << 20
)

// ends are those of one queue, as slot+1, 0 when it is empty.
type ends struct{ oldest, newest uint32 }

func queueOf(r *rule, kind int) queue { return queue(r.number<<kindBits) | queue(kind) }

func (q queue) rule() uint16 { return uint16(q >> kindBits) }
func (q queue) kind() int    { return int(q & (1<<kindBits - 1)) }

// ends returns a queue's, made when missing.
func (t *table) ends(q queue) *ends {
	for int(q) >= len(t.queues) {
		t.queues = append(t.queues, ends{})
	}
	return &t.queues[q]
}

// link makes an object the newest of its queue.
func (t *table) link(e *entry) {
	at := t.ends(e.queue)
	e.older, e.newer = at.newest, 0
	if at.newest != 0 {
		t.at(at.newest - 1).newer = e.slot + 1
	} else {
		at.oldest = e.slot + 1
	}
	at.newest = e.slot + 1
	if e.flags&flagTimed == 0 {
		e.stamp = t.clock.Add(1)
	}
}

func (t *table) unlink(e *entry) {
	at := t.ends(e.queue)
	if e.older != 0 {
		t.at(e.older - 1).newer = e.newer
	} else {
		at.oldest = e.newer
	}
	if e.newer != 0 {
		t.at(e.newer - 1).older = e.older
	} else {
		at.newest = e.older
	}
}

// touch makes an object the newest of its queue, unless it is.
func (t *table) touch(e *entry) {
	if t.ends(e.queue).newest != e.slot+1 {
		t.unlink(e)
		t.link(e)
	}
}

// requeue puts an object into another queue, as its newest.
func (t *table) requeue(e *entry, q queue) {
	if e.queue != q {
		t.unlink(e)
		e.queue = q
		t.link(e)
	}
}

// kind is an object's, in a data set.
func (t *table) kind(e *entry, r *rule, size int64) int {
	switch {
	case r.Policy == PolicyLRU:
		return kindKept
	case r.Policy == PolicyLFU:
		return kindKept + min(bits.Len8(e.uses), 1<<kindBits-1-kindKept)
	case t.replicas(e) == 0:
		return kindKept
	}
	kind := kindFewSmall
	if e.flags&flagMany != 0 {
		kind = kindManySmall
	}
	if size > largeObject {
		kind--
	}
	return kind
}

// sort puts an object into the queue where it belongs.
func (t *table) sort(e *entry, r *rule, size int64) {
	switch timed := e.flags&flagTimed != 0; {
	case r.Policy == PolicyTTL && !timed:
		e.flags |= flagTimed
		e.stamp = uint32(time.Now().Unix())
	case r.Policy != PolicyTTL && timed:
		e.flags &^= flagTimed
		e.stamp = t.clock.Add(1)
	}
	t.requeue(e, queueOf(r, t.kind(e, r, size)))
}

// used notes a use of an object.
func (t *table) used(e *entry, r *rule) {
	switch r.Policy {
	case PolicyLRU:
		t.touch(e)
	case PolicyLFU:
		t.sort(e, r, 0) // by uses alone
		t.touch(e)
	}
}

// replicas is how many of an object's blocks here came from a neighbour.
func (t *table) replicas(e *entry) int {
	switch {
	case e.flags&flagReplica != 0:
		return int(e.count)
	case e.flags&flagMixed != 0:
		return t.mixed[e.slot].len()
	}
	return 0
}

// isReplica reports whether a block that is here came from a neighbour.
func (t *table) isReplica(e *entry, i int) bool {
	return e.flags&flagReplica != 0 || e.flags&flagMixed != 0 && t.mixed[e.slot].has(i)
}

// kindle notes where a block that is about to be set came from.
func (t *table) kindle(e *entry, i int, replica bool) {
	switch {
	case e.count == 0:
		t.unmix(e)
		if e.flags &^= flagReplica; replica {
			e.flags |= flagReplica
		}
		return
	case e.flags&flagMixed == 0 && replica == (e.flags&flagReplica != 0):
		return
	case e.flags&flagMixed == 0:
		b := newBitset(int(e.blocks))
		for j := range int(e.blocks) {
			if e.flags&flagReplica != 0 && t.has(e, j) {
				b.set(j)
			}
		}
		t.mixed[e.slot] = b
		e.flags = e.flags&^flagReplica | flagMixed
	}
	if replica {
		t.mixed[e.slot].set(i)
	}
}

// unkindle forgets where a block came from that was unset.
func (t *table) unkindle(e *entry, i int) {
	if e.flags&flagMixed == 0 {
		return
	}
	b := t.mixed[e.slot]
	b.clear(i)
	switch b.len() {
	case 0:
		t.unmix(e)
	case int(e.count):
		t.unmix(e)
		e.flags |= flagReplica
	}
}

func (t *table) unmix(e *entry) {
	if e.flags&flagMixed != 0 {
		e.flags &^= flagMixed
		delete(t.mixed, e.slot)
	}
}
