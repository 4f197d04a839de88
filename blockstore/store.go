// Package blockstore keeps verified blocks on local disk, in tiers.
//
// A tier is a directory with a byte budget. All cached blocks of one object in one
// tier live in one sparse file at their true offsets, so that a whole object can be
// handed to the kernel as it is; which ranges are present, their digests and where
// they are advertised live in a Pebble index. Data is written before the index
// names it, so a crash loses recent blocks and never serves a wrong one.
//
// FORMAT.md has what is on disk, and what every crash leaves of it.
package blockstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// Store is the cache of one host: its tiers, the fastest first. All methods may be
// called concurrently.
//
// A new object goes to the first tier that has room for all of it, and its later
// blocks go where the first ones are, so that it is in one file and can be passed
// through; where no tier has room for all of it, a block goes to the first that has
// room for the block. A block is looked for in every tier.
//
// Each tier stands for itself: its own lock, index and files, valid without the
// others. One that fails takes its blocks with it and nothing else.
type Store struct {
	opts    Options
	log     *slog.Logger
	shelves []*shelf // fastest first
	spare   *shelf   // stands in for all of them
	extents extentCache

	// moves counts the times that blocks which are in two tiers went from one of
	// them, so that a reader who found them in neither knows to look again.
	moves atomic.Uint64
	// moved counts objects that went to another tier.
	moved atomic.Uint64
	hot   chan hot // objects to move up
	// moving is what goes to another tier just now.
	moving moving
	// pinMu lets one change of the pins go on at a time, that of an object which moves
	// included. It is taken before any tier's locks.
	pinMu sync.Mutex

	// splitMu is a leaf lock and guards split: objects that are in several tiers, with
	// one of them.
	splitMu sync.Mutex
	split   map[covey.ObjectID]*tier

	unwatch  func()        // takes the coder's metrics off the registry
	ails     chan struct{} // a tier failed
	unsorted chan struct{} // a data set became known
	stop     context.CancelFunc
	done     sync.WaitGroup
	gauges   []prometheus.Collector
	closing  sync.Once
	closed   error
}

// Usage is what a tier holds, or what all of a store's do.
type Usage struct {
	Dir            string
	Budget, Used   int64 // bytes
	Reserved       int64 // bytes kept free for pinned objects that are not whole
	Pinned         int   // objects, here or not
	Objects, Whole int   // objects with any block, and with every block
	Blocks         int
	ReadOnly       bool // a disk fault stopped admission
	State          TierState
	Why            string // of a state other than "ok", for people
}

// Open takes the directories and reads what an earlier process left there. An
// index that cannot be read is moved aside, and its tier starts empty.
//
// A tier whose disk fails, is full or cannot be written to is off, and tried again
// later; so it is when its disk fails later on. A directory that has no place among
// the options any more is left as it is.
//
// The error says what is wrong with which directory: [covey.ErrInvalid] when it is
// somebody else's, of an unknown format, within another one, or given a budget
// above its disk; [covey.ErrUnavailable] when another process has it. It is
// [covey.ErrInvalid] as well when blocks are encrypted under a key that is not in
// [Options.Keys]; nothing is lost then.
//
// Open starts three goroutines for the store and two for each tier, which sleep while
// there is nothing to do. Close joins them.
func Open(opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	opts = opts.withDefaults()
	var err error
	if opts.coder, err = newCoder(opts); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Store{opts: opts, log: opts.Log, ails: make(chan struct{}, 1), unsorted: make(chan struct{}, 1), stop: stop, unwatch: func() {}}
	s.hot, s.split = make(chan hot, maxHot), make(map[covey.ObjectID]*tier)
	opts.onFault = func() { signal(s.ails) }
	opts.onHot = func(t *tier, id covey.ObjectID) {
		if t == s.shelves[0].at.Load() {
			return
		}
		select {
		case s.hot <- hot{t, id}:
		default:
		}
	}
	for _, o := range opts.tiers() {
		s.shelves = append(s.shelves, &shelf{opts: o, log: s.log})
	}
	spare := opts
	spare.Dir, spare.Budget, spare.FS, spare.Slower = spareDir, opts.Spare, MemFS(), nil
	s.spare = &shelf{opts: spare, log: s.log}
	if err := checkBudgets(opts.tiers()); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	for _, sh := range s.shelves {
		if err := sh.open(); err != nil {
			_ = s.Close() // err says why
			return nil, err
		}
		if why := sh.ailing(); why != nil {
			s.log.Error("cache tier cannot be used; it is tried again later", "tier", sh.opts.Dir, "err", why)
		}
	}
	s.unwatch = opts.coder.watch(opts.Registry)
	s.fillIn()
	if opts.Registry != nil {
		s.gauges = append(s.gauges, s.movesCounter())
		for _, sh := range s.shelves {
			s.gauges = append(s.gauges, sh.gauge())
		}
		opts.Registry.MustRegister(s.gauges...)
	}
	s.done.Add(2)
	go s.tend(ctx)
	if !opts.still {
		s.done.Add(1)
		go s.moveObjects(ctx)
	}
	go s.keepHouse(ctx)
	return s, nil
}

