package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

const (
	// followCheck is how long a prefetch follows a parent before it asks the home
	// whether that is still worth it; a demand asks when its patience ends.
	followCheck = 10 * time.Second
	// maxConfirms is how often the home is asked about bytes that it has no
	// digest for, and does not say to wait: with the pauses about 2.5 s, the time
	// after which a parent that could not report gives up.
	maxConfirms = 10
)

// follow reads from a peer that is itself reading the block, from the origin or
// from another peer. Unless the home said what the bytes must hash to, they are a
// rumour until it does.
func (s *search) follow(a answer) (found, bool) {
	s.told = true
	if len(a.Peers) == 0 || a.Peers[0] == s.f.opts.Self {
		s.pause(a.After)
		return found{}, false
	}
	parent := a.Peers[0]
	if s.f.neighbours.banned(parent) {
		s.fail(parent, errors.New("a parent that sent wrong bytes before"))
		return found{}, false
	}
	if s.rumour != nil && s.rumour.from == parent && a.Digest.IsZero() {
		s.rumour.asked++
		if s.rumour.asked > maxConfirms {
			s.rumour = nil
			s.fail(parent, errors.New("its home never confirmed the block"))
			return found{}, false
		}
		s.pause(minPause << min(s.rumour.asked, 6))
		return found{}, false
	}
	s.rumour = nil
	if err := s.followPatiently(parent); err != nil {
		if !errors.Is(err, errImpatient) && s.pending == nil && s.fl.ctx.Err() == nil {
			s.fail(parent, fmt.Errorf("follow %x: %w", parent, err))
		} else {
			s.last = fmt.Sprintf("follow %x: %v", parent, err)
		}
		return found{}, false
	}
	digest := covey.Sum(s.buf.data)
	s.rumour = &rumour{from: parent, digest: digest}
	if a.Digest.IsZero() {
		return found{}, false
	}
	return s.confirm(a.Digest)
}

// followPatiently fetches from a parent. When patience ends meanwhile, the home
// is asked whether the read makes progress; as long as it does, the fetch goes
// on. An answer that calls for something else is left in s.pending.
func (s *search) followPatiently(parent covey.PeerID) error {
	ctx, cancel := context.WithCancel(s.fl.ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.f.opts.Exchange.Fetch(ctx, parent, s.fl.locator, s.buf.data, true) }()
	// The buffer is the fetch's until it has returned.
	check := time.NewTicker(followCheck)
	defer check.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-s.fl.mesh.Done():
		case <-check.C:
		}
		if s.fl.ctx.Err() == nil && s.stillComing(parent) {
			continue
		}
		cancel()
		if err := <-ended; err == nil {
			s.dropPending()
			return nil // it came after all
		}
		return errImpatient
	}
}

// stillComing asks the home about a block that a parent is to send, and renews
// the flight's patience if it is worth waiting for.
func (s *search) stillComing(parent covey.PeerID) bool {
	ctx, cancel := context.WithTimeout(s.fl.ctx, lastQuestion)
	defer cancel()
	s.hold = ""
	a, err := s.question(ctx)
	if err != nil {
		return false
	}
	same := len(a.Peers) > 0 && a.Peers[0] == parent && (a.Moving || a.State == dht.Held)
	if !same || !s.inTime() {
		s.pending = &a
		return false
	}
	if s.fl.wanted() {
		s.f.table.renew(s.fl, s.f.patience())
	}
	return true
}

// dropPending gives back a grant that is not needed any more.
func (s *search) dropPending() {
	if a := s.pending; a != nil && a.State == dht.Granted {
		s.f.report(s.fl, a, covey.Digest{}, errAbandoned)
	}
	s.pending = nil
}

// inTime says whether the mesh may be waited for at all: half of the flight's
// time is left to the origin, unless that may not be read.
func (s *search) inTime() bool {
	return s.f.opts.Strict || time.Since(s.fl.began) < s.f.opts.Deadline/2
}

// confirm holds the rumour against the digest that a home gave.
func (s *search) confirm(want covey.Digest) (found, bool) {
	r := s.rumour
	s.rumour = nil
	if r.digest == want {
		return found{source: Neighbour, digest: want, holders: 1}, true
	}
	s.lied(r.from)
	return found{}, false
}
