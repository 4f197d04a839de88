package blockstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
)

// Put admits a block whose bytes have the given digest. It does not keep data.
// [covey.ErrFull] when no tier has room, or when the disks are so slow that too much
// waits to be synced; [covey.ErrReadOnly] when a disk fault stopped admission; the
// caller goes on without. The block can be read at once, and survives a power loss
// from the next group commit on.
//
// Putting a block that is already here is a no-op, except that its place is
// brought up to date. Of several calls for one block at once, one writes.
func (s *Store) Put(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error {
	if d.IsZero() {
		return fmt.Errorf("admit %s: no digest: %w", l, covey.ErrInvalid)
	}
	return s.admit(l, data, true, func(t *tier) error { return t.Put(l, p, d, data) })
}

// PutReplica is Put for a block that came from a neighbour, one of so many holders.
// It takes spare room only: it evicts nothing of a data set in use, and gives way to
// what is read from the origin, the replicas with most holders first.
func (s *Store) PutReplica(l covey.Locator, p covey.Place, d covey.Digest, data []byte, holders int) error {
	if d.IsZero() {
		return fmt.Errorf("admit %s: no digest: %w", l, covey.ErrInvalid)
	}
	many := holders >= manyHolders
	return s.admit(l, data, false, func(t *tier) error { return t.PutReplica(l, p, d, data, many) })
}

// Admit is Put for bytes whose digest nobody has computed yet: it does so while it
// writes them. Whether they are the right ones is for the caller to know, as it is
// with bytes that come from the origin.
func (s *Store) Admit(l covey.Locator, p covey.Place, data []byte) error {
	return s.admit(l, data, true, func(t *tier) error { return t.Admit(l, p, data) })
}

func (s *Store) admit(l covey.Locator, data []byte, primary bool, put func(*tier) error) error {
	if err := checkPut(l, covey.Place{}, data); err != nil {
		return fmt.Errorf("admit %s: %w", l, err)
	}
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	for t := range s.tiers() {
		if t.holds(k) {
			return t.inTurn(func() error { return put(t) })
		}
	}
	err := s.tryEach(l.Object, k.id, put)
	if !noRoom(err) {
		return err
	}
	n := newcomer{
		id: k.id, primary: primary, trades: s.opts.rules.of(l.Object).Policy.trades(),
		idle: s.opts.IdleAfter, now: time.Now(),
	}
	return s.makeWay(n, blockUse(l.Object, l.Index), func(t *tier) error { return t.inTurn(func() error { return put(t) }) }, err)
}

// PutEmpty makes an object of no blocks known, so that OpenWhole finds it.
func (s *Store) PutEmpty(o covey.Object) error {
	return s.tryEach(o, o.ID(), func(t *tier) error { return t.PutEmpty(o) })
}

// tryEach calls put with one tier after the other, in the order that suits the
// object, until one admits it.
func (s *Store) tryEach(o covey.Object, id covey.ObjectID, put func(*tier) error) error {
	var last error
	for _, t := range s.order(o, id) {
		err := t.inTurn(func() error { return put(t) })
		if err == nil && last != nil {
			s.mayBeSplit(id, t)
		}
		if err == nil || !passesOn(err) {
			return err
		}
		if last == nil || !noRoom(last) {
			last = err // that there is no room says more than that a tier is off
		}
	}
	if last == nil {
		return errNoTier
	}
	return last
}

// errNoTier is what an admission gets while no tier is in use.
var errNoTier = fmt.Errorf("no tier is in use: %w", covey.ErrReadOnly)

// passesOn reports whether another tier may admit what one refused.
func passesOn(err error) bool {
	return errors.Is(err, covey.ErrFull) || errors.Is(err, covey.ErrReadOnly) || errors.Is(err, covey.ErrUnavailable) ||
		isOSError(err)
}

// order returns the tiers in the order in which they should be asked to admit a
// block of the object: the one that is to keep all of it because it is pinned
// there, or else has most of it, or has room for all of it; then from the fastest
// to the slowest.
func (s *Store) order(o covey.Object, id covey.ObjectID) []*tier {
	list := make([]*tier, 0, len(s.shelves))
	first, best := -1, fit{}
	need := DiskUse(o)
	for t := range s.tiers() {
		if t.stalled() {
			continue
		}
		if f := t.fit(id, need); f.better(best) {
			first, best = len(list), f
		}
		list = append(list, t)
	}
	if first > 0 {
		t := list[first]
		copy(list[1:first+1], list[:first])
		list[0] = t
	}
	return list
}

// fit is how well an object goes into a tier.
type fit struct {
	pinned bool
	blocks int  // of the object that are here
	whole  bool // there is room for all of it
}

func (f fit) better(than fit) bool {
	switch {
	case f.pinned != than.pinned:
		return f.pinned
	case f.blocks != than.blocks:
		return f.blocks > than.blocks
	}
	return f.whole && !than.whole
}

func (s *tier) fit(id covey.ObjectID, need int64) fit {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := fit{pinned: s.pinned(id), whole: s.fault == nil && need <= s.spare()}
	if e := s.table.find(&id); e != nil {
		f.blocks = int(e.count)
	}
	return f
}

// spare is the room that is neither used nor kept for pins. mu is held.
func (s *tier) spare() int64 {
	return min(s.budget-s.used, s.room) - s.reserved
}

// Drop forgets one block (it was found to be wrong). Its bytes are cleared, so
// that not even a crash brings it back. Where somebody may be reading the block
// (a handle, or a descriptor given by OpenWhole), the whole object goes
// instead: its file is unlinked and stays as it is under its readers. Dropping
// what is not here is no error.
func (s *Store) Drop(l covey.Locator) error {
	s.moving.disturb(l.Object.ID())
	var errs []error
	for t := range s.tiers() {
		errs = append(errs, t.Drop(l))
	}
	return errors.Join(errs...)
}

// DropObject forgets an object: its files are unlinked, and every block of it is
// gone. Open handles and descriptors keep their bytes. Dropping what is not here
// is no error. A pin of the object stays, and keeps room for its blocks to come
// back: it is for bytes that are wrong. To make room, there is Evict.
func (s *Store) DropObject(o covey.Object) error {
	s.moving.disturb(o.ID())
	var errs []error
	for t := range s.tiers() {
		errs = append(errs, t.DropObject(o))
	}
	return errors.Join(errs...)
}

// Evict frees what an object takes, and returns how many bytes of the budgets that
// were: its files are unlinked. Open handles and descriptors keep their bytes, and
// the disk its space until the last of them is closed. An object that is not here
// frees nothing. [ErrPinned] when it is pinned.
func (s *Store) Evict(o covey.Object) (freed int64, err error) {
	if s.Stat(o).Pinned {
		return 0, fmt.Errorf("evict %s: %w", o.Key, ErrPinned)
	}
	s.moving.disturb(o.ID())
	var errs []error
	for t := range s.tiers() {
		n, err := t.Evict(o)
		freed += n
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}
