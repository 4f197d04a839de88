package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
)

// stallAfter is how long a silent peer is waited for, as peer.DefaultStallAfter.
const stallAfter = time.Second

// link is one direction of a node's NIC: first come, first served, a portion at a
// time.
type link struct {
	mu   sync.Mutex // leaf lock; guards free
	free time.Time
}

// reserve takes the link for size bytes, from not before at on, and returns when
// the last of them is through.
func (l *link) reserve(at time.Time, size int64, rate float64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(at) {
		l.free = at
	}
	l.free = l.free.Add(time.Duration(float64(size) / rate * 1e9))
	return l.free
}

// busy reports whether something waits for the link or is on it.
func (l *link) busy(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.free.After(now)
}

// topology says who can send to whom. It is immutable; a fault makes a new one.
type topology struct {
	side map[int]int  // node to side of a partition; 0 when absent
	deaf map[int]bool // nodes that hear nothing of the others
}

// reaches reports whether a message gets from one node to another.
func (t *topology) reaches(from, to int) bool {
	return from == to || t.side[from] == t.side[to] && !t.deaf[to]
}

// cut changes the topology.
func (w *world) cut(change func(*topology)) {
	w.topoMu.Lock()
	defer w.topoMu.Unlock()
	old := w.topo.Load()
	t := &topology{side: map[int]int{}, deaf: map[int]bool{}}
	for n, s := range old.side {
		t.side[n] = s
	}
	for n := range old.deaf {
		t.deaf[n] = true
	}
	change(t)
	w.topo.Store(t)
}

func (w *world) latency(a, b *node) time.Duration {
	switch {
	case a.rack == b.rack:
		return w.c.Rates.SameRack.D()
	case a.zone == b.zone:
		return w.c.Rates.SameZone.D()
	}
	return w.c.Rates.Far.D()
}

// sleep lets time pass; it ends early with the context or with what else ends,
// and says so. Timers are used again: each message takes two.
func (w *world) sleep(ctx context.Context, d time.Duration, ends <-chan struct{}) bool {
	t, ok := w.timers.Get().(*time.Timer)
	if ok {
		t.Reset(d)
	} else {
		t = time.NewTimer(d)
	}
	defer func() {
		t.Stop()
		w.timers.Put(t)
	}()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-ends:
	}
	return false
}

// These are made once each; who failed whom is in the log of events.
var (
	errNoMember = fmt.Errorf("not a member: %w", covey.ErrUnavailable)
	errPausing  = fmt.Errorf("failed a moment ago: %w", covey.ErrUnavailable)
	errRefused  = fmt.Errorf("connection refused: %w", covey.ErrUnavailable)
	errReset    = fmt.Errorf("connection reset: %w", covey.ErrUnavailable)
	errStalled  = fmt.Errorf("peer stalled: %w", covey.ErrUnavailable)
	errNoAnswer = fmt.Errorf("no answer: %w", covey.ErrUnavailable)
)

// port is a life's side of the network: dht.Caller and fetch.Exchange.
type port struct {
	w    *world
	from *life
}

// dial gets a message to a peer and returns the peer's life there.
func (p port) dial(ctx context.Context, id covey.PeerID, bytes int) (*life, error) {
	self := p.from.node
	to := p.w.byID[id]
	switch {
	case to == nil:
		return nil, errNoMember
	case self.view.isDown(id):
		return nil, errPausing
	}
	self.sent.Add(1)
	self.sentBytes.Add(int64(bytes))
	there := to.life.Load()
	var died <-chan struct{}
	if there != nil {
		died = there.ctx.Done()
	}
	if !p.w.sleep(ctx, p.w.latency(self, to), died) && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !p.w.topo.Load().reaches(self.num, to.num) {
		return nil, p.stall(ctx, to)
	}
	there = to.life.Load()
	if there == nil {
		// Nobody listens: the host says so.
		if !p.w.sleep(ctx, p.w.latency(self, to), nil) {
			return nil, context.Cause(ctx)
		}
		p.w.marks.hit(markDialDead)
		self.view.failed(id, false)
		return nil, errRefused
	}
	return there, nil
}

// stall is what a message that vanishes looks like: nothing, until the peer
// counts as stalled.
func (p port) stall(ctx context.Context, to *node) error {
	if !p.w.sleep(ctx, stallAfter, nil) {
		return context.Cause(ctx)
	}
	p.w.marks.hit(markStall)
	p.from.node.view.failed(to.id, true)
	return errStalled
}

// back is the way of an answer: it arrives, or the reason why not.
func (p port) back(ctx context.Context, there *life, after time.Duration) error {
	if !p.w.sleep(ctx, after, there.ctx.Done()) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errReset
	}
	if !p.w.topo.Load().reaches(there.node.num, p.from.node.num) {
		return p.stall(ctx, there.node)
	}
	if there.ctx.Err() != nil {
		return errReset
	}
	return nil
}

// Call sends a directory message and waits for its answer.
func (p port) Call(ctx context.Context, to covey.PeerID, request []byte) ([]byte, error) {
	there, err := p.dial(ctx, to, len(request))
	if err != nil {
		return nil, err
	}
	there.node.served.Add(1)
	p.w.log(event{Kind: "call", Node: p.from.node.num, Peer: there.node.num + 1, Bytes: int64(len(request))})
	reply := there.dir.Serve(ctx, p.from.node.id, request)
	there.node.sent.Add(1)
	there.node.sentBytes.Add(int64(len(reply)))
	err = p.back(ctx, there, p.w.latency(p.from.node, there.node))
	switch {
	case errors.Is(err, errReset):
		p.w.hitUnlessOver(markResetCall)
		return nil, err
	case err != nil:
		return nil, err
	case reply == nil:
		return nil, errNoAnswer
	}
	return reply, nil
}

