package fetch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// maxThrottles is how often one flight takes a new grant after the origin refused
// the read for being one too many. Each has the origin's own retries behind it.
const maxThrottles = 4

// granted reads the block from the origin under a home's lease. From here on
// the flight does not end with its callers. again says that the origin throttles
// and the home is to be asked when to try again.
func (s *search) granted(a answer) (got found, again bool, err error) {
	got = found{source: Origin, grant: &a}
	if !s.f.table.commit(s.fl) {
		return got, false, s.gaveUp()
	}
	x := s.f.readings.begin(s.fl.extent, &a)
	got.digest, err = s.readOrigin(x)
	s.f.readings.end(x)
	if s.throttles++; !errors.Is(err, covey.ErrThrottled) || s.throttles >= maxThrottles || s.fl.ctx.Err() != nil {
		return got, false, err
	}
	s.f.Throttled(s.fl.locator.Origin)
	s.f.report(s.fl, &a, covey.Digest{}, err)
	s.last, s.told = err.Error(), true
	return found{}, true, nil
}

// overrideJitter spreads the reads of many peers that lost their home at the
// same moment, so that one of them is done, and known, before the last begins.
const overrideJitter = 50 * time.Millisecond

// override reads the origin although no home granted it, after waiting for one
// of the few places for such reads.
func (s *search) override() (found, error) {
	select {
	case s.f.overrides <- struct{}{}:
	case <-s.fl.ctx.Done():
		return found{}, s.gaveUp()
	}
	return s.overridden()
}

// tryOverride is override if there is a place now. While there is none, the
// mesh is the better bet.
func (s *search) tryOverride() (got found, err error, ok bool) {
	if s.f.opts.Strict {
		return found{}, nil, false
	}
	select {
	case s.f.overrides <- struct{}{}:
	default:
		return found{}, nil, false
	}
	got, err = s.overridden()
	return got, err, true
}

// overridden reads the origin and gives the place back.
func (s *search) overridden() (found, error) {
	defer func() { <-s.f.overrides }()
	timer := time.NewTimer(rand.N(overrideJitter + 1))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.fl.ctx.Done():
		return found{}, s.gaveUp()
	}
	s.f.metrics.overrides.Add(1)
	s.f.log.Debug("reading the origin without a grant", "block", s.fl.locator, "reason", s.last)
	digest, err := s.readOrigin(nil)
	if err != nil {
		return found{}, err
	}
	if pinned := s.f.planner.digest(s.fl.extent, s.fl.slot); !pinned.IsZero() && pinned != digest {
		s.f.log.Warn("origin and pinned digest differ; the origin is believed",
			"block", s.fl.locator, "pinned", pinned, "origin", digest)
		s.f.opts.OnCorrupt(Origin.String(), s.fl.locator, "")
		if !s.f.quarantines.has(s.fl.locator) {
			s.f.quarantine(s.fl)
		}
	}
	return found{source: Origin, digest: digest}, nil
}

// readOrigin reads the block's range into the buffer. Retries are the origin's
// own; here only the flight's deadline ends it.
func (s *search) readOrigin(x *reading) (covey.Digest, error) {
	s.rumour = nil
	began := time.Now()
	if err := s.readRange(x); err != nil {
		if s.fl.ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(s.fl.ctx), err)
			if !errors.Is(err, covey.ErrUnavailable) {
				err = fmt.Errorf("%w: %w", covey.ErrUnavailable, err)
			}
		}
		return covey.Digest{}, fmt.Errorf("read %s from the origin: %w", s.fl.locator, err)
	}
	s.f.originTook.add(time.Since(began))
	return covey.Sum(s.buf.data), nil
}

func (s *search) readRange(x *reading) error {
	began := time.Now()
	rc, err := s.f.opts.Origins.Open(s.fl.ctx, s.fl.locator.Object, s.fl.locator.Range())
	if err != nil {
		return err
	}
	defer rc.Close()
	return readExactly(&counted{Reader: rc, x: x, f: s.f, began: began}, s.buf.data)
}

// reportLimit bounds the report to the home. A home that does not answer in it
// has been replaced, and learns of the block from its holders.
const reportLimit = 2 * time.Second

// report tells the home how its grant was used. It goes out although the flight
// or the whole fetcher is ending: else the home would wait for the lease.
func (f *Fetcher) report(fl *flight, a *answer, d covey.Digest, cause error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(fl.ctx), reportLimit)
	defer cancel()
	o := dht.Outcome{Extent: fl.extent.ID, Slot: fl.slot, Lease: a.Lease, Digest: d, Err: cause,
		Bucket: dht.Bucket(fl.locator.Origin)}
	if err := f.opts.Directory.Done(ctx, a.home, o); err != nil {
		f.log.Debug("home did not hear of its grant", "block", fl.locator, "peer", peerName(a.home), "error", err)
	}
}
