package blockstore

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/covey-cache/covey"
)

const (
	// indexCacheBytes holds the index blocks and hot records of some hundred
	// thousand blocks; the table in memory answers everything that is asked
	// often.
	indexCacheBytes = 16 << 20
	// indexMemtableBytes is two to ten seconds of admission of 100-KiB objects,
	// so that flushes are few.
	indexMemtableBytes = 16 << 20
)

// indexFormat is the format of Pebble's files.
const indexFormat = pebble.FormatValueSeparation

// index is the Pebble database beside the data: what is known of every block,
// where it is advertised, which blocks of each object are durable.
//
// One goroutine at a time writes to it (the store's flush); any number read. A
// failed write ends writing for the index's life: halt then reopens it for
// reading, which shows exactly what was durable.
type index struct {
	dir string
	fs  *indexFS
	log *slog.Logger
	// memtable is the size of one, in bytes.
	memtable uint64
	// broken holds the error that ended writing.
	broken atomic.Pointer[error]
	// corrupt is set when Pebble found damage in a table.
	corrupt atomic.Bool
	// wake is told that broken was set.
	wake chan struct{}

	// mu is held shared by every use of db and exclusively to replace it. db is
	// nil when the index cannot even be read.
	mu sync.RWMutex
	db *pebble.DB
}

// openIndex opens or makes the database. An error that wraps
// [covey.ErrCorrupt] says that what is there is not, or is no longer, an index.
func openIndex(dir string, fsys vfs.FS, onOS bool, memtable uint64, log *slog.Logger) (*index, error) {
	if memtable == 0 {
		memtable = indexMemtableBytes
	}
	x := &index{dir: dir, log: log, memtable: memtable, wake: make(chan struct{}, 1)}
	x.fs = &indexFS{FS: fsys, os: onOS, onFail: x.breakWith}
	var err error
	x.db, err = x.openWithin(openGrace)
	return x, err
}

// openGrace is how long Pebble may go on after the first write that failed while
// it was being opened. It may get over it; if not, it tries for ever.
const openGrace = 5 * time.Second

// openWithin is open for writing that does not hang on a disk that fails in the
// middle of it. The goroutine it then leaves behind ends when Pebble gives up.
func (x *index) openWithin(grace time.Duration) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	c := make(chan result, 1)
	go func() {
		db, err := x.open(false)
		c <- result{db, err}
	}()
	select {
	case r := <-c:
		return r.db, r.err
	case <-x.wake:
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case r := <-c:
		signal(x.wake) // the store is still to hear of it
		return r.db, r.err
	case <-timer.C:
		go func() {
			if r := <-c; r.db != nil {
				_ = r.db.Close() // nobody used it
			}
		}()
		return nil, fmt.Errorf("open index %s: %w", x.dir, x.err())
	}
}

func (x *index) open(readOnly bool) (db *pebble.DB, err error) {
	// A damaged file must not end the agent, and Pebble's decoders do panic.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open index %s: %v: %w", x.dir, p, covey.ErrCorrupt)
		}
	}()
	cache := pebble.NewCache(indexCacheBytes)
	defer cache.Unref()
	db, err = pebble.Open(x.dir, &pebble.Options{
		FS:           x.fs,
		Cache:        cache,
		MemTableSize: x.memtable,
		// Pinned, so that a new Pebble does not silently write what the last
		// release of covey cannot read.
		FormatMajorVersion: indexFormat,
		ReadOnly:           readOnly,
		Logger:             indexLog{x},
		EventListener: &pebble.EventListener{
			// Pebble tries a failed flush or compaction again at once, for ever.
			BackgroundError: x.backgroundError,
			DataCorruption:  func(i pebble.DataCorruptionInfo) { x.noteCorrupt(i.Details) },
		},
	})
	switch {
	case err == nil:
		return db, nil
	case isOSError(err):
		return nil, fmt.Errorf("open index %s: %w", x.dir, err)
	}
	return nil, fmt.Errorf("open index %s: %w: %w", x.dir, covey.ErrCorrupt, err)
}

// backgroundError slows Pebble's retries until halt ends them.
func (x *index) backgroundError(err error) {
	x.breakWith(err)
	time.Sleep(retryPause)
}

// retryPause keeps a failed flush from taking a core; halt waits for one.
const retryPause = 20 * time.Millisecond

