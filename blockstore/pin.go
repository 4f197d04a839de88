package blockstore

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/covey-cache/covey"
)

// NoRoomError says that a pin would not fit. It wraps [covey.ErrFull].
type NoRoomError struct {
	// Missing is how many bytes more the tier would need.
	Missing int64
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("%d bytes are missing: %v", e.Missing, covey.ErrFull)
}

func (e *NoRoomError) Unwrap() error { return covey.ErrFull }

// ErrPinned says that an object is not evicted because it is pinned. It wraps
// [covey.ErrReadOnly], without its words: the call is a good one, and works once the
// pin is ended.
var ErrPinned error = pinnedError{}

type pinnedError struct{}

func (pinnedError) Error() string { return "pinned; unpin first" }
func (pinnedError) Unwrap() error { return covey.ErrReadOnly }

// Pin guarantees that every block of the object can be admitted and is not
// evicted: room for what is not here is taken out of the budget, and nobody else
// gets it. The pin is durable when Pin returns; the blocks are whoever's fetches
// them. Pinning again does nothing.
//
// A [NoRoomError] when it does not fit beside what is here; Evict makes room.
// [covey.ErrReadOnly] when a disk fault stopped admission.
func (s *tier) Pin(o covey.Object) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("pin %s: %w", o.Key, err)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.pin(o, o.ID()); err != nil {
		return fmt.Errorf("pin %s in %s: %w", o.Key, s.opts.Dir, kind(err))
	}
	return nil
}

func (s *tier) pin(o covey.Object, id covey.ObjectID) error {
	s.mu.Lock()
	s.claimWhole(id) // nothing of it is on its way in or out
	defer s.unclaimWhole(id)
	if s.pinned(id) {
		s.mu.Unlock()
		return nil
	}
	missing := s.missing(o, id)
	if err := s.fits(missing); err != nil {
		s.mu.Unlock()
		return err
	}
	s.pins[id] = struct{}{}
	s.reserved += missing
	s.mu.Unlock()
	err := s.writePin(id, encodeObject(o))
	if err != nil {
		s.mu.Lock()
		s.forgetPin(o, id)
		s.mu.Unlock()
	}
	return err
}

// fits reports whether that much more can be kept for pins. mu is held.
func (s *tier) fits(missing int64) error {
	lack := max(s.used+s.reserved+missing-s.budget, s.reserved+missing-s.room)
	switch {
	case s.fault != nil:
		return fmt.Errorf("admission stopped: %w: %w", s.fault, covey.ErrReadOnly)
	case missing > 0 && lack > 0:
		return &NoRoomError{Missing: lack}
	}
	return nil
}

// Unpin ends a pin, durably. What is here stays until it is evicted. Unpinning
// what is not pinned is no error.
func (s *tier) Unpin(o covey.Object) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("unpin %s: %w", o.Key, err)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.unpin(o, o.ID()); err != nil {
		return fmt.Errorf("unpin %s in %s: %w", o.Key, s.opts.Dir, kind(err))
	}
	return nil
}

func (s *tier) unpin(o covey.Object, id covey.ObjectID) error {
	s.mu.Lock()
	s.claimWhole(id)
	defer s.unclaimWhole(id)
	pinned := s.pinned(id)
	s.mu.Unlock()
	if !pinned {
		return nil
	}
	if err := s.writePin(id, nil); err != nil {
		return err
	}
	s.mu.Lock()
	s.forgetPin(o, id)
	s.mu.Unlock()
	return nil
}

// pinned reports whether an object is pinned. mu is held.
func (s *tier) pinned(id covey.ObjectID) bool {
	_, ok := s.pins[id]
	return ok
}

// forgetPin takes a pin back. The object is claimed and mu is held.
func (s *tier) forgetPin(o covey.Object, id covey.ObjectID) {
	s.reserved -= s.missing(o, id)
	delete(s.pins, id)
}

// missing is the disk use of the blocks that are not here, of an object that
// nobody writes to. mu is held.
func (s *tier) missing(o covey.Object, id covey.ObjectID) int64 {
	n := DiskUse(o)
	if e := s.table.find(&id); e != nil {
		n -= s.table.plainUse(e, o)
	}
	return n
}

// DiskUse is what all blocks of an object take of a budget, in bytes: each rounded
// up to what file systems allocate.
func DiskUse(o covey.Object) int64 {
	n := o.Blocks()
	if n == 0 {
		return 0
	}
	return int64(n-1)*diskUse(o.BlockSize) + blockUse(o, n-1)
}

// writePin makes a pin durable, or with a nil value the end of one.
func (s *tier) writePin(id covey.ObjectID, value []byte) error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	err := s.index.write(func(b *pebble.Batch) error {
		if value == nil {
			return b.Delete(objectKey(keyPin, id), nil)
		}
		return b.Set(objectKey(keyPin, id), value, nil)
	})
	if err != nil {
		s.indexFailed(err)
	}
	return err
}

// loadPins reads the pins, after the table. When the budget has shrunk below
// what they need, they stay: what is pinned is admitted as far as it goes, and
// nothing else is.
func (s *tier) loadPins() error {
	_, err := s.index.scan([]byte{keyPin}, []byte{keyPin + 1}, -1, func(k, v []byte) error {
		o, err := parseObject(v)
		if err != nil {
			return err
		}
		id := o.ID()
		if string(k[1:]) != string(id[:]) {
			return badRecord("pin", v)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pins[id] = struct{}{}
		s.reserved += s.missing(o, id)
		return nil
	})
	return err
}
