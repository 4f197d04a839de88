package dht

import (
	"math/rand/v2"
	"time"

	"github.com/covey-cache/covey"
)

// question is a Want as the table sees it.
type question struct {
	asker covey.PeerID
	want  Want
	ring  *ring
	// grant lets the table hand out leases; otherwise it only says what it knows.
	grant bool
}

// verdict is the table's answer.
type verdict struct {
	plan Plan
	// open are the slots needed that have no answer without a grant; it is 0 when
	// grants were allowed.
	open covey.Bitmap
	// changed, set when all that was needed is to be waited for, closes when
	// another answer may be due; at is when one is due by the clock alone.
	changed <-chan struct{}
	at      time.Time
	// doubted are peers that the asker names as failed and that only the home's
	// own look can convict.
	doubted []covey.PeerID
}

// answer makes the plan of a question.
func (t *table) answer(q question) verdict {
	now := time.Now()
	at := t.stamp(now)
	if q.want.Throttled > 0 {
		t.pacer.throttled(q.want.Bucket, true, now)
	}
	sh := t.shard(q.want.Extent)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := sh.entries[q.want.Extent]
	if en == nil {
		if !q.grant {
			return verdict{open: q.want.Need}
		}
		en = t.entry(sh, q.want.Extent, q.ring, at)
	}
	en.touched = at
	t.expire(en, at, now)
	en.askers.count(t.peers.number(q.asker, q.ring), at)
	a := answering{t: t, en: en, q: q, now: now, at: at}
	a.takeReports()
	a.c = t.candidates(en, q, at)
	waits := q.want.Need != 0
	for slot := range covey.FirstBits(q.want.Count).Slots() {
		b := a.slot(slot)
		if b.State == 0 {
			continue
		}
		waits = waits && (b.State == Wait || !q.want.Need.Has(slot))
		a.v.plan.Blocks = append(a.v.plan.Blocks, b)
	}
	if q.grant {
		a.share()
	}
	if waits && a.v.open == 0 {
		a.v.changed, a.v.at = en.change(), a.nextChange()
	}
	return a.v
}

// answering is one question while it is answered; the shard's lock is held.
type answering struct {
	t   *table
	en  *entry
	q   question
	now time.Time
	at  stamp
	c   candidates
	v   verdict
}

// slot answers for one slot; a zero State means that nothing is said of it.
func (a *answering) slot(slot int) BlockPlan {
	w := &a.q.want
	switch {
	case !w.Need.Has(slot):
		if a.en.askers.many && a.en.copies(slot) < enoughCopies {
			return BlockPlan{} // it spreads; each asker gets its own parent
		}
		if peers := a.c.pick(slot); len(peers) > 0 {
			return BlockPlan{Slot: slot, State: Held, Peers: peers, Digest: a.en.digest(slot)}
		}
		return BlockPlan{}
	case w.Got.Has(slot) && a.en.pinned.Has(slot):
		return BlockPlan{Slot: slot, State: Held, Peers: a.c.pick(slot), Digest: a.en.digest(slot)}
	case a.c.has(slot):
		if b, ok := a.t.spread(a.en, slot, a.c, a.q, a.at); ok {
			return b
		}
		return BlockPlan{Slot: slot, State: Held, Peers: a.c.pick(slot), Digest: a.en.digest(slot)}
	}
	b := a.lead(slot)
	if b.State == 0 {
		a.v.open = a.v.open.With(slot)
	}
	return b
}

// lead decides about a slot that nobody can deliver: somebody is reading it, or
// the asker is to. A zero State means that it would be granted and may not be.
func (a *answering) lead(slot int) BlockPlan {
	if l := a.en.leaseOf(slot); l != nil {
		reader := a.t.peers.at(l.peer)
		if reader.id != a.q.asker {
			// That this home has backed off from the reader is one more doubt and no
			// proof: on a busy node a stream stalls while the read goes on.
			failed := contains(a.q.want.Failed, reader.id) || reader.absent(a.q.ring)
			if failed {
				a.doubt(reader.id)
			}
			if !failed || l.moving(a.now) {
				return a.await(slot, l)
			}
			a.t.m.lost.WithLabelValues("failed").Inc()
		}
	}
	if !a.q.grant {
		return BlockPlan{}
	}
	if after, ok := a.t.pacer.take(a.q.want.Bucket, a.now); !ok {
		return BlockPlan{Slot: slot, State: Throttled, After: after}
	}
	return a.t.grant(a.en, slot, a.t.peers.number(a.q.asker, a.q.ring), a.q.want.FirstByte, a.now)
}

