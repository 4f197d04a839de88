package blockstore

import (
	"fmt"
	"iter"

	"github.com/covey-cache/covey"
)

// Stat is what a store has of one object.
type Stat struct {
	Object covey.Object
	Blocks int // of it that are here
	// Replicas are those of them that came from a neighbour.
	Replicas int
	Used     int64 // disk use of those that are here, in bytes
	// Plain is what those would take if they were stored as they are.
	Plain int64
	// Missing is the most that the others would take.
	Missing int64
	Whole   bool // every block is here
	Pinned  bool
}

// Stat returns what is here of an object, without I/O. Of one that is neither here
// nor pinned, that is nothing.
func (s *tier) Stat(o covey.Object) Stat {
	st := Stat{Object: o}
	if o.Validate() != nil {
		return st
	}
	s.stat(&st)
	return st
}

// stat fills in what the object's name does not say, and reports whether there is
// anything.
func (s *tier) stat(st *Stat) bool {
	id := st.Object.ID()
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Pinned = s.pinned(id)
	st.Missing = DiskUse(st.Object)
	e := s.table.find(&id)
	if e == nil {
		return st.Pinned
	}
	st.Blocks, st.Used = int(e.count), s.table.objectUse(e, st.Object)
	st.Plain = s.table.plainUse(e, st.Object)
	st.Missing -= st.Plain
	st.Replicas = s.table.replicas(e)
	st.Whole = e.count == e.blocks
	return true
}

// Du is what some objects take.
type Du struct {
	Objects, Whole int // objects with any block (or of none), and with every block
	Blocks         int
	Replicas       int   // blocks that came from a neighbour
	Used           int64 // disk use, in bytes
	Plain          int64 // what that would be if all were stored as it is
	Pinned         int   // objects that are pinned, here or not
	PinnedUsed     int64 // disk use of those
	Missing        int64 // what those still need
}

// Du adds up the objects, here or pinned, for which match says yes; a nil match
// means all. It reads the name of each object from the index, and blocks nobody;
// objects that come or go while it runs may be counted or not.
func (s *tier) Du(match func(covey.Object) bool) (Du, error) {
	var du Du
	for o, err := range s.known() {
		if err != nil {
			return du, fmt.Errorf("add up what is in %s: %w", s.opts.Dir, err)
		}
		st := Stat{Object: o}
		if match != nil && !match(o) || !s.stat(&st) {
			continue
		}
		du.add(st)
	}
	return du, nil
}

// add counts one object.
func (du *Du) add(st Stat) {
	if st.Blocks > 0 || st.Whole {
		du.Objects++
	}
	if st.Whole {
		du.Whole++
	}
	du.Blocks += st.Blocks
	du.Replicas += st.Replicas
	du.Used += st.Used
	du.Plain += st.Plain
	if st.Pinned {
		du.Pinned++
		du.PinnedUsed += st.Used
		du.Missing += st.Missing
	}
}

// sum adds what another tier holds.
func (du *Du) sum(d Du) {
	du.Objects += d.Objects
	du.Whole += d.Whole
	du.Blocks += d.Blocks
	du.Replicas += d.Replicas
	du.Used += d.Used
	du.Plain += d.Plain
	du.Pinned += d.Pinned
	du.PinnedUsed += d.PinnedUsed
	du.Missing += d.Missing
}

// known yields each object that is here or pinned once, also those that the index
// is yet to hear of. An error is the last that it yields.
func (s *tier) known() iter.Seq2[covey.Object, error] {
	return func(yield func(covey.Object, error) bool) {
		fresh := s.freshObjects()
		for id, o := range fresh {
			if s.here(id) && !yield(o, nil) {
				return
			}
		}
		for _, kind := range [...]byte{keyObject, keyPin} {
			for next := []byte{kind}; next != nil; {
				var batch []covey.Object
				var err error
				if next, err = s.nameBatch(next, []byte{kind + 1}, &batch); err != nil {
					yield(covey.Object{}, err)
					return
				}
				for _, o := range batch {
					id := o.ID()
					_, done := fresh[id]
					// A pinned object that is here has its name twice.
					if done = done && s.here(id); done || s.here(id) != (kind == keyObject) {
						continue
					}
					if !yield(o, nil) {
						return
					}
				}
			}
		}
	}
}

// freshObjects returns the objects that the groups not yet in the index touch.
func (s *tier) freshObjects() map[covey.ObjectID]covey.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := make(map[covey.ObjectID]covey.Object)
	for _, g := range [...]*group{s.pending, s.flushing} {
		if g == nil {
			continue
		}
		for id, oc := range g.objects {
			fresh[id] = oc.object
		}
	}
	return fresh
}

func (s *tier) here(id covey.ObjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.find(&id) != nil
}

// nameBatch reads names of objects, as far as they can be read.
func (s *tier) nameBatch(lower, upper []byte, to *[]covey.Object) (next []byte, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.index.scan(lower, upper, heldBatch, func(_, v []byte) error {
		o, err := parseObject(v)
		if err != nil {
			return nil //nolint:nilerr // an object without a name cannot be asked for
		}
		*to = append(*to, o)
		return nil
	})
}
