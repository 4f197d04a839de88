package blockstore

import (
	"errors"
	"time"

	"github.com/covey-cache/covey"
)

// Policy says what a store does with a block for which there is no room.
type Policy string

const (
	// PolicyEpoch evicts no primary of a data set in use to admit more. Where each
	// block is read once an epoch, in an order that is new each time, no policy has
	// more hits: any block is as likely to be the next as any other, so that trading
	// one for another gains nothing and costs a read from the origin. Replicas, which
	// a neighbour has as well, give way to primaries.
	PolicyEpoch Policy = "epoch"
	// PolicyLRU evicts the objects whose last use (admission, Get, OpenWhole) is
	// the longest ago, whole. It is for what is read again soon or never.
	// The order does not survive a restart.
	PolicyLRU Policy = "lru"
	// PolicyLFU evicts the objects that are used least, counted with a half-life of
	// an hour, and of those the ones used longest ago. It is for a set of which some
	// are read again and again. The counts do not survive a restart.
	PolicyLFU Policy = "lfu"
	// PolicyTTL is epoch for a time: an object is evicted that long after its first
	// block came, whether or not anybody needs the room.
	PolicyTTL Policy = "ttl"
)

const policyNames = "epoch, lru, lfu and ttl"

func (p Policy) known() bool {
	switch p {
	case "", PolicyEpoch, PolicyLRU, PolicyLFU, PolicyTTL:
		return true
	}
	return false
}

// trades reports whether objects are evicted to admit others of their kind.
func (p Policy) trades() bool { return p == PolicyLRU || p == PolicyLFU }

// maxVictims bounds what one admission evicts: a block of 4 MiB for objects of
// 4 KiB.
const maxVictims = 1024

// newcomer is a block for which room is made.
type newcomer struct {
	id      covey.ObjectID
	also    map[covey.ObjectID]struct{} // what is kept as well as id
	primary bool
	trades  bool // its own data set does
	idle    time.Duration
	now     time.Time
}

// keeps reports whether an object does not give way because room is made for it.
func (n newcomer) keeps(id covey.ObjectID) bool {
	_, also := n.also[id]
	return also || id == n.id
}

// makeWay evicts what gives way to a block that no tier has room for, until one
// admits it.
func (s *Store) makeWay(n newcomer, use int64, put func(*tier) error, err error) error {
	var t *tier
	for range maxVictims {
		if t == nil || !t.yields(n) {
			if t = s.yielding(n, use); t == nil {
				return err
			}
		}
		if !t.evictFor(n) {
			return err
		}
		if errors.Is(err, errReserve) {
			t.remeasure() // what was evicted may have readers, and take its space still
		}
		if err = put(t); err == nil || !noRoom(err) {
			return err
		}
	}
	return err
}

// noRoom reports whether a tier refused a block for want of room.
func noRoom(err error) bool { return errors.Is(err, errBudget) || errors.Is(err, errReserve) }

// yielding returns the tier that has what gives way first, of those that could have
// room for the block at all; nil when there is none.
func (s *Store) yielding(n newcomer, use int64) *tier {
	var best *tier
	var first candidate
	for t := range s.tiers() {
		if t.stalled() {
			continue
		}
		t.mu.Lock()
		if c, ok := t.candidate(n); ok && t.fault == nil && t.reserved+use <= t.budget && (best == nil || c.before(first)) {
			best, first = t, c
		}
		t.mu.Unlock()
	}
	return best
}

func (s *tier) yields(n newcomer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.candidate(n)
	return ok
}

// The classes of what gives way, in their order.
const (
	classIdle    = iota // of a data set that is not used
	classReplica        // to a primary
	classTraded         // of a data set that trades
)

// candidate is an object that may give way.
type candidate struct {
	e     *entry
	class int
	used  int64 // of an idle data set: when that was
	kind  int
	stamp uint32
}

func (c candidate) before(d candidate) bool {
	switch {
	case c.class != d.class:
		return c.class < d.class
	case c.class == classIdle && c.used != d.used:
		return c.used < d.used
	case c.kind != d.kind:
		return c.kind < d.kind
	}
	return int32(c.stamp-d.stamp) < 0 //nolint:gosec // the clock may wrap around
}

// class says in which class a queue's objects give way to the newcomer.
func (n newcomer) class(r *rule, kind int) (class int, ok bool) {
	switch {
	case r.idle(n.idle, n.now):
		return classIdle, true
	case kind < kindKept:
		return classReplica, n.primary
	case r.Policy.trades():
		return classTraded, n.primary || n.trades
	}
	return 0, false
}

// candidate returns the object that gives way first. mu is held.
func (s *tier) candidate(n newcomer) (best candidate, ok bool) {
	var r *rule
	for q := range s.table.queues {
		if s.table.queues[q].oldest == 0 {
			continue
		}
		q := queue(q) //nolint:gosec // it is a queue's number
		if r == nil || r.number != q.rule() {
			r = s.opts.rules.at(q.rule())
		}
		class, may := n.class(r, q.kind())
		if !may {
			continue
		}
		e := s.oldest(q, n)
		if e == nil {
			continue
		}
		c := candidate{e: e, class: class, used: r.used.Load(), kind: q.kind(), stamp: e.stamp}
		if !ok || c.before(best) {
			best, ok = c, true
		}
	}
	return best, ok
}

