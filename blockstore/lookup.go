package blockstore

import (
	"fmt"
	"os"

	"github.com/covey-cache/covey"
)

// errNotHere is what a look-up of something that is in no tier gets.
var errNotHere = fmt.Errorf("it is in no tier: %w", covey.ErrNotFound)

// Get holds a cached block; [covey.ErrNotFound] when it is not here.
//
// The first Get of a block in the store's life reads all of it and compares its
// CRC32C, unless it was admitted in this life; after an unclean end, the blocks
// that the last group touched are compared with their digests as well. From
// then on ReadAt is a plain read of the file. A block that does not match, or
// cannot be read, is dropped and counted, and Get says ErrNotFound.
// [covey.ErrUnavailable] when the process is out of descriptors.
func (s *Store) Get(l covey.Locator) (h Handle, err error) {
	if err := l.Validate(); err != nil {
		return nil, fmt.Errorf("get %s: %w", l, err)
	}
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	s.settled(func() bool {
		err = errNotHere
		for t := range s.tiers() {
			if !t.holds(k) {
				continue
			}
			var e error
			if h, e = t.guardedGet(l); e == nil {
				err = nil
				return true
			}
			err = worse(err, e)
		}
		return false
	})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", l, err)
	}
	return h, nil
}

// holds reports whether a block is here, without I/O.
func (s *tier) holds(k blockKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table.find(&k.id)
	return e != nil && int(k.index) < int(e.blocks) && s.table.has(e, int(k.index))
}

func (s *tier) guardedGet(l covey.Locator) (Handle, error) {
	return guard(s, func() (Handle, error) { return s.Get(l) }, func(h Handle) { h.Release() })
}

func (s *tier) guardedOpen(o covey.Object) (*os.File, error) {
	return guard(s, func() (*os.File, error) { return s.OpenWhole(o) }, func(f *os.File) { f.Close() })
}

// OpenWhole opens the object's file for reading when every block is here, in one
// tier; [covey.ErrNotFound] otherwise. The file may be unlinked while it is open, and
// is never changed below its size. The caller closes it.
//
// Every block is checked once in the store's life before the file is given away
// (see [Store.Get]). Blocks admitted in this life count as checked. Objects of
// up to 64 MiB are checked at once; a larger one that has unchecked blocks is
// queued, and OpenWhole says ErrNotFound until that is done. Only a tier on the
// operating system's file system has descriptors to give; on any other the
// answer is ErrNotFound as well.
func (s *Store) OpenWhole(o covey.Object) (f *os.File, err error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Key, err)
	}
	id := o.ID()
	s.settled(func() bool {
		err = errNotHere
		for t := range s.tiers() {
			if t.blocksOf(id) < o.Blocks() {
				continue
			}
			var e error
			if f, e = t.guardedOpen(o); e == nil {
				err = nil
				return true
			}
			err = worse(err, e)
		}
		return false
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Key, err)
	}
	return f, nil
}

// blocksOf returns how many blocks of an object are here, -1 when the tier does
// not know it.
func (s *tier) blocksOf(id covey.ObjectID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		return int(e.count)
	}
	return -1
}

// Present returns which blocks of the extent are here, without I/O. A block that
// was not read in this life may yet turn out to be damaged, and Get then drops
// it.
func (s *Store) Present(e *covey.Extent) (have covey.Bitmap) {
	ids := s.extents.ids(e)
	s.settled(func() bool {
		have = 0
		for t := range s.tiers() {
			have |= t.present(e, ids)
		}
		return have == e.All()
	})
	return have
}
