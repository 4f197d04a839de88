package dataset

import (
	"context"
	"errors"
	"time"

	"github.com/covey-cache/covey"
)

// askAgain is how long after a failure known entries are answered without asking
// the origin. An unreachable origin costs each question a driver's retries, and
// a training job stats thousands of files a second.
const askAgain = 5 * time.Second

// outage is the time since which the origin could not be reached.
type outage struct {
	since time.Time // zero: it can
	last  time.Time // the latest failure
}

// unreachable reports whether an error leaves open what the origin has.
func unreachable(err error) bool {
	return errors.Is(err, covey.ErrUnavailable) || errors.Is(err, covey.ErrThrottled) ||
		errors.Is(err, context.DeadlineExceeded)
}

// heard takes note of how the origin answered, and logs when that changes.
func (d *Dataset) heard(err error) {
	down, now := unreachable(err), time.Now()
	d.mu.Lock()
	since := d.outage.since
	switch {
	case !down:
		d.outage = outage{}
	case since.IsZero():
		d.outage = outage{since: now, last: now}
	default:
		d.outage.last = now
	}
	d.mu.Unlock()
	switch {
	case down && since.IsZero():
		d.opts.Log.Warn("the origin cannot be reached; known entries stay valid for a while",
			"dataset", d.src.URL, "stale_if_error", d.opts.StaleIfError, "error", err)
	case !down && !since.IsZero():
		d.opts.Log.Info("the origin answers again", "dataset", d.src.URL, "took", now.Sub(since))
	}
}

// inOutage reports whether the origin failed so recently that asking it again is
// not worth a caller's time. Who believes no listing wants it asked always.
func (d *Dataset) inOutage() bool {
	if !d.opts.believes() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.outage.since.IsZero() && time.Since(d.outage.last) < askAgain
}
