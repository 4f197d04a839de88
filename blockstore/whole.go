package blockstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/covey-cache/covey"
)

const (
	// checkInline is the largest object that OpenWhole checks while its caller
	// waits: about 10 ms from a warm page cache, 50 ms from an NVMe disk. Larger
	// ones are checked in the background while the daemon serves them.
	checkInline int64 = 64 << 20
	// maxChecks bounds the objects that wait for the background check. One that
	// does not get in is asked for again at its next open.
	maxChecks = 256
)

// OpenWhole opens the object's file for reading when every block is here;
// [covey.ErrNotFound] otherwise. The file may be unlinked while it is open, and
// is never changed below its size. The caller closes it.
//
// Every block is checked once in the store's life before the file is given away
// (see [tier.Get]). Blocks admitted in this life count as checked. Objects of
// up to 64 MiB are checked at once; a larger one that has unchecked blocks is
// queued, and OpenWhole says ErrNotFound until that is done. Only a store on the
// operating system's file system has descriptors to give; on any other the
// answer is ErrNotFound as well, and so it is for objects that are compressed or
// encrypted on disk.
func (s *tier) OpenWhole(o covey.Object) (*os.File, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Key, err)
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	f, err := s.openWhole(o, o.ID())
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", o.Key, s.opts.Dir, err)
	}
	return f, nil
}

var errCoded = fmt.Errorf("object is compressed or encrypted on disk: %w", covey.ErrNotFound)

var errUnchecked = fmt.Errorf("object is yet to be checked: %w", covey.ErrNotFound)

func (s *tier) openWhole(o covey.Object, id covey.ObjectID) (*os.File, error) {
	for {
		drops, err := s.offer(id)
		switch {
		case errors.Is(err, errUnchecked) && s.at.os:
			if err := s.check(o, id); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, err
		}
		f, err := s.data.descriptor(id)
		switch {
		case errors.Is(err, errNoDescriptor):
			return nil, fmt.Errorf("%w: %w", err, covey.ErrNotFound)
		case err != nil:
			return nil, s.lost(o, err)
		}
		if info, err := f.Stat(); err != nil || info.Size() != o.Size {
			f.Close()
			return nil, s.lost(o, errors.Join(err, errMismatch))
		}
		if s.hand(id, drops) {
			return f, nil
		}
		f.Close()
	}
}

// offer reports how many drops there were when the object was whole and checked.
func (s *tier) offer(id covey.ObjectID) (drops uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table.find(&id)
	switch {
	case e == nil || e.count != e.blocks:
		return 0, covey.ErrNotFound
	case e.flags&flagCoded != 0:
		return 0, errCoded
	case s.table.checked(e) != int(e.blocks):
		return 0, errUnchecked
	}
	return s.drops, nil
}

// hand notes that the file is given away, unless something was dropped since
// offer: then what was opened may be another file.
func (s *tier) hand(id covey.ObjectID, drops uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table.find(&id)
	if s.drops != drops || e == nil || e.count != e.blocks || e.flags&flagCoded != 0 {
		return false
	}
	e.flags |= flagHanded
	s.useEntry(e)
	return true
}

// lost drops an object whose file is not what the index says.
func (s *tier) lost(o covey.Object, err error) error {
	if isTransient(err) {
		return fmt.Errorf("%w: %w", err, covey.ErrUnavailable)
	}
	if o.Blocks() == 0 || errors.Is(err, fs.ErrNotExist) || isPlanted(err) {
		s.log.Warn("cached object dropped: its file is damaged", "tier", s.opts.Dir, "key", o.Key, "err", err)
		_ = s.dropObject(o) // it is gone from the table either way
		return covey.ErrNotFound
	}
	// A block at a time finds out which ones are wrong, and reports those.
	s.mu.Lock()
	s.unmark(o.ID())
	s.mu.Unlock()
	if err := s.checkBlocks(o); err != nil {
		return err
	}
	_ = s.dropObject(o) // all blocks are right, yet the file is too long
	return covey.ErrNotFound
}

// unmark makes every block of the object unchecked. mu is held.
func (s *tier) unmark(id covey.ObjectID) {
	e := s.table.find(&id)
	if e == nil {
		return
	}
	e.seen = 0
	if b := s.table.big[e.slot]; b != nil {
		clear(b.seen)
		b.checked = 0
	}
}

// check checks the blocks of a whole object, or sees to it that it is done.
func (s *tier) check(o covey.Object, id covey.ObjectID) error {
	if o.Size <= checkInline {
		return s.checkBlocks(o)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, queued := s.queued[id]; !queued {
		select {
		case s.checks <- o:
			s.queued[id] = struct{}{}
		default:
		}
	}
	return errUnchecked
}

// checkBlocks checks what is unchecked of an object. It stops at the first block
// that is not there, and when the store closes.
func (s *tier) checkBlocks(o covey.Object) error {
	id := o.ID()
	for i := range o.Blocks() {
		select {
		case <-s.stop:
			return errClosed
		default:
		}
		s.mu.Lock()
		e := s.table.find(&id)
		done := e != nil && s.table.seen(e, i)
		s.mu.Unlock()
		if done {
			continue
		}
		h, err := s.get(o.Block(i))
		if err != nil {
			return err
		}
		h.Release()
	}
	return nil
}
