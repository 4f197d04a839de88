package dht

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

const (
	// homeBudget is how long a home waits for another before it decides by
	// itself. It is the time after which the network gives up a peer that says
	// nothing: a home that is only slow must not be overruled, because every
	// block granted twice is read from the origin twice. With 100 ms here, four
	// agents on two overloaded cores read up to 8 % more than the data set.
	homeBudget = time.Second

	// youngFor is how long after a change of the member table (or its own
	// start) a home asks further than its two fellows: by then every holder has
	// pushed what it has to the homes that are new.
	youngFor = 2 * time.Minute

	// maxFellows is how many members a home asks about one extent while it is
	// young.
	maxFellows = 8
)

// want is a home's side of a question. The asker was authenticated, or named by
// the home that handed the question over, or names itself after a redirect.
//
// Only the first home grants, as long as it can be reached: any other answers
// what it knows, and hands over a question that needs a grant. A peer that is no
// home by its own table names the one that is. While members disagree on who is
// first (a table that is being spread, a partition) or the first is out of reach,
// each side grants by itself, so that a block may be read from the origin once
// for each side.
func (d *Directory) want(ctx context.Context, asker covey.PeerID, w Want, handedOver bool) Plan {
	r := d.view()
	homes := r.homes(w.Extent)
	rank := slices.Index(homes, d.self)
	if rank != 0 && !handedOver {
		v := d.table.answer(question{asker: asker, want: w, ring: r})
		d.look(w.Extent, v.doubted)
		if v.open == 0 {
			return d.held(ctx, question{asker: asker, want: w, ring: r}, v)
		}
		if rank < 0 && asker != d.self {
			return d.answered(redirect(v, homes[0]))
		}
		if plan, ok := d.handOver(ctx, homes, asker, w); ok {
			return plan
		}
	}
	d.sync(ctx, w.Extent, r, homes)
	q := question{asker: asker, want: w, ring: r, grant: true}
	v := d.table.answer(q)
	d.look(w.Extent, v.doubted)
	return d.held(ctx, q, v)
}

// redirect completes a plan of which slots are open.
func redirect(v verdict, home covey.PeerID) Plan {
	p := v.plan
	for slot := range v.open.Slots() {
		p.Blocks = append(p.Blocks, BlockPlan{Slot: slot, State: Redirect, Peers: []covey.PeerID{home}})
	}
	slices.SortFunc(p.Blocks, func(a, b BlockPlan) int { return a.Slot - b.Slot })
	return p
}

// answered signs a plan and counts it.
func (d *Directory) answered(p Plan) Plan {
	p.Home = d.self
	for i := range p.Blocks {
		d.m.wants.WithLabelValues(p.Blocks[i].State.String()).Inc()
	}
	return p
}

// handOver asks the homes before this one to decide, best first, each within
// the budget.
func (d *Directory) handOver(ctx context.Context, homes []covey.PeerID, asker covey.PeerID, w Want) (Plan, bool) {
	for _, h := range homes {
		if h == d.self {
			return Plan{}, false
		}
		if h == asker || d.health.resting(h) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, homeBudget)
		plan, err := d.askWant(ctx, h, w, asker)
		cancel()
		if err == nil {
			return plan, true
		}
	}
	return Plan{}, false
}

// sync makes sure that this home knows what its fellows know before it grants
// anything: once for an extent it has no entry of, and again when it may have
// stopped being a home in between. Concurrent questions wait for one sync,
// which does not end with the question that began it.
func (d *Directory) sync(ctx context.Context, e covey.ExtentID, r *ring, homes []covey.PeerID) {
	ch, mine := d.beginSync(e, r)
	if ch == nil {
		return
	}
	if !mine {
		select {
		case <-ch:
		case <-ctx.Done():
		}
		return
	}
	d.learnOwn(e, r)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), homeBudget)
	defer cancel()
	all := d.askFellows(ctx, e, d.fellows(e, r, homes))
	d.endSync(e, r, all)
}

// beginSync returns nil when the entry is up to date, else the channel that
// the sync under way closes, and whether the caller is to do it.
func (d *Directory) beginSync(e covey.ExtentID, r *ring) (ch chan struct{}, mine bool) {
	sh := d.table.shard(e)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := d.table.entry(sh, e, r, d.table.stamp(time.Now()))
	switch {
	case en.synced > r.epoch:
		return nil, false
	case en.synced != 0 && r.stayedHome(e, en.synced-1):
		en.synced = r.epoch + 1
		return nil, false
	case en.syncing != nil:
		return en.syncing, false
	}
	en.syncing = make(chan struct{})
	return en.syncing, true
}

