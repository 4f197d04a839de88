package blockstore

import (
	"encoding/hex"
	"errors"

	"github.com/covey-cache/covey"
)

// background does what takes long and nobody waits for: clearing out what a crash
// left, then checking large objects as OpenWhole asks for them.
func (s *tier) background(crashed bool) {
	defer s.done.Done()
	if s.at.exists(nameTrash) {
		if err := s.at.fs.RemoveAll(s.at.path(nameTrash)); err != nil {
			s.log.Warn("remove data without an index", "tier", s.opts.Dir, "err", err)
		}
	}
	if crashed {
		s.sweep()
		s.unswept.Store(false)
	}
	for {
		select {
		case <-s.stop:
			return
		case o := <-s.checks:
			if err := s.checkBlocks(o); err != nil && !errors.Is(err, errClosed) {
				s.log.Debug("check a whole object", "tier", s.opts.Dir, "key", o.Key, "err", err)
			}
			s.mu.Lock()
			delete(s.queued, o.ID())
			s.mu.Unlock()
		}
	}
}

// sweep gives back the space of blocks that were written but never got into the
// index: files of objects that it does not know, and ranges of those that it
// does. It runs after an unclean end only.
func (s *tier) sweep() {
	for b := range 256 {
		names, err := s.data.list(byte(b))
		if err != nil {
			s.log.Warn("look for what a crash left", "tier", s.opts.Dir, "err", err)
			return
		}
		for _, name := range names {
			select {
			case <-s.stop:
				return
			default:
			}
			var id covey.ObjectID
			if n, err := hex.Decode(id[:], []byte(name)); err != nil || n != len(id) || len(name) != 2*len(id) {
				continue // not ours
			}
			if err := s.sweepFile(id); err != nil {
				s.log.Warn("clear what a crash left", "tier", s.opts.Dir, "object", id.String(), "err", err)
			}
		}
	}
}

func (s *tier) sweepFile(id covey.ObjectID) error {
	s.mu.Lock()
	if e := s.table.find(&id); e != nil && e.count == e.blocks {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	var p presence
	err := s.index.get(objectKey(keyPresence, id), func(v []byte) (err error) {
		p, err = parsePresence(v)
		return err
	})
	unknown := errors.Is(err, covey.ErrNotFound)
	if err != nil && !unknown {
		return err
	}

	s.mu.Lock()
	s.claimWhole(id)
	defer s.unclaimWhole(id)
	e := s.table.find(&id)
	var absent []covey.Range
	if e != nil && !unknown {
		absent = s.absent(e, p.object())
	}
	handed := e != nil && e.flags&flagHanded != 0
	s.mu.Unlock()
	switch {
	case e == nil:
		return s.data.remove(id)
	case unknown:
		return nil // it came after the crash
	case handed, len(absent) > 0 && s.wasWhole(id, p.size):
		return nil // somebody may be reading what the index has not
	}
	for _, r := range absent {
		if err := s.data.punch(id, r); err != nil {
			return ignoreMissing(err)
		}
	}
	return nil
}

// absent returns the ranges of an object that are not here. mu is held.
func (s *tier) absent(e *entry, o covey.Object) []covey.Range {
	var runs []covey.Range
	for i := range int(e.blocks) {
		if s.table.has(e, i) {
			continue
		}
		r := o.BlockRange(i)
		if n := len(runs); n > 0 && runs[n-1].End() == r.Off {
			runs[n-1].Len += r.Len
		} else {
			runs = append(runs, r)
		}
	}
	return runs
}
