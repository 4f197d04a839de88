package dht

import (
	"sync"
	"sync/atomic"

	"github.com/covey-cache/covey"
)

// peerNum stands for a peer ID in entries: 4 bytes instead of 16 and a string.
type peerNum uint32

// peerTable numbers the peers that entries name. Numbers are never used twice,
// so the table grows with every member that was ever seen, about 110 bytes
// each: only members that announced themselves, asked, or are in the member
// table get a number.
//
// mu is a leaf lock.
type peerTable struct {
	mu    sync.RWMutex
	num   map[covey.PeerID]peerNum
	peers []*numbered
}

type numbered struct {
	id covey.PeerID
	// load counts how often the peer was handed out first, halved every second:
	// what two random choices compare.
	load atomic.Uint32
	// free is when the blocks that crowds get from the peer are sent: see senders.
	free atomic.Int64
	// wasLive says that the peer has been in the member table here.
	wasLive atomic.Bool
}

// absent reports that the peer was a member and is none any more. One that the
// member table here does not have yet is not absent: it was authenticated, and
// its record is on the way.
func (p *numbered) absent(r *ring) bool {
	if r.isLive(p.id) {
		if !p.wasLive.Load() {
			p.wasLive.Store(true)
		}
		return false
	}
	return p.wasLive.Load()
}

func (t *peerTable) number(id covey.PeerID, r *ring) peerNum {
	n := t.assign(id)
	t.at(n).absent(r)
	return n
}

func (t *peerTable) at(n peerNum) *numbered { return t.all()[n] }

func (t *peerTable) assign(id covey.PeerID) peerNum {
	if n, ok := t.lookup(id); ok {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.num[id]
	if !ok {
		if t.num == nil {
			t.num = map[covey.PeerID]peerNum{}
		}
		n = peerNum(len(t.peers))
		t.num[id] = n
		t.peers = append(t.peers, &numbered{id: id})
	}
	return n
}

// lookup returns the number of a peer that has one.
func (t *peerTable) lookup(id covey.PeerID) (peerNum, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, ok := t.num[id]
	return n, ok
}

// all returns the peers by number. The slice is never changed, only replaced
// by a longer one.
func (t *peerTable) all() []*numbered {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.peers
}

// decay halves every load.
func (t *peerTable) decay() {
	for _, p := range t.all() {
		if n := p.load.Load(); n > 0 {
			p.load.Store(n / 2)
		}
	}
}
