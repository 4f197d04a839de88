package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// TierState is what can be had of a tier.
type TierState string

// The states of a tier.
const (
	TierOK       TierState = "ok"
	TierReadOnly TierState = "read-only" // a fault stopped admission
	TierStalled  TierState = "stalled"   // its disk does not answer; it is passed by until it does
	TierOff      TierState = "off"       // it cannot be opened
)

// shelf is a tier's place in the store: a directory as it was configured, and the
// tier in it for as long as that can be used.
type shelf struct {
	opts Options // its own, with defaults
	log  *slog.Logger
	at   atomic.Pointer[tier]

	// reviving lets one revival run at a time, and guards closed. It is taken before
	// mu.
	reviving sync.Mutex
	closed   bool

	// mu is a leaf lock and guards all below.
	mu sync.Mutex
	// why says what keeps the tier from being opened, nil while it is.
	why error
	// next is when it is tried again, after which the pause is doubled.
	next  time.Time
	pause time.Duration
	since time.Time // it was opened
}

// The pauses between attempts to bring a failed tier back. The first is long enough
// for a reset of its controller; the last costs nothing and needs no restart of the
// agent once somebody mended the disk.
const (
	minRevivePause = 5 * time.Second
	maxRevivePause = 5 * time.Minute
)

// open opens the tier. A disk that fails, is full or cannot be written to leaves it
// off, to be tried again; a directory that is not ours is an error.
func (sh *shelf) open() error {
	t, err := openTier(sh.opts)
	if err != nil && !disabled(err) {
		return err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if err != nil {
		sh.why = err
		sh.putOff()
		return nil
	}
	sh.why, sh.since = nil, time.Now()
	sh.at.Store(t)
	return nil
}

// disabled reports whether an error of opening a tier is its disk's, which may get
// over it, rather than the configuration's, which will not.
func disabled(err error) bool {
	for _, e := range [...]error{covey.ErrFull, covey.ErrReadOnly, syscall.EIO, syscall.ENXIO, syscall.ENODEV, syscall.ESTALE, syscall.ESHUTDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// putOff puts the next attempt off. mu is held.
func (sh *shelf) putOff() {
	sh.pause = min(max(2*sh.pause, minRevivePause), maxRevivePause)
	sh.next = time.Now().Add(sh.pause)
}

// ailing says whether the tier needs to be brought back, and why.
func (sh *shelf) ailing() error {
	t := sh.at.Load()
	if t == nil {
		sh.mu.Lock()
		defer sh.mu.Unlock()
		return sh.why
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fault
}

// due returns when the tier is to be tried again, and false when it is well.
func (sh *shelf) due() (time.Time, bool) {
	ails := sh.ailing() != nil
	sh.mu.Lock()
	defer sh.mu.Unlock()
	switch {
	case !ails && sh.at.Load() != nil && time.Since(sh.since) > maxRevivePause:
		sh.pause = 0 // it has been well for long enough to begin anew
		fallthrough
	case !ails:
		sh.next = time.Time{}
		return time.Time{}, false
	case sh.next.IsZero():
		sh.putOff()
	}
	return sh.next, true
}

// revive brings a tier that failed back, as a restart would. Its directory is tried
// first, so that a tier which can still be read is not closed for nothing. It
// returns what is still in the way.
func (sh *shelf) revive() error {
	sh.reviving.Lock()
	defer sh.reviving.Unlock()
	if sh.closed {
		return errClosed
	}
	was := sh.ailing()
	if was == nil {
		return nil
	}
	err := sh.tryDisk()
	if err == nil {
		if t := sh.at.Swap(nil); t != nil {
			if e := t.Close(); e != nil {
				sh.log.Debug("close a failed tier", "tier", sh.opts.Dir, "err", e)
			}
			sh.opts.handed = t.readers()
		}
		err = sh.open()
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	switch {
	case err != nil:
		if sh.at.Load() == nil {
			sh.why = err
		}
		sh.putOff()
	case sh.why != nil:
		err = sh.why
	default:
		sh.next = time.Time{}
		sh.log.Info("cache tier is back", "tier", sh.opts.Dir, "was", was)
	}
	return err
}

// close closes the tier for good.
func (sh *shelf) close() error {
	sh.reviving.Lock()
	defer sh.reviving.Unlock()
	sh.closed = true
	if t := sh.at.Load(); t != nil {
		return t.Close()
	}
	return nil
}

// tryDisk writes a little, and looks for room.
func (sh *shelf) tryDisk() error {
	t := sh.at.Load()
	if t == nil {
		return nil // opening it tries
	}
	if err := t.at.probe(); err != nil {
		return fmt.Errorf("try cache tier %s: %w", sh.opts.Dir, kind(err))
	}
	return nil
}

// usage is what the tier holds now, or would.
func (sh *shelf) usage() Usage {
	why := sh.ailing()
	t := sh.at.Load()
	if t == nil {
		return Usage{Dir: sh.opts.Dir, Budget: sh.opts.Budget, ReadOnly: true, State: TierOff, Why: oneLine(why)}
	}
	u := t.Usage()
	u.State, u.Why = TierOK, oneLine(why)
	switch {
	case t.stalled():
		u.State, u.Why = TierStalled, "its disk has not answered for "+stallAfter.String()
	case u.ReadOnly:
		u.State = TierReadOnly
	}
	return u
}

func oneLine(err error) string {
	if err == nil {
		return ""
	}
	var path *fs.PathError
	if errors.As(err, &path) { // the paths before it say no more
		return path.Error()
	}
	return err.Error()
}

// up is 1 while the tier admits blocks and answers.
func (sh *shelf) up() float64 {
	if t := sh.at.Load(); t != nil && sh.ailing() == nil && !t.stalled() {
		return 1
	}
	return 0
}

// movesCounter counts objects that went from one tier to another.
func (s *Store) movesCounter() prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "covey_blockstore_moved_objects_total", Help: "Objects that went to another tier.",
	}, func() float64 { return float64(s.moved.Load()) })
}

func (sh *shelf) gauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "covey_blockstore_up", Help: "1 while the tier admits blocks and its disk answers.",
		ConstLabels: prometheus.Labels{"tier": sh.opts.Dir},
	}, sh.up)
}

