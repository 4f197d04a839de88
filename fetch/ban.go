package fetch

import (
	"time"

	"github.com/covey-cache/covey"
)

// A peer that sends wrong bytes is asked last for liarSuspicion, and from the
// second such block on not at all: one can be a bit that its disk lost, which it
// will find itself; two are a peer that does not look.
const (
	banAfter = 2
	banTime  = 10 * time.Minute
	// lieLife is how long one block of wrong bytes counts.
	lieLife = time.Hour
)

// lied notes a block of wrong bytes, and reports whether the peer has been
// banned for it.
func (n *neighbours) lied(p covey.PeerID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	nb := n.at(p)
	if now.Sub(nb.lastLie) > lieLife {
		nb.lies = 0
	}
	nb.lies++
	nb.lastLie = now
	nb.suspect = now.Add(liarSuspicion)
	if nb.lies < banAfter || now.Before(nb.banned) {
		return false
	}
	nb.banned = now.Add(banTime)
	return true
}

// banned reports whether a peer is not to be asked now.
func (n *neighbours) banned(p covey.PeerID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	nb := n.known[p]
	return nb != nil && time.Now().Before(nb.banned)
}

// bans counts the peers that are not to be asked now.
func (n *neighbours) bans() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, count := time.Now(), 0
	for _, nb := range n.known {
		if now.Before(nb.banned) {
			count++
		}
	}
	return count
}