// await sends the asker to a peer that will have the block, or lets it wait.
func (a *answering) await(slot int, l *lease) BlockPlan {
	b := BlockPlan{Slot: slot, State: Wait, TTL: l.expires.Sub(a.now), After: waitAgain, Moving: l.moving(a.now)}
	if a.q.want.Got.Has(slot) {
		return b // it has the bytes; what it lacks is the digest
	}
	if p, ok := a.t.follow(a.en, slot, []peerNum{l.peer}, a.q, a.at); ok {
		b.State, b.After, b.Peers = Fetching, 0, []covey.PeerID{a.t.peers.at(p).id}
	}
	return b
}

// nextChange is when the first of the slots waited for is due for another answer
// if nobody is heard of.
func (a *answering) nextChange() time.Time {
	next := a.now.Add(maxHold)
	for i := range a.en.leases {
		l := &a.en.leases[i]
		if !a.q.want.Need.Has(int(l.slot)) {
			continue
		}
		if l.expires.Before(next) {
			next = l.expires
		}
		if t := l.heard.Add(movingFor); t.After(a.now) && t.Before(next) {
			next = t
		}
	}
	return next
}

// takeReports notes what the question itself tells: who failed the asker, that
// the asker does not have what it asks for, and what it has from a reader.
func (a *answering) takeReports() {
	q, en := &a.q, a.en
	asker, known := a.t.peers.lookup(q.asker)
	if !known {
		if len(q.want.Failed) == 0 && q.want.Got == 0 {
			return
		}
		asker = a.t.peers.number(q.asker, q.ring)
	}
	for _, id := range q.want.Failed {
		if p, ok := a.t.peers.lookup(id); ok && p != asker {
			if en.doubt(p, asker, q.want.Need, a.at) {
				a.doubt(id)
			}
		}
	}
	if h := en.holderOf(asker); h != nil && a.at.since(h.seen) >= freshHold {
		en.unhold(asker, q.want.Need&^q.want.Got)
	}
	i := 0
	for slot := range q.want.Got.Slots() {
		if en.pinned.Has(slot) && en.digest(slot) == q.want.Digests[i] {
			en.hold(asker, covey.Bitmap(0).With(slot), a.at)
		}
		i++
	}
}

func (a *answering) doubt(id covey.PeerID) {
	if !contains(a.v.doubted, id) {
		a.v.doubted = append(a.v.doubted, id)
	}
}

// candidates are the holders that an asker can be sent to.
type candidates []candidate

type candidate struct {
	num  peerNum
	peer *numbered
	have covey.Bitmap
}

func (t *table) candidates(en *entry, q question, at stamp) candidates {
	peers := t.peers.all()
	c := make(candidates, 0, len(en.holders))
	for i := range en.holders {
		h := &en.holders[i]
		p := peers[h.peer]
		if p.id != q.asker && !p.absent(q.ring) && !contains(q.want.Failed, p.id) {
			c = append(c, candidate{num: h.peer, peer: p, have: h.offers(at)})
		}
	}
	return c
}

// pick returns up to four holders of a slot from a random place on, the less
// used of the first two first.
func (c candidates) pick(slot int) []covey.PeerID {
	if len(c) == 0 {
		return nil
	}
	var found [maxHandedOut]*numbered
	n := 0
	from := rand.IntN(len(c))
	for i := range c {
		if k := &c[(from+i)%len(c)]; k.have.Has(slot) {
			found[n] = k.peer
			if n++; n == len(found) {
				break
			}
		}
	}
	if n == 0 {
		return nil
	}
	if n > 1 && found[1].load.Load() < found[0].load.Load() {
		found[0], found[1] = found[1], found[0]
	}
	found[0].load.Add(1)
	ids := make([]covey.PeerID, n)
	for i := range ids {
		ids[i] = found[i].id
	}
	return ids
}

// has reports whether any of them has the slot.
func (c candidates) has(slot int) bool {
	for i := range c {
		if c[i].have.Has(slot) {
			return true
		}
	}
	return false
}

// holding returns those that have the slot.
func (c candidates) holding(slot int) []peerNum {
	var n []peerNum
	for i := range c {
		if c[i].have.Has(slot) {
			n = append(n, c[i].num)
		}
	}
	return n
}
