package fetch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

// flight is one fetch of one block, shared by everyone who waits for it. It has
// its own context, so that no caller can end it for another; the last caller to
// leave ends it. From a granted lease on nobody ends it but its deadline: the
// home has told other peers to wait for this one, the origin bills the request
// either way, and a read given up would be granted and made again elsewhere.
type flight struct {
	locator covey.Locator
	extent  *covey.Extent
	slot    int
	began   time.Time

	ctx    context.Context
	cancel context.CancelCauseFunc

	// raised closes when somebody waits for the bytes: at once, or when a demand
	// joins what prefetch began.
	raised chan struct{}
	// ready closes when block and err are set, and they do not change any more.
	ready chan struct{}
	block *block
	err   error
	// settled closes when the home knows the digest as well (or the flight
	// failed): only then may another peer be served, which will ask the home.
	settled chan struct{}
	// ended closes when the flight's goroutine is done with the store too.
	ended chan struct{}

	// What the flight's goroutine has from its start, and it alone uses: memory
	// and the question that was asked for it, both only when prefetch began it.
	buf   *buffer
	asked *question

	// mesh ends, with errImpatient, when a demand has waited for the mesh long
	// enough. The flight's goroutine alone replaces it.
	mesh   context.Context
	giveUp context.CancelCauseFunc

	// Guarded by table.mu.
	waiters   int
	demand    bool
	committed bool // goes on when its last caller leaves
	running   bool
	timer     *time.Timer // of giveUp, once there is demand
}

var (
	errImpatient = errors.New("waited for the mesh long enough")
	errLeft      = errors.New("nobody waits any more")
	errDeadline  = errors.New("no source in time")
	errStopped   = errors.New("the fetcher is stopping")
)

// table holds the flights under way, one a block.
type table struct {
	root     context.Context // parent of every flight's
	deadline time.Duration
	wg       sync.WaitGroup // every goroutine of the fetcher

	// mu guards all below and the marked fields of flights. It is a leaf lock
	// but for the timers and contexts of flights.
	//
	// INVARIANT: a flight in the map is running, or will be before mu is free.
	// INVARIANT: its block keeps a reference while it runs or anybody waits.
	mu      sync.Mutex
	flights map[covey.Locator]*flight
	awaited map[covey.Locator]*awaited
	stopped bool
}

// awaited is a flight that other peers expect to begin here.
type awaited struct {
	began chan struct{}
	n     int
}

// maxAwaited bounds the blocks whose flights are expected to begin. Each waits
// for 500 ms at most; whoever asks for more of them is told NOT_FOUND. How many
// requests wait for one block is for the exchange to bound.
const maxAwaited = 1024

func newTable(root context.Context, deadline time.Duration) *table {
	return &table{
		root:     root,
		deadline: deadline,
		flights:  make(map[covey.Locator]*flight),
		awaited:  make(map[covey.Locator]*awaited),
	}
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flights)
}

func (t *table) has(l covey.Locator) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flights[l] != nil
}

// join adds a waiter to the block's flight, and begins one when there is none;
// began says so, and then the caller must start run. With demand the flight is
// raised, and patience bounds its wait for the mesh.
func (t *table) join(e *covey.Extent, slot int, demand bool, patience time.Duration) (fl *flight, began bool, err error) {
	l := e.Blocks[slot]
	t.mu.Lock()
	defer t.mu.Unlock()
	fl = t.flights[l]
	if fl == nil {
		if t.stopped {
			return nil, false, errStopped
		}
		fl, began = t.begin(l, e, slot), true
	}
	fl.waiters++
	if demand {
		fl.raise(patience)
	}
	return fl, began, nil
}

// begin makes the flight of a block that has none; t.mu is held.
func (t *table) begin(l covey.Locator, e *covey.Extent, slot int) *flight {
	fl := &flight{
		locator: l, extent: e, slot: slot,
		began:   time.Now(),
		raised:  make(chan struct{}),
		ready:   make(chan struct{}),
		settled: make(chan struct{}),
		ended:   make(chan struct{}),
		running: true,
	}
	ctx, cancel := context.WithCancelCause(t.root)
	ctx, stop := context.WithTimeoutCause(ctx, t.deadline, errDeadline)
	fl.ctx, fl.cancel = ctx, func(cause error) { cancel(cause); stop() }
	fl.mesh, fl.giveUp = context.WithCancelCause(fl.ctx)
	t.flights[l] = fl
	t.wg.Add(1)
	if a := t.awaited[l]; a != nil {
		delete(t.awaited, l)
		close(a.began)
	}
	return fl
}

