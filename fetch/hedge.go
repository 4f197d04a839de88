package fetch

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// minHedge and maxHedge bound how long a neighbour may stay silent before
	// another is asked. A 4 MiB block needs 1.3 ms on 25 GbE, so 5 ms means
	// queueing, not distance; shorter doubles traffic when the network is
	// busiest. 50 ms is what a reader may notice.
	minHedge = 5 * time.Millisecond
	maxHedge = 50 * time.Millisecond
	// hedgeShare is how many of the bytes received may be wasted on hedges.
	hedgeShare = 0.03
	// hedgeCredit is what may be wasted before anything was received, and the
	// most that is saved up: one block from each of a window of peers.
	hedgeCredit = 32 << 20
	// maxHedges is how many may be under way at once: two peers that fail at the
	// same moment, each with a whole window.
	maxHedges = 2 * maxWindow

	// slowAfter and slowBytes say when a stream is left for another: 2 MiB/s is a
	// hundredth of what any network that is worth a cache carries.
	slowAfter = 500 * time.Millisecond
	slowBytes = 1 << 20
)

// hedges decides when a second neighbour may be asked for the same bytes, and
// pays for it out of a share of the traffic. What counts is what was received
// twice: a hedge against a peer that sends nothing costs nothing.
type hedges struct {
	scale float64 // Options.Scale

	mu     sync.Mutex // leaf lock; guards credit and under
	credit float64    // bytes; below zero no hedge begins
	under  int

	begun, won, denied, left, wasted atomic.Int64
}

func newHedges(scale float64) *hedges { return &hedges{scale: scale, credit: hedgeCredit} }

// begin reports whether one more hedge may begin; each that does must end.
func (h *hedges) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credit <= 0 || h.under >= maxHedges {
		h.denied.Add(1)
		return false
	}
	h.under++
	h.begun.Add(1)
	return true
}

func (h *hedges) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.under--
}

// received adds what a neighbour sent; wasted is the part of it that was not
// used.
func (h *hedges) received(bytes, wasted int) {
	h.wasted.Add(int64(wasted))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.credit = min(h.credit+h.scale*(hedgeShare*float64(bytes)-float64(wasted)), hedgeCredit)
}

// hedgeDelay is how long a neighbour may say nothing: the 95th percentile of how
// long first bytes take.
func (f *Fetcher) hedgeDelay() time.Duration {
	p95, ok := f.firstByte.percentile(95)
	if !ok {
		return maxHedge
	}
	return min(max(p95, minHedge), maxHedge)
}

// lateAfter is how long a block may take although its bytes keep coming. It is
// twice the 95th percentile, because a block that waits behind others of its
// window takes that long without anything being wrong.
func (f *Fetcher) lateAfter() time.Duration {
	p95, ok := f.neighbourTook.percentile(95)
	if !ok {
		return maxHedge
	}
	return min(max(2*p95, maxHedge), slowAfter)
}