// maxPassed bounds how many objects that cannot go are passed over in one search.
const maxPassed = 64

// oldest returns the first object of a queue that may go, other than the one that
// room is made for. Those that may not are put at the other end, so that the next
// search does not meet them again. mu is held.
func (s *tier) oldest(q queue, n newcomer) *entry {
	for range maxPassed {
		at := s.table.ends(q)
		if at.oldest == 0 {
			return nil
		}
		e := s.table.at(at.oldest - 1)
		if s.mayGo(e, n) {
			return e
		}
		if at.newest == at.oldest {
			return nil
		}
		s.table.touch(e)
	}
	return nil
}

// mayGo reports whether an object may be evicted now. mu is held.
func (s *tier) mayGo(e *entry, n newcomer) bool {
	busy := e.flags&flagMixed != 0 && (e.flags&flagHanded != 0 || s.open[e.id] != nil)
	return e.count > 0 && !n.keeps(e.id) && s.claims[e.id] == 0 && !s.pinned(e.id) && !busy
}

// evictFor evicts what gives way first; false when nothing does.
func (s *tier) evictFor(n newcomer) bool {
	s.mu.Lock()
	c, ok := s.candidate(n)
	if !ok {
		s.mu.Unlock()
		return false
	}
	return s.evictEntry(c.e, c.class == classReplica)
}

// evictEntry evicts an object that nobody has claimed, or its replicas only. mu is
// held, and given up. It reports whether anything went.
func (s *tier) evictEntry(e *entry, replicas bool) bool {
	id := e.id
	partly := replicas && e.flags&flagMixed != 0
	s.claims[id] = claimedWhole
	s.mu.Unlock()
	o, err := s.name(id)
	if err == nil && partly {
		s.unclaimWhole(id)
		return s.dropReplicas(o, id)
	}
	s.mu.Lock()
	if err == nil {
		_, err = s.removeObject(o, id)
		s.mu.Lock()
		s.metrics.evicted.Inc()
	} else if e := s.table.find(&id); e != nil {
		s.table.touch(e) // it cannot be told what it is: try another next time
	}
	s.mu.Unlock()
	s.unclaimWhole(id)
	if err != nil {
		s.log.Debug("evict an object", "tier", s.opts.Dir, "object", id.String(), "err", err)
	}
	return true
}

// dropReplicas drops the blocks of an object that came from neighbours, and keeps
// those that were read from the origin.
func (s *tier) dropReplicas(o covey.Object, id covey.ObjectID) bool {
	for i := range o.Blocks() {
		s.mu.Lock()
		e := s.table.find(&id)
		replica := e != nil && s.table.has(e, i) && s.table.isReplica(e, i)
		// A pin, or a reader because of whom all of the object would go, may have come.
		stays := e != nil && (s.pinned(id) || e.flags&flagHanded != 0 || s.open[id] != nil)
		s.mu.Unlock()
		if e == nil || stays {
			return true
		}
		if !replica {
			continue
		}
		if err := s.drop(o.Block(i)); err != nil {
			s.log.Debug("drop a replica", "tier", s.opts.Dir, "key", o.Key, "block", i, "err", err)
		}
	}
	s.metrics.evicted.Inc()
	set := s.opts.rules.of(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		s.table.sort(e, set, o.Size)
	}
	return true
}

// place puts an object into the queue where it belongs after a block came; that is
// a use. mu is held.
func (s *tier) place(e *entry, r *rule, size int64) {
	r.touch()
	if e.uses == 0 {
		e.uses = 1
	}
	s.table.sort(e, r, size)
	if r.Policy.trades() {
		s.table.touch(e)
	}
}

// touch notes a use of a block. That of an object's first counts as one of the
// object, so that a large one is not used more often for having many.
func (s *tier) touch(k blockKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&k.id); e != nil {
		s.use(e, k.index == 0)
	}
}

// useEntry notes a use of an object. mu is held.
func (s *tier) useEntry(e *entry) { s.use(e, true) }

func (s *tier) use(e *entry, counts bool) {
	r := s.opts.rules.at(e.queue.rule())
	r.touch()
	if counts && e.uses < 1<<8-1 {
		e.uses++
		if e.uses >= hotUses && e.uses&(e.uses-1) == 0 && s.opts.onHot != nil {
			s.opts.onHot(s, e.id)
		}
	}
	s.table.used(e, r)
}

func (s *tier) newTable() *table {
	t := newTable()
	t.clock = &s.opts.rules.clock
	return t
}

// name returns what an object that is here is called.
func (s *tier) name(id covey.ObjectID) (o covey.Object, err error) {
	s.mu.Lock()
	for _, g := range [...]*group{s.pending, s.flushing} {
		if g != nil && g.objects[id] != nil {
			defer s.mu.Unlock()
			return g.objects[id].object, nil
		}
	}
	s.mu.Unlock()
	err = s.index.get(objectKey(keyObject, id), func(v []byte) (err error) {
		o, err = parseObject(v)
		return err
	})
	return o, err
}
