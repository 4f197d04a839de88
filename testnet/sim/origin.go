package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// under is the under-storage that all nodes share: a rate for all answers
// together, a time to the first byte, and a bound on the requests at once, beyond
// which it says 503.
type under struct {
	w    *world
	out  link
	busy atomic.Int64
	// refuses is how many outages are on.
	refuses atomic.Int64

	requests, throttled atomic.Int64
	// read is how often each block was read.
	read []atomic.Int32
	// mu is a leaf lock and guards readers: who is at which block.
	mu      sync.Mutex
	readers map[int][]*node
	// avoidable are bytes of blocks that had been read before, while a live node
	// in reach of the reader held the block or was reading it; late those of them
	// from after the last fault had ended.
	avoidable, late atomic.Int64
}

// bucket is one node's way to the origin: an origin.Bucket that only reads.
type bucket struct {
	origin.Bucket // nil: nothing else is asked
	u             *under
	from          *life
}

var errOut = fmt.Errorf("origin: connection refused: %w", covey.ErrUnavailable)
var errSlowDown = fmt.Errorf("origin: 503 slow down: %w", covey.ErrThrottled)

// Origin names the storage.
func (b bucket) Origin() string { return originName }

// Get asks for a range; the body arrives at the pace of the origin and of the
// node's NIC.
func (b bucket) Get(ctx context.Context, key, version string, r covey.Range) (io.ReadCloser, error) {
	u, n := b.u, b.from.node
	i := u.w.data.number(covey.Locator{Object: covey.Object{Key: key}, Index: 0})
	if i < 0 || version != u.w.data.blocks[i].locator.Version {
		return nil, fmt.Errorf("get %s: %w", key, covey.ErrStale)
	}
	i += int(r.Off / payload)
	u.requests.Add(1)
	firstByte := u.firstByte()
	if u.refuses.Load() > 0 {
		if !u.w.sleep(ctx, time.Millisecond, nil) {
			return nil, context.Cause(ctx)
		}
		u.w.marks.hit(markOutage)
		return nil, errOut
	}
	if u.busy.Add(1) > int64(u.w.c.Origin.Requests) {
		u.busy.Add(-1)
		u.throttled.Add(1)
		u.w.marks.hit(markThrottled)
		if !u.w.sleep(ctx, firstByte, nil) {
			return nil, context.Cause(ctx)
		}
		return nil, errSlowDown
	}
	u.account(n, i, u.w.data.wire(int(r.Len)))
	u.begin(n, i)
	body := &body{u: u, node: n, ctx: ctx, block: i}
	if !u.w.sleep(ctx, firstByte, nil) {
		_ = body.Close() // it has no errors
		return nil, context.Cause(ctx)
	}
	size := u.w.data.wire(int(r.Len))
	now := time.Now()
	sent := u.out.reserve(now, size, float64(u.w.c.Origin.Rate))
	body.done = n.down.reserve(now, size, n.rate())
	if body.done.Before(sent) {
		body.done = sent
	}
	off := int(r.Off % payload)
	body.bytes = u.w.data.bytesOf(i)[off : off+int(r.Len)]
	body.began = now
	return body, nil
}

// firstByte draws a latency: around the median, and five times that for one in a
// hundred.
func (u *under) firstByte() time.Duration {
	d := float64(u.w.c.Origin.FirstByte) * (0.75 + rand.Float64()/2)
	if rand.IntN(100) == 0 {
		d *= 5
	}
	return time.Duration(d)
}

// account counts a read, and whether it could have been avoided.
func (u *under) account(n *node, i int, size int64) {
	u.w.log(event{Kind: "origin", Node: n.num, Block: i + 1, Bytes: size})
	u.w.marks.hit(markGrant)
	if u.read[i].Add(1) == 1 {
		return
	}
	u.w.marks.hit(markReadAgain)
	if u.w.within(n, i) {
		u.avoidable.Add(size)
		if h := u.w.healed; !h.IsZero() && time.Now().After(h) {
			u.late.Add(size)
		}
		u.w.marks.hit(markAvoidable)
		u.w.log(event{Kind: "avoidable", Node: n.num, Block: i + 1})
		return
	}
	if u.w.topo.Load().side[n.num] > 0 {
		u.w.marks.hit(markBothSides)
	}
}

func (u *under) begin(n *node, i int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.readers[i] = append(u.readers[i], n)
}

func (u *under) end(n *node, i int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at := slices.Index(u.readers[i], n)
	if u.readers[i] = slices.Delete(u.readers[i], at, at+1); len(u.readers[i]) == 0 {
		delete(u.readers, i)
	}
}

// readBy returns who is reading a block.
func (u *under) readBy(i int) []*node {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.readers[i])
}

// body is the answer on its way.
type body struct {
	u           *under
	node        *node
	ctx         context.Context
	block       int
	bytes       []byte
	at          int
	began, done time.Time
	closed      bool
}

// portions is how many pieces a body comes in, so that who streams it can begin
// before its end.
const portions = 4

func (b *body) Read(p []byte) (int, error) {
	if b.at == len(b.bytes) {
		return 0, io.EOF
	}
	n := min(len(p), max(1, (len(b.bytes)+portions-1)/portions), len(b.bytes)-b.at)
	share := float64(b.at+n) / float64(len(b.bytes))
	due := b.began.Add(time.Duration(share * float64(b.done.Sub(b.began))))
	if wait := time.Until(due); wait > 0 && !b.u.w.sleep(b.ctx, wait, nil) {
		return 0, context.Cause(b.ctx)
	}
	if b.u.refuses.Load() > 0 {
		return 0, fmt.Errorf("origin: connection reset: %w", covey.ErrUnavailable)
	}
	copy(p, b.bytes[b.at:b.at+n])
	b.at += n
	b.node.got[sourceOrigin].Add(b.u.w.data.wire(n))
	return n, nil
}

func (b *body) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	b.u.busy.Add(-1)
	b.u.end(b.node, b.block)
	if b.at < len(b.bytes) || len(b.bytes) == 0 {
		b.u.w.marks.hit(markCutRead)
	}
	return nil
}

// origins is fetch.Origins of one life: the origin behind the decorators that
// the product has.
type origins struct{ origin.Bucket }

func newOrigins(u *under, l *life) origins {
	return origins{origin.WithRetry(origin.WithLimit(bucket{u: u, from: l}, origin.DefaultInFlight), origin.Retry{}, nil)}
}

// Open reads a range of an object.
func (o origins) Open(ctx context.Context, obj covey.Object, r covey.Range) (io.ReadCloser, error) {
	return o.Get(ctx, obj.Key, obj.Version, r)
}

// bytesEqual says whether a read returned what the origin has: the oracle.
func (w *world) bytesEqual(b int, got []byte) bool { return bytes.Equal(got, w.data.bytesOf(b)) }
