package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// A random reader of a data set that is larger than the cache would have a whole
// block fetched for each few KiB: 30 times the data set at a quarter cached. Such
// reads get their exact range from the origin and leave the cache alone. It is not
// for bytes that anybody holds: those of a neighbour cannot be verified in part,
// and cost the origin nothing whole.

const (
	// tightFor is how long a store is taken for full after it refused a block:
	// longer than prefetch rests, since here nothing is lost by being wrong but
	// the chance to cache.
	tightFor = time.Minute
	// maxRanged is how many ranges are read at once: what the kernel asks a mount
	// for at most.
	maxRanged = 64
	// unheldFor is how long a home's word that nobody holds a block is believed.
	// Less would cost a message for each read.
	unheldFor = 10 * time.Second
	// maxUnheld bounds the blocks of which that is remembered, in 1 MiB.
	maxUnheld = 4096
)

// ranges are the exact reads under way, and what is known for them.
//
// mu is a leaf lock; it guards active and unheld.
type ranges struct {
	// tight is the time, in nanoseconds since 1970, until which the store is taken
	// for full.
	tight  atomic.Int64
	places chan struct{}

	mu     sync.Mutex
	active map[covey.Locator][]*rangeRead
	unheld *lru[covey.Locator, time.Time]
}

// rangeRead is one read of the origin, shared by those whose range lies in it. Its
// data is theirs to copy from once done is closed.
type rangeRead struct {
	off  int64 // in the block
	data []byte
	done chan struct{}
	err  error
}

func newRanges() ranges {
	return ranges{
		places: make(chan struct{}, maxRanged),
		active: make(map[covey.Locator][]*rangeRead),
		unheld: newLRU[covey.Locator, time.Time](maxUnheld),
	}
}

// ReadRange fills p with the bytes of block slot of e from off on, without fetching
// the block, when that is the better way: the store has no room for it, nobody
// holds it or is reading it. Otherwise it does nothing and reports false: Get is the
// way then. Concurrent reads of one range share one request.
//
// The origin's bytes are of the locator's version, as those of a whole block are.
func (f *Fetcher) ReadRange(ctx context.Context, e *covey.Extent, slot int, off int64, p []byte) (done bool, err error) {
	if slot < 0 || slot >= len(e.Blocks) || off < 0 || off+int64(len(p)) > e.Blocks[slot].Range().Len {
		return false, fmt.Errorf("%d bytes at %d of slot %d of an extent of %d: %w", len(p), off, slot, len(e.Blocks), covey.ErrInvalid)
	}
	l := e.Blocks[slot]
	if !f.crowded() || f.opts.Strict || f.table.has(l) || f.store.Present(e).Has(slot) ||
		f.adviser().Holds(l) || !f.nobodyHolds(ctx, e, slot) {
		return false, nil
	}
	r := f.joinRange(l, off, len(p))
	if r == nil {
		return false, nil
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return true, fmt.Errorf("read %d bytes of %s: %w", len(p), l, ctx.Err())
	}
	if r.err != nil {
		return true, fmt.Errorf("read %d bytes of %s from the origin: %w", len(p), l, r.err)
	}
	copy(p, r.data[off-r.off:])
	return true, nil
}

// crowded reports whether the store has no room for another block.
func (f *Fetcher) crowded() bool {
	return time.Now().UnixNano() < f.ranges.tight.Load() || f.opts.Crowded != nil && f.opts.Crowded()
}

// nobodyHolds asks the block's home whether a neighbour has it. The grant that
// comes with the answer goes back at once.
func (f *Fetcher) nobodyHolds(ctx context.Context, e *covey.Extent, slot int) bool {
	l, r := e.Blocks[slot], &f.ranges
	r.mu.Lock()
	until, ok := r.unheld.get(l)
	r.mu.Unlock()
	if ok && time.Now().Before(until) {
		return true
	}
	if _, known := f.planner.recall(e, slot); known {
		return false
	}
	a, err := f.planner.resolve(ctx, e, slot, wish{prefetch: true})
	if err != nil || a.State != dht.Granted {
		return false
	}
	if !f.table.spawn(func() { f.planner.handBack(e, a) }) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unheld.put(l, time.Now().Add(unheldFor))
	return true
}

// joinRange returns the read that covers the range, begun if there is none; nil
// when the fetcher is stopping.
func (f *Fetcher) joinRange(l covey.Locator, off int64, n int) *rangeRead {
	r := &f.ranges
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.active[l] {
		if x.off <= off && off+int64(n) <= x.off+int64(len(x.data)) {
			return x
		}
	}
	x := &rangeRead{off: off, data: make([]byte, n), done: make(chan struct{})}
	if !f.table.spawn(func() { f.runRange(l, x) }) {
		return nil
	}
	r.active[l] = append(r.active[l], x)
	return x
}

// runRange is the goroutine of one read. It has a context of its own, since others
// than who began it may wait for it.
func (f *Fetcher) runRange(l covey.Locator, x *rangeRead) {
	ctx, cancel := context.WithTimeout(f.root, f.opts.Deadline)
	defer cancel()
	began := time.Now()
	select {
	case f.ranges.places <- struct{}{}:
		x.err = f.openRange(ctx, l, x)
		<-f.ranges.places
	case <-ctx.Done():
		x.err = fmt.Errorf("no place among %d reads: %w", maxRanged, covey.ErrUnavailable)
	}
	if x.err == nil {
		f.metrics.count(Origin, len(x.data), time.Since(began))
		f.metrics.ranged.Add(1)
	} else if f.root.Err() != nil {
		x.err = errors.Join(covey.ErrUnavailable, errStopped)
	}
	r := &f.ranges
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := r.active[l][:0]
	for _, y := range r.active[l] {
		if y != x {
			rest = append(rest, y)
		}
	}
	if r.active[l] = rest; len(rest) == 0 {
		delete(r.active, l)
	}
	close(x.done)
}

func (f *Fetcher) openRange(ctx context.Context, l covey.Locator, x *rangeRead) error {
	rc, err := f.opts.Origins.Open(ctx, l.Object, covey.Range{Off: l.Range().Off + x.off, Len: int64(len(x.data))})
	if err != nil {
		return err
	}
	defer rc.Close()
	return readExactly(rc, x.data)
}

// readExactly fills p and wants the end behind it: the reader may say only there
// that the object has changed.
func readExactly(r io.Reader, p []byte) error {
	n, err := io.ReadFull(r, p)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%d of %d bytes: %w", n, len(p), covey.ErrUnavailable)
	case err != nil:
		return err
	}
	var beyond [1]byte
	switch _, err := io.ReadFull(r, beyond[:]); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	default:
		return fmt.Errorf("more than the %d bytes asked for: %w", n, covey.ErrCorrupt)
	}
}
