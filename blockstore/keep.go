package blockstore

import (
	"errors"
	"fmt"

	"github.com/covey-cache/covey"
)

// Pin guarantees that every block of the object can be admitted and is not
// evicted: room for what is not here is taken out of one tier's budget, and nobody
// else gets it. The pin is durable when Pin returns; the blocks are whoever's fetches
// them. Pinning again does nothing.
//
// A [NoRoomError] when it does not fit beside what is here; Evict makes room.
// [covey.ErrReadOnly] when disk faults stopped admission.
func (s *Store) Pin(o covey.Object) error {
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	if s.Stat(o).Pinned {
		return nil
	}
	var least *NoRoomError
	err := errNoTier
	for _, t := range s.order(o, o.ID()) {
		if err = t.Pin(o); err == nil || !passesOn(err) {
			return err
		}
		var room *NoRoomError
		if errors.As(err, &room) && (least == nil || room.Missing < least.Missing) {
			least = room
		}
	}
	if least != nil {
		return fmt.Errorf("pin %s in any tier: %w", o.Key, least)
	}
	return err
}

// Unpin ends a pin, durably. What is here stays until it is evicted. Unpinning
// what is not pinned is no error.
func (s *Store) Unpin(o covey.Object) error {
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	var errs []error
	for t := range s.tiers() {
		errs = append(errs, t.Unpin(o))
	}
	return errors.Join(errs...)
}
