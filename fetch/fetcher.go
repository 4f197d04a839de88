package fetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// Fetcher returns the bytes of a block from the nearest copy that verifies.
//
// Bytes from a neighbour are hashed before anyone sees them, against the digest
// that a home gave and never against one that the sender gave. A block is only
// ever of its locator's version: ErrStale and ErrNotFound of the origin end the
// fetch at once.
//
// All methods may be called concurrently. Get and Serve work before Run;
// Prefetch only queues until then. After Run has returned, what is in the store
// is still served, everything else is ErrUnavailable, and no goroutine of the
// Fetcher is left. Handles stay readable.
type Fetcher struct {
	opts      Options
	log       *slog.Logger
	store     Store
	table     *table
	planner   *planner
	staging   *staging
	queue     *queue
	metrics   *metrics
	announced announced

	originTook, neighbourTook, firstByte latency
	originFirst                          latency // to the first byte
	neighbours                           *neighbours
	hedges                               *hedges
	audits                               auditor
	quarantines                          quarantined
	scans                                scans
	readings                             readings
	volunteered                          atomic.Int32
	// overrides has a place for each read that no home granted.
	overrides chan struct{}
	// full is the time, in nanoseconds since 1970, until which prefetch rests
	// because the store had no room.
	full   atomic.Int64
	ranges ranges
	// advised holds an advice.
	advised atomic.Value

	root context.Context         // parent of every flight's
	stop context.CancelCauseFunc // of root
	ran  atomic.Bool
}

// New returns a Fetcher. It starts nothing. It panics when the options do not
// validate, which only a bug in the caller can bring about.
func New(o Options) *Fetcher {
	if err := o.Validate(); err != nil {
		panic(err)
	}
	o.setDefaults()
	root, stop := context.WithCancelCause(context.Background())
	f := &Fetcher{
		opts:      o,
		log:       o.Log,
		store:     o.Store,
		table:     newTable(root, o.Deadline),
		staging:   &staging{limit: o.StagingBytes},
		queue:     newQueue(o.PrefetchQueue, o.PrefetchFlights),
		announced: announced{slots: newLRU[covey.ExtentID, covey.Bitmap](maxAnnounced)},
		hedges:    newHedges(o.Scale),
		overrides: make(chan struct{}, o.Overrides),
		ranges:    newRanges(),
		stop:      stop,
	}
	f.neighbours = newNeighbours(o.Topology)
	f.audits.every = o.AuditEvery
	f.quarantines.until = newLRU[covey.Locator, time.Time](maxQuarantined)
	f.staging.onSpare = f.queue.nudge
	f.scans.extents = newLRU[covey.ExtentID, scan](scanExtents)
	f.readings = readings{wake: make(chan struct{}, 1), scale: o.Scale, active: make(map[*reading]struct{})}
	f.root = root
	f.planner = newPlanner(root, o.Directory, f.table, o.Log)
	f.planner.add, f.planner.taken = f.volunteer, f.taken
	f.metrics = newMetrics(f, o.Registry)
	return f
}

// Run prefetches what was queued until ctx ends. Then it ends all fetches under
// way, tells the homes of the grants among them, and returns nil when every
// goroutine is gone. It can be called once.
func (f *Fetcher) Run(ctx context.Context) error {
	if f.ran.Swap(true) {
		return fmt.Errorf("fetch: Run called twice: %w", covey.ErrInvalid)
	}
	f.table.spawn(func() { f.reportProgress(f.root) })
	f.prefetch(ctx)
	f.table.stop()
	f.stop(errStopped)
	f.table.wg.Wait()
	return nil
}

// Get holds block slot of e, wherever it comes from. Concurrent calls for one
// block share one fetch, which has its own context and ends when the last caller
// leaves; a caller whose ctx ends leaves at once. The caller releases the
// handle. Errors wrap the covey kinds; ErrStale means that the object changed.
func (f *Fetcher) Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error) {
	if slot < 0 || slot >= len(e.Blocks) {
		return nil, fmt.Errorf("slot %d of an extent of %d: %w", slot, len(e.Blocks), covey.ErrInvalid)
	}
	began := time.Now()
	if _, _, err := f.expected(e.Blocks[slot]); err != nil {
		return nil, err
	}
	if h, err := f.getLocal(e.Blocks[slot]); err == nil {
		f.metrics.count(Local, h.Len(), time.Since(began))
		f.announceOnce(e, slot, h.Digest())
		return h, nil
	}
	if h := f.staged(e.Blocks[slot], began); h != nil {
		return h, nil
	}
	h, retry, err := f.getShared(ctx, e, slot)
	if retry {
		// The flight was older than this caller, and may have spent its deadline
		// before.
		h, _, err = f.getShared(ctx, e, slot)
	}
	return h, err
}

// getLocal gets a block from the store, if it is the manifest's.
func (f *Fetcher) getLocal(l covey.Locator) (blockstore.Handle, error) {
	h, err := f.store.Get(l)
	if err != nil {
		return nil, err
	}
	if err := f.vouchLocal(l, h.Digest()); err != nil {
		h.Release()
		return nil, err
	}
	return h, nil
}

