package dht

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// batchEvery is how often news goes out. A block is found through its lease
	// until then, so a second costs nobody anything and makes one message of
	// hundreds.
	batchEvery = time.Second

	// refreshEvery is how often homes are told everything, which repairs
	// whatever was lost on the way.
	refreshEvery = 5 * time.Minute

	// lookEvery is how often the member table is looked at: it is one counter.
	// A change is acted upon when it has been quiet for one look, or after
	// settleAtMost, so that members that join together cost one push.
	lookEvery    = 100 * time.Millisecond
	settleAtMost = time.Second

	// sweepEvery is how often expired entries are looked for.
	sweepEvery = time.Minute

	// maxFrame is the longest HAVE that is sent, in bytes: some 240 full
	// extents, 40 us on 100 GbE, and far below what a reply may wait behind.
	maxFrame = 512 << 10

	// maxBuffered bounds the frames being filled for all homes together.
	maxBuffered = 16 << 20

	// frameTimeout is how long a home may take for one frame.
	frameTimeout = 2 * time.Second

	// owedAgain is when a home that did not answer is tried again with
	// everything, and probeTimeout how long it may take to show that it is there.
	owedAgain    = 5 * time.Second
	probeTimeout = 250 * time.Millisecond

	// sendAtOnce is how many homes are sent to at the same time.
	sendAtOnce = 16
)

// Announce queues what this peer newly holds, or holds no more; it goes to the
// extent's homes within a second. It never waits for the network. An
// announcement whose digests do not match its slots is a bug of the caller and
// is dropped with an error in the log.
func (d *Directory) Announce(h Have) {
	if h.Have.Len() != len(h.Digests) {
		d.log.Error("announcement with a wrong number of digests", "extent", h.Extent, "blocks", h.Have.Len(), "digests", len(h.Digests))
		return
	}
	r := d.view()
	if slices.Contains(r.homes(h.Extent), d.self) {
		d.table.have(d.self, h, false, r)
	}
	if !d.queue.add(h) {
		d.m.dropped.Inc()
	}
}

// Run sends the batches, refreshes in full every 5 min, and tells homes that
// are new for an extent, or that restarted, what they have to know. It returns
// when ctx ends, after everything it and Resolve started has ended; from then
// on Resolve asks nobody but this peer.
func (d *Directory) Run(ctx context.Context) error {
	defer d.calls.end()
	a := &announcer{d: d, owed: map[covey.PeerID]map[covey.ExtentID]*news{}, told: &ring{epoch: ^uint64(0)}}
	now := time.Now()
	a.settled, a.lastBatch, a.lastSweep = now, now, now
	// Peers that started together do not refresh together: each begins somewhere
	// else in the interval, always in the same place.
	a.lastRefresh = now.Add(-time.Duration(peerHash(d.self) % uint64(refreshEvery)))
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.step(ctx, time.Now())
		}
	}
}

// announcer is the state of Run; only its goroutine touches it.
type announcer struct {
	d *Directory
	// told is the ring by whose homes everything announced so far was sent.
	told *ring
	// seen is the epoch of the last look, and settled when it was first seen to
	// differ from told.
	seen                              uint64
	settled                           time.Time
	lastBatch, lastSweep, lastRefresh time.Time
	// owed is what homes did not take yet, at most maxOwed extents each.
	owed map[covey.PeerID]map[covey.ExtentID]*news
}

func (a *announcer) step(ctx context.Context, now time.Time) {
	r := a.d.view()
	if r.epoch == a.told.epoch {
		a.settled = now
	} else if r.epoch == a.seen || now.Sub(a.settled) >= settleAtMost {
		a.pushChange(ctx, r)
	}
	// A home that has just become first must not wait a second for what only its
	// predecessor was told.
	changed := r.epoch != a.seen
	a.seen = r.epoch
	if changed || now.Sub(a.lastBatch) >= batchEvery {
		a.lastBatch = now
		a.d.table.peers.decay()
		a.batch(ctx, r)
		a.pushOwed(ctx, r)
	}
	if now.Sub(a.lastRefresh) >= refreshEvery {
		a.lastRefresh = now
		a.push(ctx, r, a.d.own != nil, func(covey.ExtentID, covey.PeerID) bool { return true })
	}
	if now.Sub(a.lastSweep) >= sweepEvery {
		a.lastSweep = now
		a.d.table.sweep()
	}
}

