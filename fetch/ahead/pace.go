package ahead

import (
	"errors"
	"time"

	"github.com/covey-cache/covey"
)

// pace is how fast a rank reads, from how its counter moves.
type pace struct {
	rate  float64 // bytes a second, a moving average
	burst int64   // the most that it took at once of late
	from  time.Time
	bytes int64
}

// paceSpan is the time over which a rate is taken: a few steps of most jobs.
const paceSpan = time.Second

// moved takes in that the rank has read n more bytes.
func (p *pace) moved(now time.Time, n int64) {
	p.burst = max(n, p.burst-p.burst/16)
	if p.from.IsZero() {
		p.from = now
		return
	}
	p.bytes += n
	span := now.Sub(p.from)
	if span < paceSpan {
		return
	}
	rate := float64(p.bytes) / span.Seconds()
	if p.rate == 0 {
		p.rate = rate
	} else {
		p.rate += (rate - p.rate) / 2
	}
	p.from, p.bytes = now, 0
}

// reads counts what is asked for of a manifest's files.
type reads struct {
	all, missed int64
	// late and missedLate are of the last window of lateReads.
	late, missedLate int64
}

const (
	// lateReads is how many reads the divergence is taken over.
	lateReads = 1000
	// leastReads are needed before a plan is judged: a person who looks at a few
	// files is no reason to drop one.
	leastReads = 100
	// maxDivergence is the share of reads that a plan may not have foreseen.
	maxDivergence = 0.01
)

func (r *reads) count(foreseen bool) {
	if r.late == lateReads {
		r.late, r.missedLate = 0, 0
	}
	r.all++
	r.late++
	if !foreseen {
		r.missed++
		r.missedLate++
	}
}

func (r *reads) share() float64 {
	if r.late == 0 {
		return 0
	}
	return float64(r.missedLate) / float64(r.late)
}

func (r *reads) diverged() bool {
	return r.late >= leastReads && r.share() > maxDivergence && r.missedLate > maxDivergence*lateReads/2
}

func (r *reads) reset() { r.late, r.missedLate = 0, 0 }

func isFull(err error) bool { return errors.Is(err, covey.ErrFull) }

// isFinal says that trying again is of no use.
func isFinal(err error) bool {
	for _, kind := range []error{covey.ErrNotFound, covey.ErrStale, covey.ErrDenied, covey.ErrInvalid} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
