package blockstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"

	"github.com/covey-cache/covey"
)

// Handle is a hold on one cached block (or on a part of memory that stands for
// one). The bytes stay readable until Release, whatever is evicted. Release
// exactly once.
type Handle interface {
	io.ReaderAt
	// Len is the block's length in bytes.
	Len() int
	// Digest is what the bytes were verified against when they were admitted.
	Digest() covey.Digest
	Release()
}

// openFile is an object's file while there are handles on it. All handles of an
// object share one descriptor.
type openFile struct {
	dataFile
	tier *tier // nil in tests of a file alone
	id   covey.ObjectID
	// held has the index of each handle's block. tier.mu guards it.
	held []uint32
}

// handle is a Handle on a block in a file.
type handle struct {
	s        *tier
	f        *openFile
	l        covey.Locator
	off      int64
	len      int
	r        record
	released atomic.Bool
}

// Get holds a cached block; [covey.ErrNotFound] when it is not here.
//
// The first Get of a block in the store's life reads all of it and compares its
// CRC32C, unless it was admitted in this life; after an unclean end, the blocks
// that the last group touched are compared with their digests as well. From
// then on ReadAt is a plain read of the file. A block that does not match, or
// cannot be read, is dropped and counted, and Get says ErrNotFound.
// [covey.ErrUnavailable] when the process is out of descriptors.
func (s *tier) Get(l covey.Locator) (Handle, error) {
	if err := l.Validate(); err != nil {
		return nil, fmt.Errorf("get %s: %w", l, err)
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	h, err := s.get(l)
	if err != nil {
		return nil, fmt.Errorf("get %s from %s: %w", l, s.opts.Dir, err)
	}
	return h, nil
}

func (s *tier) get(l covey.Locator) (*handle, error) {
	s.inUse()
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	f, seen, suspect, err := s.hold(k)
	if err != nil {
		return nil, s.unreadable(l, err)
	}
	s.touch(k)
	r, err := s.record(k)
	if err != nil {
		s.letGo(f, l.Index)
		return nil, s.unreadable(l, err)
	}
	rng := l.Range()
	h := &handle{s: s, f: f, l: l, off: rng.Off, len: int(rng.Len), r: r}
	if seen {
		return h, nil
	}
	if err := h.verify(suspect); err != nil {
		s.letGo(f, l.Index)
		return nil, s.unreadable(l, err)
	}
	s.mu.Lock()
	if e := s.table.find(&k.id); e != nil && s.open[k.id] == f && s.table.has(e, l.Index) {
		s.table.mark(e, l.Index)
	}
	s.mu.Unlock()
	return h, nil
}

// hold opens the object's file, for a block that is here.
func (s *tier) hold(k blockKey) (f *openFile, seen, suspect bool, err error) {
	var opened uint64 // drops before f was opened
	for {
		s.mu.Lock()
		e := s.table.find(&k.id)
		if e == nil || !s.table.has(e, int(k.index)) {
			s.mu.Unlock()
			if f != nil {
				f.Close()
			}
			return nil, false, false, covey.ErrNotFound
		}
		seen, suspect = s.table.seen(e, int(k.index)), e.flags&flagSuspect != 0
		drops := s.drops
		switch shared := s.open[k.id]; {
		case shared != nil:
			shared.held = append(shared.held, k.index)
			s.mu.Unlock()
			if f != nil {
				f.Close()
			}
			return shared, seen, suspect, nil
		case f != nil && opened == drops:
			// Nothing was dropped since before it was opened.
			f.held = append(f.held, k.index)
			s.open[k.id] = f
			s.mu.Unlock()
			return f, seen, suspect, nil
		}
		s.mu.Unlock()
		if f != nil {
			f.Close()
		}
		file, err := s.data.open(k.id)
		if err != nil {
			return nil, false, false, err
		}
		f, opened = &openFile{dataFile: file, tier: s, id: k.id}, drops
	}
}

// letGo ends a handle's hold on block i.
func (s *tier) letGo(f *openFile, i int) {
	s.mu.Lock()
	at := slices.Index(f.held, uint32(i))
	f.held = slices.Delete(f.held, at, at+1)
	last := len(f.held) == 0
	if last && s.open[f.id] == f {
		delete(s.open, f.id)
	}
	s.mu.Unlock()
	if last {
		f.Close()
	}
}

// errMismatch says that a block's bytes are not those that were admitted.
var errMismatch = fmt.Errorf("bytes on disk changed: %w", covey.ErrCorrupt)

// checkBuffers hold one read of a check: large enough that the system call is a
// fiftieth of the copy, small enough to stay in the second-level cache.
var checkBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// verify reads the block and compares its checksum, and its digest if asked to.
func (h *handle) verify(digest bool) error {
	r := h.r
	if r.coding != nil {
		return h.verifyCoded(digest)
	}
	buf := checkBuffers.Get().(*[]byte)
	defer checkBuffers.Put(buf)
	var sum uint32
	var hasher *blake3.Hasher
	if digest {
		hasher = blake3.New()
	}
	for done := 0; done < h.len; {
		p := (*buf)[:min(len(*buf), h.len-done)]
		n, err := h.f.dataFile.ReadAt(p, h.off+int64(done)) // within a guard already
		h.s.beat(&h.s.reads)
		if n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				return fmt.Errorf("file ends within the block: %w", errMismatch)
			}
			return err
		}
		sum = crc32.Update(sum, castagnoli, p)
		if digest {
			_, _ = hasher.Write(p) // a hash takes everything
		}
		done += n
	}
	if sum != r.crc {
		return errMismatch
	}
	if digest && covey.Digest(hasher.Sum(nil)) != r.digest {
		return errMismatch
	}
	return nil
}

