package blockstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/covey-cache/covey"
)

// tier is one directory of blocks with a byte budget. All methods may be called
// concurrently.
//
// What is here is known in memory (table); what a block contains is in the
// index, or for the last second in a group that has yet to be written there. A
// block is checked against its checksum once in the tier's life, before it is
// served for the first time; admission counts as that check. From then on reads
// are plain reads of the file.
//
// openTier starts two goroutines, which sleep while nothing is admitted: one commits
// groups, one does what may take long (checking large objects, clearing out what
// a crash left). Close joins both.
type tier struct {
	opts    Options
	log     *slog.Logger
	at      layout
	lock    io.Closer
	data    dataDir
	index   *index
	metrics *metrics
	extents extentCache
	coder   *coder

	wake   chan struct{} // the first change of a group was made
	kick   chan struct{} // the group is large: do not wait
	stop   chan struct{}
	checks chan covey.Object // large objects to check
	done   sync.WaitGroup

	haltOnce sync.Once
	// lastUse is when a block was last admitted, held or read, in nanoseconds
	// since 1970.
	lastUse atomic.Int64
	// unswept says that a crash left bytes that no block covers, and they are
	// not cleared out yet.
	unswept atomic.Bool
	pulse
	// sorted is the version of the data sets that the objects are sorted by; the
	// store's housekeeper alone uses it.
	sorted uint64
	// saved is when data sets were used, as the index has it. flushMu guards it.
	saved map[uint16]int64

	// flushMu lets one group be committed at a time. It is taken before mu.
	flushMu sync.Mutex

	// mu guards everything below. Code that holds it does no I/O.
	//
	// INVARIANT: a block is set in the table exactly when its bytes are in the
	// file and its record is in pending, flushing or the index.
	// INVARIANT: used is the disk use of all blocks in the table and of all
	// that are being written.
	// INVARIANT: reserved is the disk use of all blocks of pinned objects that
	// are neither.
	mu sync.Mutex
	// changed is told when a claim, a use of the store or a group ends.
	changed *sync.Cond
	table   *table
	budget  int64
	used    int64
	// reserved is room kept free for what is pinned and not here yet.
	reserved int64
	pins     map[covey.ObjectID]struct{}
	room     int64 // what the file system can take, as far as we know
	roomAt   time.Time
	pending  *group
	// flushing is the group being committed, nil when none is. When that
	// fails, it stays: its blocks are served for the rest of the store's life.
	flushing *group
	group    uint64 // number of the last sealed group
	// claims counts who is writing to an object's file: blocks being written,
	// or claimedWhole while the file as such is changed.
	claims  map[covey.ObjectID]int
	writing map[blockKey]struct{}
	open    map[covey.ObjectID]*openFile
	queued  map[covey.ObjectID]struct{} // in checks
	// drops counts every time that blocks went, so that a reader who looked,
	// then opened, knows to look again.
	drops uint64
	// fault is what ended admission, nil while it goes on.
	fault  error
	active int // calls in progress
	closed bool
}

// errClosed is what calls after Close get.
var errClosed = fmt.Errorf("block store is closed: %w", covey.ErrUnavailable)

// openTier takes opts.Dir and reads what an earlier process left there. An
// index that cannot be read is moved aside, and the store starts empty.
//
// The error says what is wrong with the directory: [covey.ErrInvalid] when it is
// somebody else's or of an unknown format, [covey.ErrUnavailable] when another
// process has it, [covey.ErrReadOnly] when it cannot be written to,
// [covey.ErrFull] when the file system has no room for the index.
func openTier(opts Options) (*tier, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	opts = opts.withDefaults()
	s := &tier{
		opts: opts, log: opts.Log,
		at:      layout{fs: opts.FS, os: opts.FS == nil, dir: opts.Dir},
		wake:    make(chan struct{}, 1),
		kick:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		checks:  make(chan covey.Object, maxChecks),
		pending: newGroup(),
		pins:    make(map[covey.ObjectID]struct{}),
		saved:   make(map[uint16]int64),
		claims:  make(map[covey.ObjectID]int),
		writing: make(map[blockKey]struct{}),
		open:    make(map[covey.ObjectID]*openFile),
		queued:  make(map[covey.ObjectID]struct{}),
	}
	s.table = s.newTable()
	if s.at.os {
		s.at.fs = vfs.Default
	}
	s.changed = sync.NewCond(&s.mu)
	if s.coder = opts.coder; s.coder == nil {
		var err error
		if s.coder, err = newCoder(opts); err != nil {
			return nil, fmt.Errorf("open block store %s: %w", opts.Dir, err)
		}
	}
	crashed, err := s.start()
	if err != nil {
		_ = s.release() // err says why
		return nil, fmt.Errorf("open block store %s: %w", opts.Dir, kind(err))
	}
	s.begin(s.at.os && isMemory(opts.Dir))
	s.metrics = newMetrics(s, opts.Registry)
	s.done.Add(2)
	go s.commitGroups()
	go s.background(crashed)
	return s, nil
}

