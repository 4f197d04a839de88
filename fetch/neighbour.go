package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

// held tries the holders that the home named, best first. Whatever none of them
// had is asked for again, without them.
func (s *search) held(a answer) (found, bool) {
	if s.rumour != nil {
		if got, ok := s.confirm(a.Digest); ok {
			return got, true
		}
	}
	tried := false
	for _, p := range s.f.suspects.last(a.Peers) {
		if p == s.f.opts.Self || slices.Contains(s.failed, p) {
			continue
		}
		tried = true
		if s.try(p, a.Digest) {
			return found{source: Neighbour, digest: a.Digest}, true
		}
		if s.fl.ctx.Err() != nil || s.fails >= maxFails {
			break
		}
	}
	s.f.planner.forget(s.fl.extent, s.fl.slot)
	if !tried {
		s.fails++
		s.last = "its home named no other holder"
		s.pause(0)
	}
	s.told = true
	return found{}, false
}

// try reads the block from one holder and checks it.
func (s *search) try(p covey.PeerID, want covey.Digest) bool {
	ctx, cancel := context.WithTimeout(s.fl.ctx, s.f.tryLimit())
	defer cancel()
	began := time.Now()
	if err := s.f.opts.Exchange.Fetch(ctx, p, s.fl.locator, s.buf.data, false); err != nil {
		if !errors.Is(err, covey.ErrNotFound) && s.fl.ctx.Err() == nil {
			s.f.suspects.add(p, suspicion)
		}
		s.fail(p, fmt.Errorf("read from holder %x: %w", p, err))
		return false
	}
	if covey.Sum(s.buf.data) != want {
		s.lied(p)
		return false
	}
	s.f.neighbourTook.add(time.Since(began))
	return true
}

// lied notes a peer whose bytes are not what the home said.
func (s *search) lied(p covey.PeerID) {
	s.f.suspects.add(p, liarSuspicion)
	s.f.log.Debug("neighbour sent wrong bytes", "block", s.fl.locator, "peer", peerName(p))
	s.f.opts.OnCorrupt(Neighbour.String(), s.fl.locator, p)
	s.fail(p, fmt.Errorf("bytes from holder %x: %w", p, covey.ErrCorrupt))
}

const (
	// followLimit bounds how long a prefetch waits for a parent; a demand's
	// patience is shorter. A parent that takes longer has lost its lease.
	followLimit = 10 * time.Second
	// maxConfirms is how often the home is asked about bytes that it has no
	// digest for: with the pauses about 2.5 s, the time after which a parent
	// that could not report gives up.
	maxConfirms = 10
)

// follow reads from a peer that is itself reading the block from the origin.
// The bytes are a rumour until the home says what they must hash to.
func (s *search) follow(a answer) {
	s.told = true
	if len(a.Peers) == 0 || a.Peers[0] == s.f.opts.Self {
		s.pause(a.After)
		return
	}
	parent := a.Peers[0]
	if s.rumour != nil && s.rumour.from == parent {
		s.rumour.asked++
		if s.rumour.asked > maxConfirms {
			s.rumour = nil
			s.fail(parent, errors.New("its home never confirmed the block"))
			return
		}
		s.pause(minPause << min(s.rumour.asked, 6))
		return
	}
	s.rumour = nil
	ctx, cancel := context.WithTimeout(s.fl.mesh, followLimit)
	defer cancel()
	if err := s.f.opts.Exchange.Fetch(ctx, parent, s.fl.locator, s.buf.data, true); err != nil {
		if s.fl.mesh.Err() == nil {
			s.fail(parent, fmt.Errorf("follow %x: %w", parent, err))
		} else {
			s.last = fmt.Sprintf("follow %x: %v", parent, err)
		}
		return
	}
	s.rumour = &rumour{from: parent, digest: covey.Sum(s.buf.data)}
}

// confirm holds the rumour against the digest that a home gave.
func (s *search) confirm(want covey.Digest) (found, bool) {
	r := s.rumour
	s.rumour = nil
	if r.digest == want {
		return found{source: Neighbour, digest: want}, true
	}
	s.lied(r.from)
	return found{}, false
}
