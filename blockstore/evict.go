package blockstore

import (
	"fmt"

	"github.com/covey-cache/covey"
)

// Evict frees what an object takes, and returns how many bytes of the budget that
// were: its file is unlinked. Open handles and descriptors keep their bytes, and
// the disk its space until the last of them is closed. An object that is not here
// frees nothing. [ErrPinned] when it is pinned.
func (s *tier) Evict(o covey.Object) (freed int64, err error) {
	if err := o.Validate(); err != nil {
		return 0, fmt.Errorf("evict %s: %w", o.Key, err)
	}
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	if freed, err = s.evict(o, o.ID()); err != nil {
		return freed, fmt.Errorf("evict %s from %s: %w", o.Key, s.opts.Dir, err)
	}
	return freed, nil
}

func (s *tier) evict(o covey.Object, id covey.ObjectID) (freed int64, err error) {
	s.mu.Lock()
	s.claimWhole(id)
	defer s.unclaimWhole(id)
	if s.pinned(id) {
		s.mu.Unlock()
		return 0, ErrPinned
	}
	freed, err = s.removeObject(o, id)
	if freed > 0 {
		s.metrics.evicted.Inc()
	}
	return freed, err
}
