package blockstore

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

const (
	// stallAfter is how long a disk may complete nothing while somebody waits for it,
	// before it is passed by: ten times what a busy hard disk takes for one request,
	// and half of what a reader may lose.
	stallAfter = time.Second
	// patience bounds one call while the disk does answer others: a sector that is
	// tried again for half a minute, or the check of 64 MiB on a hard disk under load.
	patience = 5 * time.Second
	// maxWriters is how many blocks are written to one tier at once. A disk that
	// stalls holds as many buffers of its callers, 64 MiB of 4-MiB blocks, a quarter
	// of the staging area; more would not be faster.
	maxWriters = 16
)

// errStalled says that a disk does not answer. What it holds is not gone.
var errStalled = fmt.Errorf("the disk does not answer: %w", covey.ErrUnavailable)

// pulse tells a disk that answers from one that does not. Reads and writes have one
// each: a disk may serve what it has in memory and take nothing.
type pulse struct {
	reads, writes side
	// exempt is set where nothing can stall: on a file system in memory.
	exempt  bool
	writers chan struct{} // a token for each that may write
}

// beat notes that the disk completed something.
func (s *tier) beat(of *side) {
	of.beats.Add(1)
	if of.stalled.Load() && of.stalled.Swap(false) && !s.stalled() {
		s.log.Info("cache tier answers again", "tier", s.opts.Dir)
	}
}

func (s *tier) stall(of *side) {
	if was := s.stalled(); !of.stalled.Swap(true) && !was {
		s.metrics.stalls.Inc()
		s.log.Warn("cache tier is passed by until its disk answers", "tier", s.opts.Dir, "waited", stallAfter)
	}
}

// await waits for done, and reports false when the disk does not answer.
func await[T any](s *tier, of *side, done <-chan T) (v T, ok bool) {
	began, beats := time.Now(), of.beats.Load()
	timer := time.NewTimer(stallAfter)
	defer timer.Stop()
	for {
		select {
		case v = <-done:
			return v, true
		case <-timer.C:
		}
		now := of.beats.Load()
		switch {
		case now == beats:
			s.stall(of)
			return v, false
		case time.Since(began) >= patience:
			return v, false // others are served: only this call is given up
		}
		beats = now
		timer.Reset(stallAfter)
	}
}

// guard runs a read that may wait for the disk, and gives up waiting when that does not
// answer. What comes after that is given to drop. While the disk is known not to
// answer nothing is tried; the completion of what waits for it ends that.
func guard[T any](s *tier, run func() (T, error), drop func(T)) (T, error) {
	if s.exempt {
		return run()
	}
	type result struct {
		v   T
		err error
	}
	if s.reads.stalled.Load() {
		return result{}.v, errStalled
	}
	done := make(chan result, 1)
	var left atomic.Bool // the caller, or the result
	go func() {
		v, err := run()
		s.beat(&s.reads)
		if left.Swap(true) {
			// Whoever gave up may have called the disk stalled since the beat.
			s.beat(&s.reads)
			if err == nil {
				drop(v)
			}
			return
		}
		done <- result{v, err}
	}()
	r, ok := await(s, &s.reads, done)
	if ok || !left.Swap(true) {
		if !ok {
			return r.v, errStalled
		}
		return r.v, r.err
	}
	r = <-done // it came at the last moment, before the disk was called stalled
	s.beat(&s.reads)
	return r.v, r.err
}

// inTurn waits for a place among the writers of the tier, and calls put in it.
func (s *tier) inTurn(put func() error) error {
	if s.exempt {
		return put()
	}
	if s.stalled() {
		return errStalled
	}
	if _, ok := await(s, &s.writes, s.writers); !ok {
		// The last writer may have ended just before the disk was called stalled:
		// then it left its place here, and nobody else would ever take that back.
		select {
		case <-s.writers:
			s.beat(&s.writes)
		default:
			return errStalled
		}
	}
	defer func() {
		s.writers <- struct{}{} // before the beat: see above
		s.beat(&s.writes)
	}()
	return put()
}

// side is a pulse's of reads, or of writes.
type side struct {
	beats   atomic.Uint64 // completed
	stalled atomic.Bool
}

// stalled reports whether the tier is to be passed by.
func (p *pulse) stalled() bool { return p.reads.stalled.Load() || p.writes.stalled.Load() }

func (p *pulse) begin(exempt bool) {
	p.exempt, p.writers = exempt, make(chan struct{}, maxWriters)
	for range maxWriters {
		p.writers <- struct{}{}
	}
}

// ReadAt reads from the file: what the page cache has directly, what is on the disk
// into memory of its own, so that a caller who gives up has its buffer back.
func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	if f.tier == nil || f.tier.exempt {
		return f.dataFile.ReadAt(p, off)
	}
	n := readCached(f.dataFile, p, off)
	for n < len(p) {
		part := p[n:min(len(p), n+readAside)]
		m, err := f.readDisk(part, off+int64(n))
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// readCached reads as much as can be had without waiting. Where the file system
// cannot tell, that is nothing.
func readCached(f dataFile, p []byte, off int64) int {
	file, ok := f.(*os.File)
	if !ok {
		return 0
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = raw.Read(func(fd uintptr) bool { // what it cannot read is read below
		n, err = unix.Preadv2(int(fd), [][]byte{p}, off, unix.RWF_NOWAIT)
		return true
	})
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// readAside is how much is read from the disk at a time.
const readAside = 1 << 20

var asideBuffers = sync.Pool{New: func() any { b := make([]byte, readAside); return &b }}

// readDisk reads into p through a buffer that outlives a caller who gives up.
func (f *openFile) readDisk(p []byte, off int64) (int, error) {
	type read struct {
		buf *[]byte
		n   int
		err error
	}
	want := len(p)
	r, err := guard(f.tier, func() (read, error) {
		r := read{buf: asideBuffers.Get().(*[]byte)}
		r.n, r.err = f.dataFile.ReadAt((*r.buf)[:want], off)
		return r, nil
	}, func(r read) { asideBuffers.Put(r.buf) })
	if err != nil {
		return 0, err
	}
	defer asideBuffers.Put(r.buf)
	copy(p, (*r.buf)[:r.n])
	return r.n, r.err
}

// isStall reports whether an error says only that the disk did not answer.
func isStall(err error) bool { return errors.Is(err, errStalled) }
