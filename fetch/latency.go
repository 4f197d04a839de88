package fetch

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

// latency estimates the 99th percentile of how long something takes from its
// last 128 durations: of so few that is the second largest, which errs towards
// patience.
type latency struct {
	mu   sync.Mutex // leaf lock; guards all below
	ring [128]time.Duration
	n    int // durations ever added
}

// minSamples is how many durations make an estimate. Fewer are the connection
// set-up of a process that just began.
const minSamples = 16

func (e *latency) add(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring[e.n%len(e.ring)] = d
	e.n++
}

// p99 returns the estimate; false when too little is known.
func (e *latency) p99() (time.Duration, bool) { return e.percentile(99) }

// percentile is p99 for any whole percentage.
func (e *latency) percentile(percent int) (time.Duration, bool) {
	e.mu.Lock()
	n := min(e.n, len(e.ring))
	sorted := e.ring
	e.mu.Unlock()
	if n < minSamples {
		return 0, false
	}
	slices.Sort(sorted[:n])
	return sorted[n-1-n*(100-percent)/100], true
}

// The bounds of how long a demand read waits for what the mesh promised.
const (
	// minPatience is longer than the pauses of a busy host and one retry at the
	// origin. Were it shorter, those would pass for trouble in the mesh, and the
	// block would be read twice just when everybody is busy. And it is longer
	// than the second after which a home that waits for a silent one decides by
	// itself, so that its answer comes before patience ends.
	minPatience = 1500 * time.Millisecond
	// maxPatience is what a training step can lose without anybody calling it
	// hung; it is also the patience before anything is known.
	maxPatience = 3 * time.Second
)

// patience is how long a demand read waits before it reads the origin itself:
// twice what an origin read takes at worst, since the peer that was granted the
// block may have begun just now and fail once.
func (f *Fetcher) patience() time.Duration {
	p99, ok := f.originTook.p99()
	if !ok {
		return maxPatience
	}
	return min(max(2*p99, minPatience), maxPatience)
}

const (
	// minTry is how long one holder may take for one block: 1 MiB/s for 4 MiB.
	// The exchange leaves a holder that says nothing after a second; this is for
	// one that crawls, and on a node whose processors are all busy, every one
	// does.
	minTry = 4 * time.Second
	// maxTry bounds a try where the whole mesh is slow.
	maxTry = 10 * time.Second
)

// tryLimit is how long one holder may take. On a loaded host every neighbour is
// slow; leaving them all would send the load to the origin.
func (f *Fetcher) tryLimit() time.Duration {
	p99, _ := f.neighbourTook.p99()
	return min(max(4*p99, minTry), maxTry)
}

const (
	// suspicion is how long a peer that failed just now is asked last, so that the
	// time a stopped host costs is paid once and not by each block: the two seconds
	// that a plan lives, twice.
	suspicion = 5 * time.Second
	// liarSuspicion is longer: a peer that sent wrong bytes has a bad disk or
	// bad intentions, and neither heals in seconds.
	liarSuspicion = time.Minute
)

// peerName shows a peer's raw identity in logs.
type peerName covey.PeerID

// LogValue is only computed for records that are written.
func (p peerName) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf("%x", string(p))) }
