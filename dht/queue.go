package dht

import (
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// maxQueued is how many extents can wait for the next batch: an hour of
	// reading at 1 GB/s in whole extents, or 200,000 small files a second.
	// What does not fit is left to a full refresh, which the overflow brings
	// forward.
	maxQueued = 1 << 14

	// maxOwed is how many extents are kept for one home that does not answer:
	// some 10 MiB when they are full. Beyond it that home gets everything once
	// it answers again.
	maxOwed = 1 << 12
)

// news is what is to be told of one extent.
type news struct {
	have    covey.Bitmap
	digests [covey.MaxExtentBlocks]covey.Digest
	gone    covey.Bitmap
}

// add puts a later announcement on top.
func (n *news) add(h Have) {
	n.have &^= h.Gone
	n.gone = (n.gone | h.Gone) &^ h.Have
	n.have |= h.Have
	i := 0
	for slot := range h.Have.Slots() {
		n.digests[slot] = h.Digests[i]
		i++
	}
}

// message returns the announcement.
func (n *news) message(e covey.ExtentID) Have {
	h := Have{Extent: e, Have: n.have, Gone: n.gone, Digests: make([]covey.Digest, 0, n.have.Len())}
	for slot := range n.have.Slots() {
		h.Digests = append(h.Digests, n.digests[slot])
	}
	return h
}

// queue holds what is to be announced in the next batch, and which homes need
// to hear everything.
//
// mu is a leaf lock and guards all fields.
type queue struct {
	mu       sync.Mutex
	news     map[covey.ExtentID]*news
	overflow bool
	// met is the incarnation of each peer as last seen, and dirty are peers
	// that have to be told everything: they restarted, or did not hear some of
	// it. Both are as long as the member table; owed drops the others.
	incarnations map[covey.PeerID]uint64
	// seqs is the number of the last HAVE of each of them.
	seqs  map[covey.PeerID]uint64
	dirty map[covey.PeerID]time.Time // not to be tried before
}

// add queues an announcement, and reports false when there was no room.
func (q *queue) add(h Have) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.news[h.Extent]
	if n == nil {
		if len(q.news) >= maxQueued {
			q.overflow = true
			return false
		}
		if q.news == nil {
			q.news = map[covey.ExtentID]*news{}
		}
		n = &news{}
		q.news[h.Extent] = n
	}
	n.add(h)
	return true
}

// take returns and empties the queue, and says whether something did not fit.
func (q *queue) take() (map[covey.ExtentID]*news, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	all, over := q.news, q.overflow
	q.news, q.overflow = nil, false
	return all, over
}

// met notes the incarnation of a peer that spoke to us. A peer that restarted
// has forgotten what it was told.
func (q *queue) met(id covey.PeerID, incarnation uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.incarnations == nil {
		q.incarnations = map[covey.PeerID]uint64{}
	}
	before, known := q.incarnations[id]
	if known && before == incarnation {
		return
	}
	q.incarnations[id] = incarnation
	delete(q.seqs, id)
	if known {
		q.owe(id, time.Time{})
	}
}

// inOrder takes the number of a HAVE, and reports false when a later one has
// come already: what it says may be undone since. The same one may come twice.
func (q *queue) inOrder(id covey.PeerID, seq uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.seqs == nil {
		q.seqs = map[covey.PeerID]uint64{}
	}
	if seq < q.seqs[id] {
		return false
	}
	q.seqs[id] = seq
	return true
}

// owesAll notes that the peer has to be told everything, from the given time on.
func (q *queue) owesAll(id covey.PeerID, from time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.owe(id, from)
}

func (q *queue) owe(id covey.PeerID, from time.Time) {
	if q.dirty == nil {
		q.dirty = map[covey.PeerID]time.Time{}
	}
	q.dirty[id] = from
}

// owed returns and forgets the members that have to be told everything now. Of
// peers that are no members it forgets all but those in told, the members at
// the last push: one of them that comes back before the next push is not new
// then, and only its incarnation tells that it restarted.
func (q *queue) owed(r, told *ring, now time.Time) map[covey.PeerID]struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range q.incarnations {
		if !r.isLive(id) && !told.isLive(id) {
			delete(q.incarnations, id)
			delete(q.seqs, id)
		}
	}
	due := map[covey.PeerID]struct{}{}
	for id, from := range q.dirty {
		switch {
		case id == r.self || !r.isLive(id) && !told.isLive(id):
			delete(q.dirty, id)
		case r.isLive(id) && !now.Before(from):
			delete(q.dirty, id)
			due[id] = struct{}{}
		}
	}
	return due
}