func (d *Directory) endSync(e covey.ExtentID, r *ring, all []known) {
	now := time.Now()
	sh := d.table.shard(e)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := d.table.entry(sh, e, r, d.table.stamp(now))
	for _, k := range all {
		d.table.merge(en, k, r, now)
	}
	en.synced = r.epoch + 1
	close(en.syncing)
	en.syncing = nil
}

// fellows returns whom to ask about an extent: the other homes, and for a while
// after the member table grew also who was home before and the next in rank,
// who may have been home when there were fewer members.
func (d *Directory) fellows(e covey.ExtentID, r *ring, homes []covey.PeerID) []covey.PeerID {
	ask := slices.Clone(homes)
	if now := time.Now(); now.Sub(r.grown) < youngFor {
		ask = append(ask, r.elders(e, now.Add(-youngFor))...)
		ask = append(ask, r.top(e, maxFellows)...)
	}
	seen := map[covey.PeerID]struct{}{d.self: {}}
	ask = slices.DeleteFunc(ask, func(id covey.PeerID) bool {
		_, twice := seen[id]
		seen[id] = struct{}{}
		return twice || d.health.resting(id)
	})
	return ask[:min(len(ask), maxFellows)]
}

// askFellows asks all of them at once and returns what those said that
// answered before ctx ended.
func (d *Directory) askFellows(ctx context.Context, e covey.ExtentID, from []covey.PeerID) []known {
	if len(from) == 0 {
		return nil
	}
	var wg sync.WaitGroup
	answers := make([]known, len(from))
	errs := make([]error, len(from))
	for i, id := range from {
		wg.Go(func() { answers[i], errs[i] = d.askKnown(ctx, id, e) })
	}
	wg.Wait()
	result := "none"
	all := answers[:0]
	for i := range answers {
		if errs[i] == nil {
			all, result = append(all, answers[i]), "answered"
		}
	}
	d.m.syncs.WithLabelValues(result).Inc()
	return all
}

// askWant sends a question to a home. asker is set when it is another peer's.
func (d *Directory) askWant(ctx context.Context, to covey.PeerID, w Want, asker covey.PeerID) (Plan, error) {
	reply, err := d.call(ctx, to, wantRequest(w, asker))
	if err != nil {
		return Plan{}, err
	}
	on := asker
	if on == "" {
		on = d.self
	}
	return planFrom(reply.GetPlan(), w, on)
}

func (d *Directory) askKnown(ctx context.Context, to covey.PeerID, e covey.ExtentID) (known, error) {
	reply, err := d.call(ctx, to, &wire.Request{Body: &wire.Request_Ask{Ask: &wire.Ask{Extent: e[:]}}})
	if err != nil {
		return known{}, err
	}
	return knownFrom(reply.GetKnown())
}

// Location is what [Directory.Lookup] finds out about a block.
type Location struct {
	// Home answered.
	Home covey.PeerID
	// Holders are the peers that the home lists for the block.
	Holders []covey.PeerID
	// Digest is pinned for the block; zero when nobody has read it yet.
	Digest covey.Digest
	// Reading is the peer that is reading it from the origin; "" when none is.
	Reading covey.PeerID
}

// Lookup asks the homes, best first, who holds a block. It grants nothing and
// changes nothing. ErrUnavailable when no home answers.
func (d *Directory) Lookup(ctx context.Context, e covey.ExtentID, slot int) (Location, error) {
	var errs []error
	for _, h := range d.Homes(e) {
		var k known
		var err error
		if h == d.self {
			k = d.table.tell(e)
		} else {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			k, err = d.askKnown(ctx, h, e)
			cancel()
		}
		if err == nil {
			return k.locate(h, slot), nil
		}
		errs = append(errs, err)
	}
	return Location{}, unavailable("look up", e, errors.Join(errs...))
}

// lookupTimeout is how long a person who asks where a block is waits for one
// home.
const lookupTimeout = time.Second

func (k known) locate(home covey.PeerID, slot int) Location {
	l := Location{Home: home}
	if k.pinned.Has(slot) {
		l.Digest = k.digests[rankOf(k.pinned, slot)]
	}
	for _, h := range k.holders {
		if h.have.Has(slot) {
			l.Holders = append(l.Holders, h.peer)
		}
	}
	for _, ls := range k.leases {
		if ls.slot == slot {
			l.Reading = ls.peer
		}
	}
	return l
}