// tend brings failed tiers back, until the store closes.
func (s *Store) tend(ctx context.Context) {
	defer s.done.Done()
	for {
		s.fillIn()
		var timer <-chan time.Time
		if first, ails := s.firstDue(); ails {
			timer = time.After(time.Until(first))
		}
		select {
		case <-ctx.Done():
			return
		case <-s.ails:
			continue
		case <-timer:
		}
		for _, sh := range s.shelves {
			if next, ails := sh.due(); ails && !time.Now().Before(next) {
				if err := sh.revive(); err != nil {
					s.log.Debug("cache tier is still unusable", "tier", sh.opts.Dir, "err", err)
				}
			}
		}
	}
}

func (s *Store) firstDue() (first time.Time, ails bool) {
	for _, sh := range s.shelves {
		if next, is := sh.due(); is && (!ails || next.Before(first)) {
			first, ails = next, true
		}
	}
	return first, ails
}

// Revive brings a tier back now, rather than at the next attempt; nil when it is
// well. [covey.ErrNotFound] when the store has no such tier; else the error says
// what is still in the way.
func (s *Store) Revive(dir string) error {
	for _, sh := range s.shelves {
		if sh.opts.Dir == dir {
			err := sh.revive()
			signal(s.ails)
			return err
		}
	}
	return fmt.Errorf("bring tier %s back: no tier of that name: %w", dir, covey.ErrNotFound)
}

// fillIn puts a little memory in the place of the tiers while none can be opened, so
// that the readers of a host share what is being fetched and neighbours can follow,
// and takes it away when one is.
func (s *Store) fillIn() {
	if s.opts.Spare <= 0 {
		return
	}
	open := false
	for _, sh := range s.shelves {
		open = open || sh.at.Load() != nil
	}
	has := s.spare.at.Load()
	switch {
	case open && has != nil:
		s.spare.at.Store(nil)
		_ = has.Close() // in memory, it has nothing to lose
	case !open && has == nil:
		s.log.Warn("no cache directory can be used; going on with a little memory instead", "bytes", s.opts.Spare)
		if err := s.spare.open(); err != nil {
			s.log.Error("keep blocks in memory", "err", err)
		}
	}
}

// isMemory reports whether a directory is on a file system in memory, which does not
// stall.
func isMemory(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}
