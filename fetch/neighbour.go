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
	peers := slices.DeleteFunc(slices.Clone(a.Peers), func(p covey.PeerID) bool {
		return p == s.f.opts.Self || slices.Contains(s.failed, p) || s.f.neighbours.banned(p)
	})
	if len(peers) > 0 && s.race(peers, a.Digest) {
		return found{source: Neighbour, digest: a.Digest}, true
	}
	s.f.planner.forget(s.fl.extent, s.fl.slot)
	if len(peers) == 0 {
		s.fails++
		s.last = "its home named no other holder"
		s.pause(0)
	}
	s.told = true
	return found{}, false
}

// lied notes a peer whose bytes are not what the home said.
func (s *search) lied(p covey.PeerID) {
	s.f.log.Debug("neighbour sent wrong bytes", "block", s.fl.locator, "peer", peerName(p))
	if s.f.neighbours.lied(p) {
		s.f.log.Warn("peer sent wrong bytes again and is left out for a while", "peer", peerName(p), "ban", banTime)
	}
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
	if s.f.neighbours.banned(parent) {
		s.fail(parent, errors.New("a parent that sent wrong bytes before"))
		return
	}
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
