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
	// throttles is how often the origin refused the read for being one too many.
	throttles int
	// hold is the home that said to wait, and may keep the next question; asked
	// is whom the last question was left with, and when.
	hold  covey.PeerID
	asked struct {
		home covey.PeerID
		at   time.Time
	}
	// pending is an answer that came while something else was under way.
	pending *answer
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
	// holders is how many peers the home named, of a block that one of them sent.
	holders int
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
	defer s.dropPending()
	if s.f.quarantines.has(s.fl.locator) {
		s.last = "two values of the block were seen"
		return s.alone()
	}
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
			if s.waitsStrictly() || s.slowlyRefused() {
				continue
			}
			return s.alone()
		}
		got, done, err := s.walk(a)
		if done {
			return got, err
		}
		if s.fails >= maxFails && !s.waitsStrictly() {
			return s.alone()
		}
		// Patience ends waiting. It does not end work that goes on: after a
		// holder failed, the home is asked once more, and a read that makes
		// progress, or that the origin's own throttling delays, would only be
		// slower for being made twice.
		if s.fl.impatient() && (a.State != dht.Held || s.fails > 2) {
			if !s.progressing(a) {
				if got, err, ok := s.tryOverride(); ok {
					return got, err
				}
			}
			s.f.table.renew(s.fl, s.f.patience())
		}
	}
}

// walk does what one answer says. done is false when the home must be asked
// again.
func (s *search) walk(a answer) (got found, done bool, err error) {
	s.hold = ""
	switch a.State {
	case dht.Granted:
		got, again, err := s.granted(a)
		return got, !again, err
	case dht.Held:
		got, done = s.held(a)
	case dht.Fetching:
		got, done = s.follow(a)
	case dht.Throttled:
		s.told, s.last = true, "the origin throttles"
		s.pause(a.After)
	default:
		s.wait(a)
	}
	return got, done, nil
}

// wait lets the home keep the next question, unless it has just not done so.
func (s *search) wait(a answer) {
	s.told, s.last = true, "its home says to wait"
	if s.asked.home != "" && time.Since(s.asked.at) < minPause || a.home == "" {
		s.pause(a.After)
	}
	s.hold = a.home
}

// progressing says whether an answer promises the block, although patience has
// run out.
func (s *search) progressing(a answer) bool {
	return (a.Moving || a.State == dht.Throttled) && s.inTime()
}

// slowlyRefused says that the homes were too slow to answer and not out of reach,
// and that there is patience left to ask once more: on a busy cluster every home
// is slow, and to read the origin for that would make it busier.
func (s *search) slowlyRefused() bool {
	if time.Since(s.asked.at) < slowRefusal || s.fl.impatient() || !s.fl.wanted() {
		return false
	}
	s.told, s.hold = true, ""
	return true
}

// slowRefusal is how long a question must have taken for its homes to count as
// slow: what cannot be reached is refused at once.
const slowRefusal = 500 * time.Millisecond

// waitsStrictly says, of a flight that may not read the origin by itself, that it
// goes on asking until its deadline, after a pause.
func (s *search) waitsStrictly() bool {
	if !s.f.opts.Strict || !s.fl.wanted() {
		return false
	}
	if s.fl.impatient() {
		s.f.table.renew(s.fl, s.f.patience())
	}
	s.fails, s.failed, s.told = 0, nil, true
	s.pause(strictPause)
	return true
}

// strictPause is how long a strict flight waits before it asks homes again of
// which none answered.
const strictPause = 250 * time.Millisecond

// ask returns what is known of the block, or what the home says.
func (s *search) ask() (answer, error) {
	f, fl := s.f, s.fl
	if q := fl.asked; q != nil {
		fl.asked = nil
		return f.planner.wait(fl.mesh, q, fl.slot)
	}
	if a := s.pending; a != nil {
		s.pending = nil
		return *a, nil
	}
	if !s.told {
		if a, ok := f.planner.recall(fl.extent, fl.slot); ok {
			return a, nil
		}
	}
	if !fl.impatient() {
		return s.question(fl.mesh)
	}
	ctx, cancel := context.WithTimeout(fl.ctx, lastQuestion)
	defer cancel()
	s.hold = ""
	return s.question(ctx)
}

// question asks the home.
func (s *search) question(ctx context.Context) (answer, error) {
	w := wish{failed: s.failed, prefetch: !s.fl.wanted(), fresh: s.told, home: s.hold}
	if s.rumour != nil {
		w.got = s.rumour.digest
	}
	s.asked.home, s.asked.at = s.hold, time.Now()
	return s.f.planner.resolve(ctx, s.fl.extent, s.fl.slot, w)
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
