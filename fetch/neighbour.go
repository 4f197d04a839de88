package fetch

import (
	"fmt"
	"slices"

	"github.com/covey-cache/covey"
)

// held tries the holders that the home named, best first. Whatever none of them
// had is asked for again, without them.
func (s *search) held(a answer) (found, bool) {
	if d, ok, err := s.f.expected(s.fl.locator); ok && err == nil {
		a.Digest = d
	}
	if s.rumour != nil {
		if got, ok := s.confirm(a.Digest); ok {
			return got, true
		}
	}
	peers := slices.DeleteFunc(slices.Clone(a.Peers), func(p covey.PeerID) bool {
		return p == s.f.opts.Self || slices.Contains(s.failed, p) || s.f.neighbours.banned(p)
	})
	if len(peers) > 0 && s.race(peers, a.Digest) {
		return found{source: Neighbour, digest: a.Digest, holders: len(a.Peers)}, true
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
