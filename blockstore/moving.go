package blockstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/covey-cache/covey"
)

// moving is the object that a store moves to another tier just now, for those who drop
// or evict it meanwhile: they go from tier to tier, and what they take out of one
// must not come back from the other.
type moving struct {
	mu        sync.Mutex // a leaf lock
	id        covey.ObjectID
	on        bool
	disturbed bool // somebody dropped or evicted something of it
}

func (m *moving) begin(id covey.ObjectID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id, m.on, m.disturbed = id, true, false
}

func (m *moving) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = false
}

// disturb is called before the first tier is looked at: a copy that was made before
// is found there, and one that is made later is taken back by the mover.
func (m *moving) disturb(id covey.ObjectID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disturbed = m.disturbed || m.on && m.id == id
}

func (m *moving) isDisturbed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disturbed
}

// errDisturbed ends the move of an object that was dropped or evicted meanwhile.
var errDisturbed = errors.New("it was dropped or evicted while it was moved")

// pinAlso pins an object where it goes to, if it is pinned where it is, and reports
// whether it did: then it has two pins until one is given up.
func (s *Store) pinAlso(o covey.Object, id covey.ObjectID, from, to *tier) (second bool, err error) {
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	if !from.keeps(id) || to.keeps(id) {
		return false, nil
	}
	if err := to.Pin(o); err != nil {
		return false, err
	}
	return true, nil
}

// pinOnce ends the pin of an object in one tier if it has another in the other. One
// that its owner ended meanwhile is in neither.
func (s *Store) pinOnce(o covey.Object, id covey.ObjectID, in, not *tier) error {
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	if !in.keeps(id) || !not.keeps(id) {
		return nil
	}
	return not.Unpin(o)
}

// copyBlock copies one block. Its bytes are compared with its digest, since they get a
// checksum of their own: what was damaged on one disk must not be in order on the
// other.
func (m *mover) copyBlock(l covey.Locator, k blockKey, from, to *tier, buf []byte) error {
	fresh, err := readWhole(l, k, from, buf)
	if err != nil {
		return err
	}
	if covey.Sum(buf) != fresh.digest {
		from.readFailed(l, errMismatch)
		return fmt.Errorf("copy %s: %w", l, covey.ErrNotFound)
	}
	if err := to.inTurn(func() error { return to.admitBlock(l, fresh, buf) }); err != nil {
		return err
	}
	if m.s.moving.isDisturbed() {
		return errors.Join(errDisturbed, to.Drop(l))
	}
	return nil
}

// readWhole reads a block into buf, which is as long, and returns what to admit it
// with.
func readWhole(l covey.Locator, k blockKey, from *tier, buf []byte) (record, error) {
	h, err := from.guardedGet(l)
	if err != nil {
		return record{}, err
	}
	defer h.Release()
	if _, err := h.ReadAt(buf, 0); err != nil {
		return record{}, err
	}
	r, err := from.record(k)
	return record{digest: h.Digest(), place: r.place, from: from.provenance(k)}, err
}