// spareDir is the name of the memory that stands in for the tiers.
const spareDir = "memory"

// all returns the shelves, with the one of memory last.
func (s *Store) all() iter.Seq[*shelf] {
	return func(yield func(*shelf) bool) {
		for _, sh := range s.shelves {
			if !yield(sh) {
				return
			}
		}
		if s.spare.at.Load() != nil {
			yield(s.spare)
		}
	}
}

// tiers yields the tiers in use, the fastest first.
func (s *Store) tiers() iter.Seq[*tier] {
	return func(yield func(*tier) bool) {
		for sh := range s.all() {
			if t := sh.at.Load(); t != nil && !yield(t) {
				return
			}
		}
	}
}

// Close makes what was admitted durable, marks the tiers clean and gives up the
// directories. Handles stay readable. Calls in progress are waited for, later ones
// fail. Closing again does nothing.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.stop()
		s.done.Wait()
		for _, g := range s.gauges {
			s.opts.Registry.Unregister(g)
		}
		var errs []error
		for _, sh := range append(s.shelves, s.spare) {
			errs = append(errs, sh.close())
		}
		s.unwatch()
		s.closed = errors.Join(errs...)
	})
	return s.closed
}

// Sync makes everything admitted so far survive a power loss. Once a disk fault
// stopped admission to a tier it fails for as long as that lasts.
func (s *Store) Sync() error {
	var errs []error
	for t := range s.tiers() {
		errs = append(errs, t.Sync())
	}
	return errors.Join(errs...)
}

// Usage adds up what all tiers hold now. An object in two tiers counts twice.
// ReadOnly says that none of them admits anything.
func (s *Store) Usage() Usage {
	sum := Usage{ReadOnly: true}
	var dirs []string
	for _, u := range s.Tiers() {
		dirs = append(dirs, u.Dir)
		sum.Budget += u.Budget
		sum.Used += u.Used
		sum.Reserved += u.Reserved
		sum.Pinned += u.Pinned
		sum.Objects += u.Objects
		sum.Whole += u.Whole
		sum.Blocks += u.Blocks
		sum.ReadOnly = sum.ReadOnly && u.ReadOnly
	}
	sum.Dir = strings.Join(dirs, ", ")
	return sum
}

// Tiers returns what each tier holds now, the fastest first.
func (s *Store) Tiers() []Usage {
	list := make([]Usage, 0, len(s.shelves))
	for sh := range s.all() {
		list = append(list, sh.usage())
	}
	return list
}

// settled calls look until no block moved between tiers while it ran, or it found
// what it looked for. Blocks are in their new tier before they leave the old one,
// so that only a look at both, in the wrong order, can miss them.
func (s *Store) settled(look func() (found bool)) {
	for {
		before := s.moves.Load()
		if look() || s.moves.Load() == before {
			return
		}
	}
}

// worse returns the error that tells a caller more: any other than "not here".
func worse(a, b error) error {
	if a == nil || b != nil && errors.Is(a, covey.ErrNotFound) {
		return b
	}
	return a
}
