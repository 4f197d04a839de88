package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// secondHomeAfter and thirdHomeAfter are how long a question may go
	// unanswered before the next home gets it too. A home answers in under a
	// millisecond, so 50 ms is not load but trouble; 250 ms leaves the second
	// the time to hand the question to a first that is only late.
	secondHomeAfter = 50 * time.Millisecond
	thirdHomeAfter  = 250 * time.Millisecond

	// resolveTimeout ends a question that nobody answers. A read behind it
	// still has to go to the origin, within the two seconds that trouble in the
	// mesh may cost.
	resolveTimeout = 1500 * time.Millisecond

	// findTimeout bounds the search for providers after that.
	findTimeout = 500 * time.Millisecond
)

// Resolve asks the extent's home: the first by rendezvous hash, after 50 ms
// without an answer also the second, after 250 ms the third; the first answer
// counts. A home that lately did not answer is asked last. When this peer is a
// home itself and knows holders of everything needed, or is the first that would
// be asked and knows readers, nobody is asked.
//
// With Want.Home and Want.Hold that home alone is asked first, and may take
// that long.
//
// When no home answers within 1.5 s: the DHT's providers as Held without a
// digest and with no home, else an error that wraps ErrUnavailable. A question
// that makes no sense is ErrInvalid.
func (d *Directory) Resolve(ctx context.Context, w Want) (Plan, error) {
	if err := w.validate(); err != nil {
		return Plan{}, fmt.Errorf("resolve extent %s: %w", w.Extent, err)
	}
	w.Failed = w.Failed[:min(len(w.Failed), maxFailed)]
	r := d.view()
	homes := r.homes(w.Extent)
	order := d.order(homes)
	if slices.Contains(homes, d.self) {
		q := question{asker: d.self, want: w, ring: r}
		// A later home hears of a read by PROGRESS and of its end only by HAVE: to
		// wait for that here would cost a second.
		if v := d.table.answer(q); v.open == 0 && (order[0] == d.self || v.plan.holds(w.Need)) {
			d.look(w.Extent, v.doubted)
			return d.resolved("self", d.held(ctx, q, v)), nil
		}
	}
	if homes[0] == d.self {
		return d.resolved("self", d.want(ctx, d.self, w, false)), nil
	}
	if plan, ok := d.again(ctx, w); ok {
		return d.resolved("home", plan), nil
	}
	plan, err := d.race(ctx, w, order)
	if err == nil {
		plan, err = d.redirected(ctx, w, plan)
	}
	if err == nil {
		return d.resolved("home", plan), nil
	}
	if ctx.Err() != nil {
		return Plan{}, fmt.Errorf("resolve extent %s: %w", w.Extent, context.Cause(ctx))
	}
	if plan, ok := d.fallback(ctx, w); ok {
		return d.resolved("providers", plan), nil
	}
	d.m.resolves.WithLabelValues("nobody").Inc()
	return Plan{}, unavailable("resolve", w.Extent, err)
}

// holds reports whether the plan names holders of all the slots.
func (p Plan) holds(slots covey.Bitmap) bool {
	for _, b := range p.Blocks {
		if b.State == Held && len(b.Peers) > 0 {
			slots = slots.Without(b.Slot)
		}
	}
	return slots == 0
}

func (d *Directory) resolved(by string, p Plan) Plan {
	d.m.resolves.WithLabelValues(by).Inc()
	return p
}

// order puts the homes that lately did not answer behind the others.
func (d *Directory) order(homes []covey.PeerID) []covey.PeerID {
	ordered := make([]covey.PeerID, 0, len(homes))
	var resting []covey.PeerID
	for _, h := range homes {
		if h != d.self && (d.health.resting(h) || d.lagging.resting(h)) {
			resting = append(resting, h)
		} else {
			ordered = append(ordered, h)
		}
	}
	return append(ordered, resting...)
}

