package blockstore

import (
	"fmt"
	"slices"

	"github.com/covey-cache/covey"
)

// Drop forgets one block (it was found to be wrong). Its bytes are cleared, so
// that not even a crash brings it back. Where somebody may be reading the block
// (a handle, or a descriptor given by OpenWhole), the whole object goes
// instead: its file is unlinked and stays as it is under its readers. Dropping
// what is not here is no error.
func (s *tier) Drop(l covey.Locator) error {
	if err := l.Validate(); err != nil {
		return fmt.Errorf("drop %s: %w", l, err)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.drop(l); err != nil {
		return fmt.Errorf("drop %s from %s: %w", l, s.opts.Dir, err)
	}
	return nil
}

func (s *tier) drop(l covey.Locator) error {
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	s.mu.Lock()
	s.claimBlock(k)
	use, known := s.storedUse(l, k)
	e := s.table.find(&k.id)
	if e == nil || !s.table.has(e, l.Index) {
		s.mu.Unlock()
		s.unclaimBlock(k)
		return nil
	}
	f := s.open[k.id]
	if e.flags&flagHanded != 0 || f != nil && slices.Contains(f.held, k.index) || !known {
		s.mu.Unlock()
		s.unclaimBlock(k)
		return s.dropObject(l.Object)
	}
	s.table.unset(e, l.Index)
	s.discharge(l, k.id, use)
	s.table.account(e, l.Object, -use, false)
	s.drops++
	s.note(l.Object, k, change{gone: true, prior: true})
	// The last block takes the file with it, unless another is on its way in.
	last := e.count == 0 && s.claims[k.id] == 1
	if last {
		s.claims[k.id] = claimedWhole
		s.table.remove(e)
	}
	s.mu.Unlock()

	var err error
	if last {
		err = s.data.remove(k.id)
	} else {
		err = s.data.punch(k.id, l.Range())
	}
	s.unclaimBlock(k)
	return ignoreMissing(err)
}

// storedUse is the disk use of a block that is claimed, and whether that is known:
// of a coded object it is in the block's record. mu is held, and given up between.
func (s *tier) storedUse(l covey.Locator, k blockKey) (use int64, known bool) {
	use = blockUse(l.Object, l.Index)
	if s.codedLike(l.Object, k.id) != likeCoded {
		return use, true
	}
	s.mu.Unlock()
	r, err := s.record(k)
	s.mu.Lock()
	return r.use(l.Range().Len), err == nil
}

// discharge gives back the room of a block that takes use. mu is held.
func (s *tier) discharge(l covey.Locator, id covey.ObjectID, use int64) {
	plain := blockUse(l.Object, l.Index)
	s.charge(id, -plain)
	s.used += plain - use
}

// DropObject forgets an object: its file is unlinked, and every block of it is
// gone. Open handles and descriptors keep their bytes. Dropping what is not here
// is no error. A pin of the object stays, and keeps room for its blocks to come
// back: it is for bytes that are wrong. To make room, there is Evict.
func (s *tier) DropObject(o covey.Object) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("drop %s: %w", o.Key, err)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.dropObject(o); err != nil {
		return fmt.Errorf("drop %s from %s: %w", o.Key, s.opts.Dir, err)
	}
	return nil
}

func (s *tier) dropObject(o covey.Object) error {
	id := o.ID()
	s.mu.Lock()
	s.claimWhole(id)
	defer s.unclaimWhole(id)
	_, err := s.removeObject(o, id)
	return err
}

// removeObject forgets an object that is claimed, and returns the room that this
// gives back. mu is held, and given up.
func (s *tier) removeObject(o covey.Object, id covey.ObjectID) (freed int64, err error) {
	e := s.table.find(&id)
	if e == nil {
		s.mu.Unlock()
		return 0, nil
	}
	freed = s.table.objectUse(e, o)
	plain := s.table.plainUse(e, o)
	s.charge(id, -plain)
	s.used += plain - freed
	s.table.remove(e)
	s.pending.wipe(id, o)
	s.noted()
	s.drops++
	delete(s.open, id) // who reads it holds the file itself
	s.mu.Unlock()
	return freed, s.data.remove(id)
}
