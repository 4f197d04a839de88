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
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

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
	extents extentCache

	// moves counts the times that blocks which are in two tiers went from one of
	// them, so that a reader who found them in neither knows to look again.
	moves atomic.Uint64

	unwatch func() // takes the coder's metrics off the registry
	closing sync.Once
	closed  error
}

// shelf is a tier's place in the store.
type shelf struct {
	opts Options // its own, with defaults
	at   atomic.Pointer[tier]
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
}

// Open takes the directories and reads what an earlier process left there. An
// index that cannot be read is moved aside, and its tier starts empty.
//
// The error says what is wrong with which directory: [covey.ErrInvalid] when it is
// somebody else's, of an unknown format, within another one, or given a budget
// above its disk; [covey.ErrUnavailable] when another process has it;
// [covey.ErrReadOnly] when it cannot be written to; [covey.ErrFull] when the file
// system has no room for the index. It is [covey.ErrInvalid] as well when blocks
// are encrypted under a key that is not in [Options.Keys]; nothing is lost then.
func Open(opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	opts = opts.withDefaults()
	var err error
	if opts.coder, err = newCoder(opts); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	s := &Store{opts: opts, log: opts.Log, unwatch: func() {}}
	for _, o := range opts.tiers() {
		s.shelves = append(s.shelves, &shelf{opts: o})
	}
	if err := checkBudgets(opts.tiers()); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	for _, sh := range s.shelves {
		t, err := openTier(sh.opts)
		if err != nil {
			_ = s.Close() // err says why
			return nil, err
		}
		sh.at.Store(t)
	}
	s.unwatch = opts.coder.watch(opts.Registry)
	return s, nil
}

// tiers yields the tiers in use, the fastest first.
func (s *Store) tiers() iter.Seq[*tier] {
	return func(yield func(*tier) bool) {
		for _, sh := range s.shelves {
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
		var errs []error
		for t := range s.tiers() {
			errs = append(errs, t.Close())
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
	for _, sh := range s.shelves {
		if t := sh.at.Load(); t != nil {
			list = append(list, t.Usage())
		} else {
			list = append(list, Usage{Dir: sh.opts.Dir, Budget: sh.opts.Budget, ReadOnly: true})
		}
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