// requestBytes is what a request for a block takes on the wire, about.
const requestBytes = 128

// Fetch reads a block from a neighbour.
func (p port) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error {
	return p.fetch(ctx, from, &want{l: l, buf: buf, wait: wait})
}

// FetchFrom reads the end of a block from a neighbour.
func (p port) FetchFrom(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, off int, told *fetch.Progress) error {
	return p.fetch(ctx, from, &want{l: l, buf: buf, off: off, told: told})
}

// want is a request for a block, or the end of one.
type want struct {
	l    covey.Locator
	buf  []byte
	off  int
	wait bool
	told *fetch.Progress
}

func (p port) fetch(ctx context.Context, from covey.PeerID, q *want) error {
	there, err := p.dial(ctx, from, requestBytes)
	if err != nil {
		return err
	}
	err = p.ask(ctx, there, q)
	switch {
	case errors.Is(err, errReset):
		p.w.hitUnlessOver(markResetFetch)
	case err == nil && q.wait:
		p.w.marks.hit(markFollow)
	case q.wait && ctx.Err() == nil:
		p.w.marks.hit(markFollowFailed)
	case err == nil && q.off > 0:
		p.w.marks.hit(markResumed)
	}
	if p.w.events != nil {
		e := event{Kind: "fetch", Node: p.from.node.num, Peer: there.node.num + 1, Block: p.w.data.number(q.l) + 1}
		if e.Bytes = p.w.data.wire(len(q.buf) - q.off); err != nil {
			e.Bytes, e.Error = 0, err.Error()
		}
		p.w.log(e)
	}
	return err
}

// ask is what the other side does with the request.
func (p port) ask(ctx context.Context, there *life, q *want) error {
	n := there.node
	if n.claims.Load() {
		p.w.marks.hit(markClaimRefused)
		return p.refused(ctx, there, covey.ErrNotFound)
	}
	h, err := there.fetcher.Serve(ctx, q.l, q.wait)
	if err != nil {
		if there.ctx.Err() != nil {
			return errReset
		}
		if !q.wait {
			p.w.marks.hit(markNotFound)
		}
		return p.refused(ctx, there, err)
	}
	defer h.Release()
	if n.slow() {
		p.w.marks.hit(markSlowServed)
	}
	return p.transfer(ctx, there, h, q)
}

// refused is the way back of an answer without bytes.
func (p port) refused(ctx context.Context, there *life, answer error) error {
	if err := p.back(ctx, there, p.w.latency(p.from.node, there.node)); err != nil {
		return err
	}
	return answer
}

// portion is what a block is sent in where others wait for the same NIC, so that
// they take turns as the frames of streams do; a quarter of a block.
const portion = payload / 4

// transfer moves the block: each portion through the sender's NIC, then the
// receiver's, which can begin when the portion's first byte arrives and cannot
// end before the last one does.
func (p port) transfer(ctx context.Context, there *life, h blockstore.Handle, q *want) error {
	self, n := p.from.node, there.node
	latency := p.w.latency(self, n)
	next := time.Now() // when the sender has the next portion ready
	for at := q.off; at < len(q.buf); {
		now := time.Now()
		to := len(q.buf)
		// Alone, a block goes at once: the same time with a quarter of the work. A
		// block that is still being read goes as it comes.
		if q.wait || n.up.busy(now) || self.down.busy(now) {
			to = min(to, at+portion)
		}
		if _, err := h.ReadAt(q.buf[at:to], int64(at)); err != nil && !errors.Is(err, io.EOF) {
			return p.refused(ctx, there, fmt.Errorf("read at %s: %w", n.id, err))
		}
		if now = time.Now(); q.wait {
			next = now
		}
		size := p.w.data.wire(to - at)
		next = n.up.reserve(next, size, n.rate())
		arrives := next.Add(latency)
		// The receiver's side is reserved when the portion reaches it, else a slow
		// sender would keep it from others.
		begins := arrives.Add(-time.Duration(float64(size) / self.rate() * 1e9))
		if begins.After(now.Add(latency)) {
			if err := p.back(ctx, there, begins.Sub(now)); err != nil {
				return err
			}
		}
		received := self.down.reserve(begins, size, self.rate())
		if received.Before(arrives) {
			received = arrives
		}
		if err := p.back(ctx, there, time.Until(received)); err != nil {
			return err
		}
		if n.lies.Load() {
			q.buf[at] ^= 0x80
			p.w.marks.hit(markLie)
		}
		at = to
		q.told.Reached(at)
		self.got[sourceNeighbour].Add(size)
		n.gave.Add(size)
	}
	return nil
}

// Nearness says how far a peer is, and how fast in bytes of payload.
func (p port) Nearness(id covey.PeerID) (fetch.Distance, float64) {
	self, to := p.from.node, p.w.byID[id]
	rate := float64(p.w.c.Rates.NIC) / p.w.data.scale
	switch {
	case to == nil:
		return fetch.Far, 0
	case to.rack == self.rack:
		return fetch.SameRack, rate
	case to.zone == self.zone:
		return fetch.SameZone, rate
	}
	return fetch.Far, rate
}

// counter is an atomic count.
type counter = atomic.Int64