// unreadable handles the error of a block that should be here, and returns what
// the caller is told: the block is dropped unless only the process is short of
// something.
func (s *tier) unreadable(l covey.Locator, err error) error {
	switch {
	case errors.Is(err, covey.ErrNotFound) && !errors.Is(err, fs.ErrNotExist):
		return covey.ErrNotFound // not here, or dropped while we looked
	case isTransient(err) || errors.Is(err, errIndexGone) || errors.Is(err, errNoKey):
		return fmt.Errorf("%w: %w", err, covey.ErrUnavailable)
	}
	s.log.Warn("cached block dropped: it cannot be read back",
		"tier", s.opts.Dir, "key", l.Key, "block", l.Index, "err", err)
	if errors.Is(err, errMismatch) {
		s.metrics.corrupt.Inc()
		if s.opts.OnCorrupt != nil {
			s.opts.OnCorrupt(l)
		}
	} else {
		s.metrics.unreadable.Inc()
	}
	drop, lost := func() error { return s.drop(l) }, s.places(l.Object, l.Index, l.Index+1)
	if errors.Is(err, fs.ErrNotExist) || isPlanted(err) {
		// No file, or somebody's link.
		drop, lost = func() error { return s.dropObject(l.Object) }, s.places(l.Object, 0, l.Blocks())
	}
	err = drop()
	s.lose(lost)
	if err != nil {
		s.log.Debug("drop a cached block", "tier", s.opts.Dir, "err", err)
	}
	return covey.ErrNotFound
}

// placed is a block and where it is advertised.
type placed struct {
	covey.Locator
	place covey.Place
}

// places returns those blocks of an object, from the first to before the end, that
// are here. Nothing is asked when nobody wants to know.
func (s *tier) places(o covey.Object, first, end int) (list []placed) {
	if s.opts.OnLost == nil {
		return nil
	}
	id := o.ID()
	for i := first; i < end; i++ {
		if k := (blockKey{id, uint32(i)}); s.holds(k) {
			r, _ := s.record(k) // without one, the place is not known
			list = append(list, placed{o.Block(i), r.place})
		}
	}
	return list
}

// lose tells of those blocks that are really gone.
func (s *tier) lose(list []placed) {
	for _, b := range list {
		if !s.holds(blockKey{b.Object.ID(), uint32(b.Index)}) {
			s.opts.OnLost(b.Locator, b.place)
		}
	}
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ReadAt reads from the block, with off counted from its start. A disk that
// cannot read it back drops the block; the error wraps [covey.ErrUnavailable],
// and the next Get says ErrNotFound.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", h.l, off, covey.ErrInvalid)
	}
	if off >= int64(h.len) {
		return 0, io.EOF
	}
	short := int64(len(p)) > int64(h.len)-off
	if short {
		p = p[:int64(h.len)-off]
	}
	h.s.inUse()
	n, err := h.readAt(p, off)
	if n == len(p) {
		if short {
			return n, io.EOF
		}
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("file ends within the block: %w", errMismatch)
	}
	h.s.readFailed(h.l, err)
	return n, fmt.Errorf("read %s from %s: %w: %w", h.l, h.s.opts.Dir, err, covey.ErrUnavailable)
}

// readFailed drops a block under a handle, if the store still has it.
func (s *tier) readFailed(l covey.Locator, err error) {
	if s.enter() != nil {
		return
	}
	defer s.leave()
	_ = s.unreadable(l, err) // the caller has the error it needs
}

func (h *handle) Len() int             { return h.len }
func (h *handle) Digest() covey.Digest { return h.r.digest }

func (h *handle) Release() {
	if h.released.Swap(true) {
		panic("blockstore: handle released twice")
	}
	h.s.letGo(h.f, h.l.Index)
}
