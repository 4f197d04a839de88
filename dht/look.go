package dht

import (
	"context"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// lookTimeout is how long a peer may take to show the home that it lives:
	// the time after which the network gives up a silent one.
	lookTimeout = time.Second

	// maxLooks bounds the peers that a home looks at, at one time.
	maxLooks = 64

	// lookAgain is when a peer that was found well for an extent may be looked at
	// for it again: askers that cannot reach a peer that the home can would
	// otherwise make it a home's main work.
	lookAgain = time.Second
)

// looks remembers which peers are being looked at, or were a moment ago.
//
// mu is a leaf lock and guards until.
type looks struct {
	mu    sync.Mutex
	until map[lookKey]time.Time
}

type lookKey struct {
	peer   covey.PeerID
	extent covey.ExtentID
}

// begin reports whether the peer is to be looked at now.
func (l *looks) begin(k lookKey) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = map[lookKey]time.Time{}
	}
	if t, ok := l.until[k]; ok && now.Before(t) {
		return false
	}
	if len(l.until) >= maxLooks {
		for k, t := range l.until {
			if !now.Before(t) {
				delete(l.until, k)
			}
		}
		if len(l.until) >= maxLooks {
			return false
		}
	}
	l.until[k] = now.Add(lookAgain)
	return true
}

// look asks the peers, in the background, what they hold of the extent. One that
// does not answer is handed out for it no more and loses its leases; of one that
// answers, only what it holds counts. So one asker's complaint costs a home one
// message, and a dead peer costs one asker one attempt.
func (d *Directory) look(e covey.ExtentID, peers []covey.PeerID) {
	for _, id := range peers {
		if id == d.self || !d.looks.begin(lookKey{id, e}) {
			continue
		}
		// When the directory is ending, nobody needs to know.
		_ = d.calls.start(func() { d.lookAt(e, id) })
	}
}

func (d *Directory) lookAt(e covey.ExtentID, id covey.PeerID) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	k, err := d.askKnown(ctx, id, e)
	if err != nil {
		d.m.looks.WithLabelValues("lost").Inc()
		d.log.Debug("peer did not answer its home", "extent", e, "peer", printable(id), "err", err)
		if wait := d.table.lost(id, e); wait > 0 {
			time.Sleep(wait) // at most unheardFor
			d.table.lost(id, e)
		}
		return
	}
	d.m.looks.WithLabelValues("found").Inc()
	for _, h := range k.holders {
		if h.peer == id {
			d.table.keepOnly(id, e, h.have)
			return
		}
	}
	if k.own {
		d.table.keepOnly(id, e, 0)
	}
}

// keepOnly takes from a peer what it says it does not hold.
func (t *table) keepOnly(peer covey.PeerID, e covey.ExtentID, have covey.Bitmap) {
	p, ok := t.peers.lookup(peer)
	if !ok {
		return
	}
	sh := t.shard(e)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if en := sh.entries[e]; en != nil {
		if h := en.holderOf(p); h != nil {
			en.unhold(p, h.have&^have)
		}
	}
}