func (x *index) breakWith(err error) {
	if errors.Is(err, pebble.ErrCorruption) {
		x.corrupt.Store(true)
	}
	if x.broken.CompareAndSwap(nil, &err) {
		select {
		case x.wake <- struct{}{}:
		default:
		}
	}
}

func (x *index) noteCorrupt(err error) {
	x.corrupt.Store(true)
	x.breakWith(err)
}

// err returns the error that ended writing, or nil.
func (x *index) err() error {
	e := x.broken.Load()
	switch {
	case e == nil:
		return nil
	case x.corrupt.Load():
		return fmt.Errorf("%w: %w", covey.ErrCorrupt, *e)
	}
	return *e
}

// halt replaces a database that can no longer be written to by one that only
// reads.
func (x *index) halt() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db == nil {
		return
	}
	_ = x.closeLocked() // it failed already
	db, err := x.open(true)
	if err != nil {
		x.log.Error("cache index cannot be read any more", "dir", x.dir, "err", err)
		return
	}
	x.db = db
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.closeLocked()
}

func (x *index) closeLocked() (err error) {
	if x.db == nil {
		return nil
	}
	db := x.db
	x.db = nil
	// Closing a database whose log failed may panic; what was durable is on
	// disk already.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close index %s: %v: %w", x.dir, p, covey.ErrCorrupt)
		}
	}()
	return db.Close()
}

// errIndexGone says that the index cannot be read.
var errIndexGone = fmt.Errorf("the cache index is closed: %w", covey.ErrUnavailable)

// get returns a value through parse, which must not keep it. ErrNotFound when
// there is none.
func (x *index) get(key []byte, parse func([]byte) error) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.db == nil {
		return errIndexGone
	}
	v, c, err := x.db.Get(key)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return covey.ErrNotFound
	case err != nil:
		return fmt.Errorf("read the cache index: %w", err)
	}
	err = parse(v)
	return errors.Join(err, c.Close())
}

func (x *index) block(k blockKey) (r record, err error) {
	var buf [37]byte
	err = x.get(k.append(buf[:0]), func(v []byte) (err error) {
		r, err = parseRecord(v)
		return err
	})
	return r, err
}

// mark returns how far the index is durable; [covey.ErrNotFound] when it is new.
func (x *index) mark() (m mark, err error) {
	err = x.get([]byte{keyMark}, func(v []byte) (err error) {
		m, err = parseMark(v)
		return err
	})
	return m, err
}

func (x *index) setMark(m mark) error {
	return x.write(func(b *pebble.Batch) error { return b.Set([]byte{keyMark}, m.encode(), nil) })
}

// write commits what fill puts into a batch, durably.
func (x *index) write(fill func(*pebble.Batch) error) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if err := x.err(); err != nil {
		return err
	}
	if x.db == nil {
		return errIndexGone
	}
	b := x.db.NewBatch()
	defer func() { _ = b.Close() }() // it gives memory back, no more
	if err := fill(b); err != nil {
		return err
	}
	if err := b.Commit(pebble.Sync); err != nil {
		x.breakWith(err)
	}
	// Pebble reports a failed log through its logger and commits with nil.
	return x.err()
}

// scan calls yield with the records from key lower to below upper, at most limit
// of them, and returns where to go on, or nil at the end. The slices are valid
// during the call only. Between calls nothing is held, so a slow reader keeps no
// old tables alive.
func (x *index) scan(lower, upper []byte, limit int, yield func(k, v []byte) error) (next []byte, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.db == nil {
		return nil, errIndexGone
	}
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("read the cache index: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if limit == 0 {
			return append([]byte(nil), it.Key()...), nil
		}
		limit--
		if err := yield(it.Key(), it.Value()); err != nil {
			return nil, err
		}
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("read the cache index: %w", err)
	}
	return nil, nil
}

// indexLog passes Pebble's complaints on. Its Fatalf returns, where Pebble's own
// ends the process: what leads to it is a failed write, after which the index
// is only read.
type indexLog struct{ x *index }

func (l indexLog) Infof(string, ...any) {}

func (l indexLog) Errorf(format string, args ...any) {
	l.x.log.Warn("cache index", "dir", l.x.dir, "err", fmt.Sprintf(format, args...))
}

func (l indexLog) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	l.x.log.Error("cache index failed", "dir", l.x.dir, "err", msg)
	l.x.breakWith(errors.New(msg))
}