// pushChange tells the homes that the new ring has and the old had not, and
// those that went and came back in between.
func (a *announcer) pushChange(ctx context.Context, r *ring) {
	old := a.told
	a.told = r
	var e covey.ExtentID
	var before []covey.PeerID
	a.push(ctx, r, false, func(x covey.ExtentID, h covey.PeerID) bool {
		if before == nil || x != e {
			e, before = x, old.homes(x)
		}
		return !slices.Contains(before, h) || !r.live[h].Equal(old.live[h])
	})
}

// pushOwed tells everything to the members that restarted or missed some of
// it. It asks each whether it is there before it reads the whole source for it.
func (a *announcer) pushOwed(ctx context.Context, r *ring) {
	owed := a.d.queue.owed(r, a.told, time.Now())
	for home := range owed {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := a.d.askKnown(ctx, home, covey.ExtentID{})
		cancel()
		if err != nil {
			delete(owed, home)
			a.d.queue.owesAll(home, time.Now().Add(owedAgain))
		}
	}
	if len(owed) == 0 {
		return
	}
	a.push(ctx, r, false, func(_ covey.ExtentID, h covey.PeerID) bool {
		_, ok := owed[h]
		return ok
	})
}

// batch sends the news of the last second, and what homes still owe an answer
// for.
func (a *announcer) batch(ctx context.Context, r *ring) {
	all, over := a.d.queue.take()
	if over {
		for _, m := range r.members {
			a.d.queue.owesAll(m.id, time.Time{})
		}
	}
	for id := range a.owed {
		if !r.isLive(id) {
			delete(a.owed, id)
		}
	}
	var held []covey.ExtentID
	for e, n := range all {
		h := n.message(e)
		if h.Have != 0 {
			held = append(held, e)
		}
		for _, home := range r.homes(e) {
			if home != a.d.self {
				a.owe(home, h)
			}
		}
	}
	a.d.advertise(held)
	a.sendOwed(ctx)
}

// owe adds an announcement to what a home is to be told.
func (a *announcer) owe(home covey.PeerID, h Have) {
	m := a.owed[home]
	if m == nil {
		m = map[covey.ExtentID]*news{}
		a.owed[home] = m
	}
	n := m[h.Extent]
	if n == nil {
		n = &news{}
		m[h.Extent] = n
	}
	n.add(h)
}

// sendOwed sends every home what it is owed. What a home did not take stays
// for the next batch; too much of it becomes a full push.
func (a *announcer) sendOwed(ctx context.Context) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, sendAtOnce)
	for home, m := range a.owed {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			a.sendTo(ctx, home, m)
		})
	}
	wg.Wait()
	for home, m := range a.owed {
		if len(m) > maxOwed {
			a.d.m.dropped.Add(float64(len(m)))
			a.d.queue.owesAll(home, time.Now().Add(owedAgain))
			m = nil
		}
		if len(m) == 0 {
			delete(a.owed, home)
		}
	}
}

// sendTo sends one home what it is owed and removes what it took. A home that
// rests is left for a later batch.
func (a *announcer) sendTo(ctx context.Context, home covey.PeerID, m map[covey.ExtentID]*news) {
	if a.d.health.resting(home) {
		return
	}
	var f frame
	flush := func() bool {
		if err := a.d.sendFrame(ctx, home, &f); err != nil {
			return false
		}
		for _, e := range f.extents {
			delete(m, e)
		}
		f = frame{}
		return true
	}
	for e, n := range m {
		f.add(e, haveMessage(n.message(e), false))
		if f.size >= maxFrame-maxExtentHave && !flush() {
			return
		}
	}
	flush()
}
