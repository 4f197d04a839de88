package fetch

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

// The window of a peer: how many blocks are asked of it at once. It grows by one
// a round while the peer keeps up and is halved when it does not, as TCP does it
// with segments.
const (
	// minWindow keeps a peer busy while one answer is on its way.
	minWindow = 2
	// maxWindow is 32 MiB in blocks of 4 MiB: 10 ms of 25 GbE, and several times
	// the bandwidth-delay product of any rack. More only waits at the sender.
	maxWindow = 8
	// firstWindow lets a peer show what it can without being flooded.
	firstWindow = 4
	// maxNeighbours is how many peers are remembered: those that one node reads
	// from within minutes, at about 200 bytes each. A peer that is forgotten
	// begins anew.
	maxNeighbours = 4096
	// emptyAfter blocks in a row that a peer did not have make it be asked last
	// for emptySuspicion. Fewer are an eviction that its home has yet to hear of;
	// a peer that claims everything costs one refusal, a round trip, in each such
	// span, and none where another holder is named.
	emptyAfter     = 4
	emptySuspicion = 30 * time.Second
	// assumedRate is 10 GbE, in bytes a second, for a peer that does not say what
	// its interface carries. Only the ratio of two such rates matters.
	assumedRate = 1.25e9
)

// neighbours is what this node has learnt of the peers that it reads from, and
// it chooses among them.
type neighbours struct {
	topology Topology
	// random returns a number below n: rand.IntN but in tests.
	random func(n int) int

	// mu is a leaf lock, but for the topology's; it guards all below.
	//
	// INVARIANT: a neighbour with blocks under way is in known.
	mu    sync.Mutex
	known map[covey.PeerID]*neighbour
	// room is closed, and replaced, when a window opens.
	room chan struct{}
}

// neighbour is one peer. neighbours.mu guards it.
type neighbour struct {
	under  int     // blocks asked for and not ended
	queued int64   // their bytes
	window float64 // minWindow to maxWindow
	// first is the exponential average of how long its first byte takes.
	first time.Duration
	// suspect is until when it is asked last; banned, until when never.
	suspect, banned time.Time
	// lies are the blocks of wrong bytes that it sent, less one an hour.
	lies    int
	lastLie time.Time
	used    time.Time
	// empty counts the blocks in a row that it did not have although a home
	// named it.
	empty int
}

func newNeighbours(t Topology) *neighbours {
	if t == nil {
		t = nowhere{}
	}
	return &neighbours{topology: t, random: rand.IntN, known: make(map[covey.PeerID]*neighbour), room: make(chan struct{})}
}

// at returns the record of a peer; n.mu is held.
func (n *neighbours) at(p covey.PeerID) *neighbour {
	nb := n.known[p]
	if nb == nil {
		if len(n.known) >= maxNeighbours {
			n.forgetOne()
		}
		nb = &neighbour{window: firstWindow}
		n.known[p] = nb
	}
	return nb
}

// forgetOne makes room by dropping the longest unused of a few; n.mu is held. A
// map yields them in random order, so a few are enough.
func (n *neighbours) forgetOne() {
	var oldest covey.PeerID
	var at time.Time
	now, looked := time.Now(), 0
	for p, nb := range n.known {
		if nb.under > 0 || now.Before(nb.banned) {
			continue
		}
		if oldest == "" || nb.used.Before(at) {
			oldest, at = p, nb.used
		}
		if looked++; looked == 16 {
			break
		}
	}
	delete(n.known, oldest)
}

// take chooses one of the peers for a block of size bytes and counts it as under
// way there; the caller ends that with leave. It prefers peers that are not under
// suspicion, of those the nearest that have room in their window, and of these
// the cheaper of two taken at random: whoever always took the cheapest would
// send everybody to the same one at the same moment.
//
// ok is false when all windows are full; room is then closed when one opens.
func (n *neighbours) take(peers []covey.PeerID, size int) (p covey.PeerID, room <-chan struct{}, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	best := n.nearest(peers, time.Now())
	if len(best) == 0 {
		return "", n.room, false
	}
	chosen := best[0]
	if len(best) > 1 {
		i := n.random(len(best))
		j := n.random(len(best) - 1)
		if j >= i {
			j++
		}
		chosen = best[i]
		if n.cost(best[j], size) < n.cost(chosen, size) {
			chosen = best[j]
		}
	}
	nb := n.at(chosen)
	nb.under++
	nb.queued += int64(size)
	nb.used = time.Now()
	return chosen, nil, true
}