// start does the I/O of Open. crashed reports that the last process did not
// close the store.
func (s *tier) start() (crashed bool, err error) {
	if err := s.at.prepare(); err != nil {
		return false, err
	}
	if s.lock, err = s.at.lock(); err != nil {
		return false, err
	}
	if err := s.at.check(); err != nil {
		return false, err
	}
	crashed, err = s.recover()
	if err != nil {
		return false, err
	}
	if err := s.admitKeys(); err != nil {
		return false, err
	}
	s.unswept.Store(crashed)
	if err := s.openData(); err != nil {
		return false, err
	}
	s.budget, err = s.measure()
	return crashed, err
}

func (s *tier) openData() (err error) {
	dir := s.at.path(nameData)
	if s.at.os {
		s.data, err = openOSData(dir)
		return err
	}
	s.data = &fsData{fs: s.at.fs, dir: dir}
	return nil
}

// release gives up whatever start got hold of.
func (s *tier) release() error {
	var errs []error
	if s.index != nil {
		errs = append(errs, s.index.close())
	}
	if s.data != nil {
		errs = append(errs, s.data.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Close makes what was admitted durable, marks the store clean and gives up the
// directory. Handles stay readable. Calls in progress are waited for, later ones
// fail. Closing again does nothing.
func (s *tier) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	for s.active > 0 {
		s.changed.Wait()
	}
	s.mu.Unlock()
	s.done.Wait()
	s.metrics.close()

	saved := s.writeDatasets()
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	err := errors.Join(s.flush(), saved)
	if err == nil {
		err = s.index.setMark(mark{group: s.group, clean: true})
	}
	if s.index.corrupt.Load() {
		err = errors.Join(err, s.at.noteDamage())
	}
	if err = errors.Join(err, s.release()); err != nil {
		return fmt.Errorf("close block store %s: %w", s.opts.Dir, err)
	}
	return nil
}

// enter begins a call that does I/O; leave ends it.
func (s *tier) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	s.active++
	return nil
}

func (s *tier) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if s.closed {
		s.changed.Broadcast()
	}
}

// Usage returns what the store holds now.
func (s *tier) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{
		Dir: s.opts.Dir, Budget: s.budget, Used: s.used,
		Objects: s.table.objects, Whole: s.table.whole, Blocks: s.table.blocks,
		Reserved: s.reserved, Pinned: len(s.pins),
		ReadOnly: s.fault != nil,
	}
}

// failWith ends admission for the rest of the tier's life; reads go on. The store
// opens it anew once the disk can be written to. Only the first fault is logged: a
// failing disk has one for every block.
func (s *tier) failWith(err error) {
	s.mu.Lock()
	first := s.fault == nil
	if first {
		s.fault = err
	}
	s.mu.Unlock()
	if first {
		s.log.Error("cache tier admits nothing until its disk can be written to again; reads go on",
			"tier", s.opts.Dir, "err", err)
		if s.opts.onFault != nil {
			s.opts.onFault()
		}
	}
}

// kind marks an error of the operating system with the covey error that callers
// act upon.
func kind(err error) error {
	switch {
	case isFull(err):
		return fmt.Errorf("%w: %w", err, covey.ErrFull)
	case isReadOnly(err), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", err, covey.ErrReadOnly)
	case isTransient(err):
		return fmt.Errorf("%w: %w", err, covey.ErrUnavailable)
	}
	return err
}