// getShared joins or begins the block's flight. retry says that the flight was
// another's and failed in a way that another try may not.
func (f *Fetcher) getShared(ctx context.Context, e *covey.Extent, slot int) (h blockstore.Handle, retry bool, err error) {
	if r := e.Blocks[slot].Range(); r.Len <= 0 || r.Len > covey.MaxBlockSize {
		return nil, false, fmt.Errorf("fetch %s: block of %d bytes: %w", e.Blocks[slot], r.Len, covey.ErrInvalid)
	}
	fl, began, err := f.table.join(e, slot, true, f.patience())
	if err != nil {
		return nil, false, fmt.Errorf("fetch %s: %w: %w", e.Blocks[slot], covey.ErrUnavailable, err)
	}
	if began {
		go f.fly(fl)
	}
	h, err = f.await(ctx, fl, fl.ready)
	return h, err != nil && !began && ctx.Err() == nil && errors.Is(err, covey.ErrUnavailable), err
}

// await waits for the flight that the caller has joined, and leaves it.
func (f *Fetcher) await(ctx context.Context, fl *flight, stage <-chan struct{}) (blockstore.Handle, error) {
	defer f.table.leave(fl)
	select {
	case <-stage:
		if fl.err != nil {
			return nil, fl.err
		}
		return fl.block.hold(), nil
	case <-ctx.Done():
		err := fmt.Errorf("fetch %s: %w", fl.locator, ctx.Err())
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", err, covey.ErrUnavailable)
		}
		return nil, err
	}
}

// Admitted waits for the store to have taken, or refused, those of the object's
// blocks whose bytes were handed out already: callers of Get do not wait for the
// disk. It reports whether there was anything to wait for. A read that is still
// under way is not waited for, and a disk that does not answer for a second only:
// the reader has its bytes from elsewhere.
func (f *Fetcher) Admitted(o covey.Object) bool {
	timer := time.NewTimer(admittedWait)
	defer timer.Stop()
	waited := false
	for i := range o.Blocks() {
		fl := f.table.landed(o.Block(i))
		if fl == nil {
			continue
		}
		waited = true
		select {
		case <-fl.ended:
		case <-timer.C:
			return true
		}
	}
	return waited
}

// admittedWait is the most that an open waits for the disk: a hundred times what it
// takes, and half of what a stalled disk may cost a reader.
const admittedWait = time.Second

// AdmittedBlock waits for the store to have taken, or refused, one block, however
// long that takes.
func (f *Fetcher) AdmittedBlock(l covey.Locator) bool {
	fl := f.table.landed(l)
	if fl != nil {
		<-fl.ended
	}
	return fl != nil
}

// announceHold is how long Serve waits for a flight to begin. A home answers two
// askers within a round trip of each other, and the one that is told to follow
// may reach the one that is told to read before the home's own answer
// does. On a node whose processors are all busy it can take half a second; a
// refusal then makes the home grant the block a second time.
const announceHold = 500 * time.Millisecond

// Serve waits for the block when this peer is fetching it, else looks it up in
// the store: what the exchange's server side calls. It never starts a fetch.
// wait says whether to wait at all; with it, a block of which nothing is known
// is waited for briefly, since the fetch may be about to begin. The error is
// ErrNotFound unless ctx ended.
func (f *Fetcher) Serve(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error) {
	if h, err := f.store.Get(l); err == nil {
		return h, nil
	}
	if !wait {
		return f.serveLanded(l)
	}
	fl, a := f.table.findOrAwait(l)
	if fl == nil {
		// A flight may have ended between the two looks.
		h, err := f.store.Get(l)
		if err == nil || a == nil {
			if a != nil {
				f.table.forget(l, a)
			}
			return h, err
		}
		fl = f.expect(ctx, l, a)
	}
	if fl == nil {
		return nil, fmt.Errorf("serve %s: no fetch under way: %w", l, covey.ErrNotFound)
	}
	h, err := f.await(ctx, fl, fl.settled)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("serve %s: its fetch failed: %w", l, covey.ErrNotFound)
	}
	return h, err
}

// serveLanded returns the block of a flight that has its bytes. The home may not
// have answered the report yet: whoever does not wait was told by the home that
// this peer is a holder, and with it the digest. To be refused here, in the moment
// between the home's hearing and its answer's arrival, would cost a second read
// of the origin.
func (f *Fetcher) serveLanded(l covey.Locator) (blockstore.Handle, error) {
	fl := f.table.find(l)
	if fl == nil {
		return nil, fmt.Errorf("serve %s: %w", l, covey.ErrNotFound)
	}
	defer f.table.leave(fl)
	select {
	case <-fl.ready:
		if fl.err == nil {
			return fl.block.hold(), nil
		}
	default:
	}
	return nil, fmt.Errorf("serve %s: still being fetched: %w", l, covey.ErrNotFound)
}

// expect waits briefly for a flight to begin and joins it; nil when none did.
func (f *Fetcher) expect(ctx context.Context, l covey.Locator, a *awaited) *flight {
	defer f.table.forget(l, a)
	timer := time.NewTimer(announceHold)
	defer timer.Stop()
	select {
	case <-a.began:
		return f.table.find(l)
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// announced remembers which slots of which extents this process has announced,
// so that a local hit under an extent that the store did not have the block
// under (the listing changed) is advertised there as well, once.
type announced struct {
	mu    sync.Mutex // leaf lock; guards slots
	slots *lru[covey.ExtentID, covey.Bitmap]
}

// maxAnnounced is 16 Mi blocks at least half used, in about 2 MiB. What is
// forgotten is announced again, which costs 50 bytes in a batch.
const maxAnnounced = 16 << 10

// add marks the slot and reports whether it was new.
func (a *announced) add(id covey.ExtentID, slot int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	have, ok := a.slots.get(id)
	if ok && have.Has(slot) {
		return false
	}
	a.slots.put(id, have.With(slot))
	return true
}