// race asks the homes in turn, the next one when its time has come or when all
// that were asked have failed. The questions still under way when one is
// answered are cancelled; their goroutines are joined by Run.
func (d *Directory) race(ctx context.Context, w Want, homes []covey.PeerID) (Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	type answer struct {
		plan Plan
		err  error
	}
	answers := make(chan answer, len(homes))
	asked, failed := 0, 0
	ask := func() {
		h := homes[asked]
		asked++
		if !d.calls.start(func() {
			plan, err := d.askHome(ctx, h, w)
			answers <- answer{plan, err}
		}) {
			answers <- answer{err: fmt.Errorf("directory has ended: %w", covey.ErrUnavailable)}
		}
	}
	began := time.Now()
	after := [homesPerExtent]time.Duration{0, secondHomeAfter, thirdHomeAfter}
	timer := time.NewTimer(secondHomeAfter)
	defer timer.Stop()
	ask()
	var errs []error
	for {
		select {
		case a := <-answers:
			if a.err == nil {
				if asked > 1 && a.plan.Home != homes[0] {
					d.slow(homes[:asked-1], a.plan.Home)
				}
				return a.plan, nil
			}
			errs = append(errs, a.err)
			failed++
			if failed < asked {
				continue
			}
			if asked == len(homes) {
				return Plan{}, errors.Join(errs...)
			}
			ask()
		case <-timer.C:
			if asked < len(homes) {
				ask()
			}
		case <-ctx.Done():
			return Plan{}, errors.Join(append(errs, context.Cause(ctx))...)
		}
		if asked < len(homes) {
			timer.Reset(max(0, after[asked]-time.Since(began)))
		}
	}
}

// slow notes that the homes asked before another one answered had the time to
// answer and did not. They are asked last for a while; who is asked instead
// hands the question to them where it can, so nothing is granted twice for it.
func (d *Directory) slow(asked []covey.PeerID, answered covey.PeerID) {
	for _, h := range asked {
		if h != answered && h != d.self {
			d.lagging.failed(h)
		}
	}
}

func (d *Directory) askHome(ctx context.Context, h covey.PeerID, w Want) (Plan, error) {
	if h == d.self {
		return d.want(ctx, d.self, w, false), nil
	}
	return d.askWant(ctx, h, w, "")
}

// fallback turns what the DHT knows into a plan: the same peers for every slot,
// no digest, and no home to report to.
func (d *Directory) fallback(ctx context.Context, w Want) (Plan, bool) {
	if d.providers == nil {
		return Plan{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	found, err := d.providers.Providers(ctx, w.Extent)
	if err != nil {
		d.log.Debug("no providers found", "extent", w.Extent, "err", err)
	}
	peers := make([]covey.PeerID, 0, maxHandedOut)
	for _, id := range found {
		if id != d.self && !slices.Contains(w.Failed, id) && len(peers) < maxHandedOut {
			peers = append(peers, id)
		}
	}
	if len(peers) == 0 {
		return Plan{}, false
	}
	var p Plan
	for slot := range w.Need.Slots() {
		p.Blocks = append(p.Blocks, BlockPlan{Slot: slot, State: Held, Peers: peers})
	}
	return p, true
}

// doneTimeout is how long one home may take to take a report.
const doneTimeout = 500 * time.Millisecond

// Done reports a granted read to the home that granted it, and returns once
// that home knows (so that whoever is served next can confirm the digest). A
// success that this home does not take goes to the extent's other homes; a
// failure does not, because the lease ends by itself. ErrUnavailable when no
// home took it: the next announcement tells them.
//
// home "" (a plan that no home made) reports to the extent's homes in turn.
func (d *Directory) Done(ctx context.Context, home covey.PeerID, o Outcome) error {
	if o.Slot < 0 || o.Slot >= covey.MaxExtentBlocks {
		return fmt.Errorf("report slot %d of extent %s: %w", o.Slot, o.Extent, covey.ErrInvalid)
	}
	if o.Err != nil {
		o.Digest = covey.Digest{}
	}
	to := make([]covey.PeerID, 0, 1+homesPerExtent)
	if home != "" {
		to = append(to, home)
	}
	if home == "" || !o.Digest.IsZero() {
		for _, h := range d.Homes(o.Extent) {
			if h != home {
				to = append(to, h)
			}
		}
	}
	var errs []error
	for _, h := range to {
		err := d.report(ctx, h, o)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return unavailable("report a read of", o.Extent, errors.Join(errs...))
}

func (d *Directory) report(ctx context.Context, h covey.PeerID, o Outcome) error {
	if h == d.self {
		d.table.done(d.self, o, d.view())
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, doneTimeout)
	defer cancel()
	_, err := d.call(ctx, h, doneRequest(o))
	return err
}
