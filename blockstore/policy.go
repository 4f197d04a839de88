package blockstore

import (
	"errors"

	"github.com/covey-cache/covey"
)

// Policy says what a store does with a block for which there is no room.
type Policy string

const (
	// PolicyEpoch evicts nothing to admit more. Where each block is read once an
	// epoch, in an order that is new each time, no policy has more hits: any
	// block is as likely to be the next as any other, so that trading one for
	// another gains nothing and costs a read from the origin.
	PolicyEpoch Policy = "epoch"
	// PolicyLRU evicts the objects whose last use (admission, Get, OpenWhole) is
	// the longest ago, whole. It is for what is read again soon or never.
	// The order does not survive a restart.
	PolicyLRU Policy = "lru"
)

// maxVictims bounds what one admission evicts: a block of 4 MiB for objects of
// 4 KiB.
const maxVictims = 1024

// makeRoom takes room for a block, of what is free or of what gives way. The
// block is claimed. mu is held, and given up between.
func (s *tier) makeRoom(id covey.ObjectID, use int64) error {
	err := s.reserve(id, use)
	if s.opts.Policy != PolicyLRU || s.reserved+use > s.budget {
		return err
	}
	for n := 0; n < maxVictims; n++ {
		full, short := errors.Is(err, errBudget), errors.Is(err, errReserve)
		if !full && !short || !s.evictOldest(id) {
			return err
		}
		if short { // what was evicted may have readers, and take its space still
			s.mu.Unlock()
			s.remeasure()
			s.mu.Lock()
		}
		err = s.admit(id, use)
	}
	return err
}

// evictOldest evicts the object that was used the longest ago, other than the one
// that room is made for; false when there is none. mu is held, and given up between.
func (s *tier) evictOldest(keep covey.ObjectID) bool {
	e := s.victim(keep)
	if e == nil {
		return false
	}
	id := e.id
	s.claims[id] = claimedWhole
	s.mu.Unlock()
	o, err := s.name(id)
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
	s.mu.Lock()
	return true
}

// maxPassed bounds how many objects that cannot go are passed over in one search.
const maxPassed = 64

// victim returns the object that was used the longest ago and may go. Those that
// may not are put at the other end, so that the next search does not meet them
// again. mu is held.
func (s *tier) victim(keep covey.ObjectID) *entry {
	for n := 0; n < maxPassed && s.table.oldest != 0; n++ {
		e := s.table.at(s.table.oldest - 1)
		if e.count > 0 && e.id != keep && s.claims[e.id] == 0 && !s.pinned(e.id) {
			return e
		}
		s.table.touch(e)
	}
	return nil
}

// touch notes a use of an object, where that matters.
func (s *tier) touch(id covey.ObjectID) {
	if s.opts.Policy != PolicyLRU {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		s.table.touch(e)
	}
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
