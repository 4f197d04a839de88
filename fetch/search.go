package fetch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// search is the walk of one flight from source to source. Only the flight's
// goroutine uses it.
type search struct {
	f      *Fetcher
	fl     *flight
	buf    *buffer
	failed []covey.PeerID // did not have the block, or sent wrong bytes
	fails  int
	// rumour is what a parent sent that no home has confirmed yet; it lies in
	// buf.
	rumour *rumour
	// told says that the home must be asked: what was known did not help.
	told bool
	// last is what the last source that failed said. It is only text: that a
	// neighbour does not have a block is not the block's ErrNotFound.
	last string
}

// rumour is a block that was received before its digest was known.
type rumour struct {
	from   covey.PeerID
	digest covey.Digest
	asked  int // times that the home was asked about it
}

// found is where a search ended.
type found struct {
	source Source
	digest covey.Digest
	// grant is set when a home's lease was used, or came too late to be used;
	// the home must hear of the outcome.
	grant *answer
}

const (
	// maxFails bounds the sources, or rounds of sources, that one fetch tries.
	// After eight the mesh has nothing for this peer.
	maxFails = 8
	// maxFailed bounds the list that goes to the home with each question.
	maxFailed = 16
	// minPause and maxPause bound what a home can make this peer wait between
	// two questions.
	minPause = 5 * time.Millisecond
	maxPause = time.Second
	// lastQuestion bounds a question that is put after patience has run out.
	lastQuestion = 500 * time.Millisecond
)

// run walks until the bytes are in s.buf and verified, or nothing is left.
func (s *search) run() (found, error) {
	for {
		a, err := s.ask()
		if s.fl.ctx.Err() != nil {
			return s.ended(a, err)
		}
		if err == nil && a.State == dht.Held && s.unknown(&a) {
			// The DHT named holders, but no home says what they should have.
			err = fmt.Errorf("holders without a digest: %w", covey.ErrUnavailable)
		}
		if err != nil {
			s.last = err.Error()
			return s.alone()
		}
		switch a.State {
		case dht.Granted:
			return s.granted(a)
		case dht.Held:
			if got, ok := s.held(a); ok {
				return got, nil
			}
		case dht.Fetching:
			s.follow(a)
		default:
			s.pause(a.After)
			s.told = true
		}
		if s.fails >= maxFails {
			return s.alone()
		}
		// Patience ends waiting. It does not end work that goes on: after a
		// holder failed, the home is asked once more.
		if s.fl.impatient() && (a.State != dht.Held || s.fails > 2) {
			if got, err, ok := s.tryOverride(); ok {
				return got, err
			}
			s.f.table.renew(s.fl, s.f.patience())
		}
	}
}

// ask returns what is known of the block, or what the home says.
func (s *search) ask() (answer, error) {
	f, fl := s.f, s.fl
	if q := fl.asked; q != nil {
		fl.asked = nil
		return f.planner.wait(fl.mesh, q, fl.slot)
	}
	if !s.told {
		if a, ok := f.planner.recall(fl.extent, fl.slot); ok {
			return a, nil
		}
	}
	ctx := fl.mesh
	if fl.impatient() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(fl.ctx, lastQuestion)
		defer cancel()
	}
	return f.planner.resolve(ctx, fl.extent, fl.slot, s.failed, !fl.wanted(), s.told)
}

// unknown fills in a digest that a home gave earlier, and reports whether there
// is none.
func (s *search) unknown(a *answer) bool {
	if a.Digest.IsZero() {
		a.Digest = s.f.planner.digest(s.fl.extent, s.fl.slot)
	}
	return a.Digest.IsZero()
}

// ended is the result of a search whose context ended. A grant that came
// together with the end is given back.
func (s *search) ended(a answer, err error) (found, error) {
	var got found
	if err == nil && a.State == dht.Granted {
		got.grant = &a
	}
	return got, s.gaveUp()
}

// gaveUp is the error of a flight whose context ended.
func (s *search) gaveUp() error {
	cause := context.Cause(s.fl.ctx)
	if s.last != "" {
		return fmt.Errorf("fetch %s: %w: %w (last: %s)", s.fl.locator, covey.ErrUnavailable, cause, s.last)
	}
	return fmt.Errorf("fetch %s: %w: %w", s.fl.locator, covey.ErrUnavailable, cause)
}

// alone is what is left when the mesh has nothing: a demand reads the origin, a
// prefetch ends.
func (s *search) alone() (found, error) {
	if !s.fl.wanted() {
		return found{}, fmt.Errorf("prefetch %s: %w: %s", s.fl.locator, covey.ErrUnavailable, s.last)
	}
	return s.override()
}

// fail notes a peer that could not give the block.
func (s *search) fail(p covey.PeerID, err error) {
	s.fails++
	s.told = true
	s.last = err.Error()
	if !slices.Contains(s.failed, p) && len(s.failed) < maxFailed {
		s.failed = append(s.failed, p)
	}
}

// pause waits before the next question, at most until patience or the flight
// ends, or a demand joins.
func (s *search) pause(d time.Duration) {
	timer := time.NewTimer(min(max(d, minPause), maxPause))
	defer timer.Stop()
	raised := s.fl.raised
	if s.fl.wanted() {
		raised = nil
	}
	select {
	case <-timer.C:
	case <-raised:
	case <-s.fl.mesh.Done():
	}
}