// nearest returns the peers of the best class that have room; n.mu is held.
func (n *neighbours) nearest(peers []covey.PeerID, now time.Time) []covey.PeerID {
	const suspected = Far + 1 // added to the distance of a suspect
	var best []covey.PeerID
	class := 2 * suspected
	for _, p := range peers {
		nb := n.known[p]
		d, _ := n.topology.Nearness(p)
		if nb != nil {
			if nb.under >= int(nb.window) {
				continue
			}
			if now.Before(nb.suspect) {
				d += suspected
			}
		}
		switch {
		case d < class:
			class, best = d, append(best[:0], p)
		case d == class:
			best = append(best, p)
		}
	}
	return best
}

// cost is about how long the peer would take to begin with one more block:
// n.mu is held.
func (n *neighbours) cost(p covey.PeerID, size int) float64 {
	_, rate := n.topology.Nearness(p)
	if rate <= 0 {
		rate = assumedRate
	}
	nb := n.known[p]
	if nb == nil {
		return float64(size) / rate
	}
	return float64(nb.queued+int64(size))/rate + nb.first.Seconds()
}

// outcome is how a block that was asked of a peer ended.
type outcome uint8

const (
	served    outcome = iota
	refused           // it does not have the block, or answered without it
	failed            // it could not be reached or broke off
	overtaken         // another was faster, or it was left for being slow
)

// leave ends what take began. first is how long the first byte took, 0 if none
// came.
func (n *neighbours) leave(p covey.PeerID, size int, how outcome, first time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	nb := n.at(p)
	full := nb.under >= int(nb.window)
	nb.under--
	nb.queued -= int64(size)
	if first > 0 {
		if nb.first == 0 {
			nb.first = first
		}
		nb.first += (first - nb.first) / 8 // the weight TCP gives a sample
	}
	switch how {
	case served:
		nb.empty = 0
		if full { // else the window was not what held it back
			nb.window = min(nb.window+1/nb.window, maxWindow)
		}
	case refused:
		if nb.empty++; nb.empty >= emptyAfter {
			nb.suspect = time.Now().Add(emptySuspicion)
		}
	case failed, overtaken:
		nb.window = max(nb.window/2, minWindow)
	}
	close(n.room)
	n.room = make(chan struct{})
}

// doubt makes a peer be asked last for a while. One node's suspicion removes
// nobody.
func (n *neighbours) doubt(p covey.PeerID, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	nb := n.at(p)
	if until := time.Now().Add(d); until.After(nb.suspect) {
		nb.suspect = until
	}
}

// NeighbourInfo is what a fetcher has learnt of a peer.
type NeighbourInfo struct {
	// UnderWay are the blocks asked for, Queued their bytes, and Window is how
	// many blocks may be under way.
	UnderWay int
	Queued   int64
	Window   int
	// FirstByte is an average of how long the peer takes to begin; 0 before it
	// has.
	FirstByte time.Duration
	// Lies are the blocks of wrong bytes that count against it. Banned is until
	// when it is not asked; zero when it may be.
	Lies   int
	Banned time.Time
	// Distance is how far it is.
	Distance Distance
}

// Neighbour returns what has been learnt of a peer.
func (f *Fetcher) Neighbour(p covey.PeerID) NeighbourInfo {
	n := f.neighbours
	d, _ := n.topology.Nearness(p)
	n.mu.Lock()
	defer n.mu.Unlock()
	info := NeighbourInfo{Window: firstWindow, Distance: d}
	nb := n.known[p]
	if nb == nil {
		return info
	}
	info.UnderWay, info.Queued, info.Window = nb.under, nb.queued, int(nb.window)
	info.FirstByte, info.Lies = nb.first, nb.lies
	if time.Now().Before(nb.banned) {
		info.Banned = nb.banned
	}
	return info
}