// raise says that somebody waits for the bytes; t.mu is held.
func (fl *flight) raise(patience time.Duration) {
	if fl.demand {
		return
	}
	fl.demand = true
	close(fl.raised)
	giveUp := fl.giveUp
	fl.timer = time.AfterFunc(patience, func() { giveUp(errImpatient) })
}

// wanted says whether somebody waits for the bytes.
func (fl *flight) wanted() bool {
	select {
	case <-fl.raised:
		return true
	default:
		return false
	}
}

// impatient says whether the mesh was waited for long enough.
func (fl *flight) impatient() bool { return fl.mesh.Err() != nil && fl.ctx.Err() == nil }

// renew gives the mesh another span of patience. Only the flight's goroutine
// calls it, and only when there is demand.
func (t *table) renew(fl *flight, patience time.Duration) {
	mesh, giveUp := context.WithCancelCause(fl.ctx)
	fl.mesh, fl.giveUp = mesh, giveUp
	t.mu.Lock()
	defer t.mu.Unlock()
	fl.timer.Stop()
	fl.timer = time.AfterFunc(patience, func() { giveUp(errImpatient) })
}

// commit makes the flight go on without callers. It reports whether the flight
// had not ended already.
func (t *table) commit(fl *flight) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if fl.ctx.Err() != nil {
		return false
	}
	fl.committed = true
	return true
}

// finish sets what the flight found and wakes the callers. It keeps the block's
// reference until end.
func (t *table) finish(fl *flight, b *block, err error) {
	fl.block, fl.err = b, err
	t.mu.Lock()
	fl.committed = true
	t.mu.Unlock()
	close(fl.ready)
}

// end takes the flight out of the table; what is asked for from now on begins
// anew. It is the last thing the flight's goroutine does.
func (t *table) end(fl *flight) {
	t.mu.Lock()
	fl.running = false
	if t.flights[fl.locator] == fl {
		delete(t.flights, fl.locator)
	}
	if fl.timer != nil {
		fl.timer.Stop()
	}
	drop := fl.waiters == 0
	t.mu.Unlock()
	close(fl.ended)
	fl.cancel(errLeft)
	fl.giveUp(errLeft)
	if drop && fl.block != nil {
		fl.block.unref()
	}
	t.wg.Done()
}

// leave is called once for each join, after the caller has its own hold on the
// block or does not want it any more.
func (t *table) leave(fl *flight) {
	t.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	drop := last && !fl.running
	abandon := last && fl.running && !fl.committed
	if abandon {
		// Whoever asks next begins anew, rather than join what is ending.
		if t.flights[fl.locator] == fl {
			delete(t.flights, fl.locator)
		}
		fl.cancel(errLeft)
	}
	t.mu.Unlock()
	if drop && fl.block != nil {
		fl.block.unref()
	}
}

// find joins the block's flight if there is one, without raising it.
func (t *table) find(l covey.Locator) *flight {
	t.mu.Lock()
	defer t.mu.Unlock()
	fl := t.flights[l]
	if fl != nil {
		fl.waiters++
	}
	return fl
}

// landed returns the block's flight if it has its bytes already and only the
// store is still at work.
func (t *table) landed(l covey.Locator) *flight {
	t.mu.Lock()
	defer t.mu.Unlock()
	fl := t.flights[l]
	if fl == nil {
		return nil
	}
	select {
	case <-fl.ready:
		return fl
	default:
		return nil
	}
}

// findOrAwait is find, or else registers for the flight to begin. Both are nil
// when too many wait already. What is not nil must be given to leave or forget.
func (t *table) findOrAwait(l covey.Locator) (*flight, *awaited) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if fl := t.flights[l]; fl != nil {
		fl.waiters++
		return fl, nil
	}
	a := t.awaited[l]
	if a == nil {
		if len(t.awaited) >= maxAwaited || t.stopped {
			return nil, nil
		}
		a = &awaited{began: make(chan struct{})}
		t.awaited[l] = a
	}
	a.n++
	return nil, a
}

func (t *table) forget(l covey.Locator, a *awaited) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.n--
	if a.n == 0 && t.awaited[l] == a {
		delete(t.awaited, l)
	}
}

// spawn runs f in a goroutine that stop waits for, unless stopped.
func (t *table) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return false
	}
	t.wg.Go(f)
	return true
}

// stop refuses new flights.
func (t *table) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
}
