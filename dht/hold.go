package dht

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// maxHold is how long a home keeps a question at most. The asker knows all
	// that time that the home is there, from the keep-alives of the stream, and
	// asks again after it, so that a home that lost a question costs a second.
	maxHold = time.Second

	// maxHolds bounds the questions that a home keeps, each a goroutine and a
	// request of some hundred bytes; half of what the network lets members have
	// under way here. What is beyond is told to come again.
	maxHolds = 2048

	// maxAsks bounds the held questions that this peer has at one time, so that
	// they leave most of the 64 requests under way to one member to others.
	maxAsks = 16
)

// holds counts the questions that are kept here, and those of this peer that are
// kept elsewhere.
type holds struct{ here, there atomic.Int32 }

// enter counts one more, unless there are limit.
func enter(n *atomic.Int32, limit int32) bool {
	if n.Add(1) <= limit {
		return true
	}
	n.Add(-1)
	return false
}

// held answers a question with the verdict at hand, or, where that is to wait
// and the asker allows it, with the first that says more: what DESIGN calls an
// UPDATE is the answer to the question that waits for it.
func (d *Directory) held(ctx context.Context, q question, v verdict) Plan {
	if v.changed == nil || q.want.Hold <= 0 || !enter(&d.holds.here, maxHolds) {
		return d.answered(v.plan)
	}
	defer d.holds.here.Add(-1)
	d.m.held.Inc()
	until := time.Now().Add(min(q.want.Hold, maxHold))
	for v.changed != nil && d.await(ctx, v, until) {
		v = d.table.answer(q)
		if v.open != 0 { // it may not grant; who may is asked anew
			break
		}
		d.look(q.want.Extent, v.doubted)
	}
	return d.answered(v.plan.complete(v.open))
}

// await returns true when another answer may be due.
func (d *Directory) await(ctx context.Context, v verdict, until time.Time) bool {
	next := v.at
	if next.After(until) {
		next = until
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-v.changed:
		return true
	case <-timer.C:
		return time.Now().Before(until)
	case <-ctx.Done():
		return false
	}
}

// complete says "ask again now" of the slots that have no answer.
func (p Plan) complete(open covey.Bitmap) Plan {
	for slot := range open.Slots() {
		p.Blocks = append(p.Blocks, BlockPlan{Slot: slot, State: Wait, After: time.Millisecond})
	}
	return p
}

// again puts a question to the home of an earlier plan, which may keep it. It
// reports false when that home has no answer, or may not be kept waiting for.
func (d *Directory) again(ctx context.Context, w Want) (Plan, bool) {
	if w.Home == "" || w.Home == d.self || w.Hold <= 0 || d.health.resting(w.Home) || !enter(&d.holds.there, maxAsks) {
		return Plan{}, false
	}
	defer d.holds.there.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, min(w.Hold, maxHold)+homeBudget)
	defer cancel()
	plan, err := d.askWant(ctx, w.Home, w, d.self)
	if err != nil {
		return Plan{}, false
	}
	return plan, true
}

// redirected follows a redirect. The home that it names decides whatever its own
// table says; if it cannot be reached, the one that named it does.
func (d *Directory) redirected(ctx context.Context, w Want, p Plan) (Plan, error) {
	var to covey.PeerID
	for i := range p.Blocks {
		if p.Blocks[i].State == Redirect {
			to = p.Blocks[i].Peers[0]
		}
	}
	if to == "" {
		return p, nil
	}
	var err error
	for _, h := range [...]covey.PeerID{to, p.Home} {
		if h == d.self {
			return d.want(ctx, d.self, w, true), nil
		}
		var plan Plan
		ctx, cancel := context.WithTimeout(ctx, homeBudget)
		plan, err = d.askWant(ctx, h, w, d.self)
		cancel()
		if err == nil {
			return plan, nil
		}
	}
	return Plan{}, err
}
