package sim

import (
	"math/bits"
	"sync"
	"time"
)

// readLog is how long reads took.
//
// mu is a leaf lock and guards all below.
type readLog struct {
	mu            sync.Mutex
	count, errors int64
	longest       time.Duration
	lateErrors    int64
	late          time.Duration
	buckets       [64 * fine]int64
}

// fine is how many buckets there are for each power of two of nanoseconds: 9 %
// apart.
const fine = 8

// done takes in a read that began then and has ended now; what of it lay after
// the last fault's end counts as late.
func (r *readLog) done(began, healed time.Time) {
	now := time.Now()
	d := now.Sub(began)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	r.longest = max(r.longest, d)
	r.buckets[bucketOf(d)]++
	if !healed.IsZero() && now.After(healed) {
		if began.Before(healed) {
			d = now.Sub(healed)
		}
		r.late = max(r.late, d)
	}
}

// failed takes in a try that ended in an error.
func (r *readLog) failed(began, healed time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors++
	if !healed.IsZero() && began.After(healed) {
		r.lateErrors++
	}
}

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 1))
	top := bits.Len64(n) - 1
	part := 0
	if top >= 3 {
		part = int(n>>(top-3)) & (fine - 1)
	}
	return top*fine + part
}

// quantile returns how long the given share of reads took at most, within 9 %.
func (r *readLog) quantile(q float64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	want := int64(q * float64(r.count))
	var seen int64
	for i, n := range r.buckets {
		if seen += n; n > 0 && seen >= want {
			top, part := i/fine, i%fine
			return time.Duration((1 << top) + (part+1)*(1<<top)/fine)
		}
	}
	return 0
}
