package fetch

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

// race reads one block from the holders that a home named.
//
// One is asked first. Another is asked beside it when it falls silent for the
// hedge delay or takes far longer than blocks do, and instead of it when it
// carries less than 1 MiB in 500 ms; each goes on from the byte that the one
// before had reached. The first whole block counts, if its digest is right; the
// other attempts are stopped.
//
// Only the flight's goroutine uses it. Attempts run on goroutines of the table.
//
// INVARIANT: every buffer belongs to one attempt, or is free, or is the search's
// once the race is over.
type race struct {
	s       *search
	ctx     context.Context
	want    covey.Digest
	peers   []covey.PeerID
	running []*attempt
	ended   chan *attempt // as many fit in as there are attempts
	free    *buffer       // that no attempt uses
	// whole says that parts of several peers did not fit together: from now on
	// each attempt is one peer's whole block, so that a liar can be told.
	whole  bool
	ranges bool
	tried  int
	// delay and late are the hedge delay, and when a block is late.
	delay, late time.Duration
}

// maxAttempts bounds the attempts of one race: four holders, each twice.
const maxAttempts = 8

// race tries the holders and reports whether one of them had the block; its
// bytes are then in s.buf.
func (s *search) race(peers []covey.PeerID, want covey.Digest) bool {
	ctx, cancel := context.WithTimeout(s.fl.ctx, s.f.tryLimit())
	defer cancel()
	_, ranges := s.f.opts.Exchange.(RangeExchange)
	r := &race{
		s: s, ctx: ctx, want: want, peers: peers, ranges: ranges,
		ended: make(chan *attempt, maxAttempts), free: s.buf,
		delay: s.f.hedgeDelay(), late: s.f.lateAfter(),
	}
	s.buf = nil
	won := r.run()
	if won != nil {
		s.buf = won.buf
	}
	r.finish(won)
	return won != nil
}

// run returns the attempt that has the block.
func (r *race) run() *attempt {
	if !r.launch(nil, false) {
		return nil
	}
	timer := time.NewTimer(r.untilLook())
	defer timer.Stop()
	for {
		select {
		case a := <-r.ended:
			if r.took(a) {
				return a
			}
			if len(r.running) == 0 && !r.launch(a, false) {
				return nil
			}
		case <-timer.C:
			r.look()
		case <-r.ctx.Done():
			r.timedOut()
			return nil
		}
		timer.Reset(r.untilLook())
	}
}

// took takes in how an attempt ended, and reports whether it has the block.
func (r *race) took(a *attempt) bool {
	r.over(a)
	f := r.s.f
	f.score(a, a.left)
	switch {
	case a.err == nil && covey.Sum(a.buf.data) == r.want:
		f.neighbourTook.add(a.ended.Sub(a.began))
		f.hedges.received(len(a.buf.data), 0)
		if a.hedge {
			f.hedges.won.Add(1)
		}
		return true
	case a.err == nil:
		r.wrong(a)
	case !a.left:
		if !errors.Is(a.err, covey.ErrNotFound) && r.s.fl.ctx.Err() == nil {
			f.neighbours.doubt(a.peer, suspicion)
		}
		r.s.fail(a.peer, a.failure())
	}
	r.keep(a.buf)
	return false
}

// over takes an attempt that has ended out of those under way.
func (r *race) over(a *attempt) {
	r.running = slices.DeleteFunc(r.running, func(o *attempt) bool { return o == a })
	if a.hedge {
		r.s.f.hedges.end()
	}
}

// keep makes a buffer the free one. What the last attempt has filled is worth
// more than what was free before.
func (r *race) keep(b *buffer) {
	if r.free != nil {
		r.free.free()
	}
	r.free = b
}

// wrong deals with a block that is not what the home says.
func (r *race) wrong(a *attempt) {
	if len(a.before) == 0 {
		r.s.lied(a.peer)
		return
	}
	for _, p := range append(a.before, a.peer) {
		r.s.f.neighbours.doubt(p, suspicion)
	}
	r.s.f.opts.OnCorrupt(Neighbour.String(), r.s.fl.locator, "")
	r.whole = true
}

// untilLook is when the attempts are to be looked at next.
func (r *race) untilLook() time.Duration {
	now := time.Now()
	next := now.Add(slowAfter)
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, a := range r.running {
		if a.left {
			continue
		}
		earlier(a.checked.Add(slowAfter))
		if !a.hedged {
			earlier(a.told.lastAt(a.began).Add(r.delay))
			earlier(a.began.Add(r.late))
		}
	}
	// A little later than due, so that it is due then.
	return max(next.Sub(now), 0) + 100*time.Microsecond
}

// look hedges what is silent or late, and leaves what is slow.
func (r *race) look() {
	now := time.Now()
	for _, a := range slices.Clone(r.running) {
		if a.left {
			continue
		}
		silent := now.Sub(a.told.lastAt(a.began)) >= r.delay
		if !a.hedged && (silent || now.Sub(a.began) >= r.late) {
			a.hedged = true
			r.hedge(a)
		}
		if now.Sub(a.checked) >= slowAfter {
			slow := float64(a.filled()-a.checkedAt)*r.s.f.opts.Scale < slowBytes
			a.checked, a.checkedAt = now, a.filled()
			if slow {
				r.abandon(a)
			}
		}
	}
}

// hedge asks another beside a. There is one hedge at a time.
func (r *race) hedge(a *attempt) {
	if slices.ContainsFunc(r.running, func(o *attempt) bool { return o.hedge }) || !r.s.f.hedges.begin() {
		return
	}
	if !r.launch(a, true) {
		r.s.f.hedges.end()
	}
}

// abandon leaves a peer that is too slow, if another is being asked or can be.
func (r *race) abandon(a *attempt) {
	others := slices.ContainsFunc(r.running, func(o *attempt) bool { return o != a && !o.left })
	if !others && !r.launch(a, false) {
		return
	}
	a.left = true
	r.s.f.hedges.left.Add(1)
	r.s.f.neighbours.doubt(a.peer, suspicion)
	a.stop()
}

// timedOut notes that the holders took all the time there was.
func (r *race) timedOut() {
	if r.s.fl.ctx.Err() != nil {
		return
	}
	for _, a := range r.running {
		if !a.left {
			r.s.f.neighbours.doubt(a.peer, suspicion)
			r.s.fail(a.peer, errors.New("a holder took too long"))
		}
	}
}

// launch asks one more peer, which goes on where the attempt given is. It
// reports false when nobody is left to be asked.
func (r *race) launch(from *attempt, hedge bool) bool {
	if r.tried == maxAttempts || r.s.fails >= maxFails {
		return false
	}
	buf := r.memory(from)
	if buf == nil {
		return false
	}
	a := &attempt{buf: buf, hedge: hedge}
	if from != nil && r.ranges && !r.whole && (buf == from.buf || slices.Contains(r.running, from)) {
		a.goOn(from)
	}
	var ok bool
	if a.peer, ok = r.choose(a.size()); !ok {
		r.keep(buf)
		return false
	}
	if a.from > 0 && buf != from.buf {
		copy(buf.data[:a.from], from.buf.data[:a.from])
	}
	r.start(a)
	return true
}

// memory is a buffer for one more attempt: the free one, or one from prefetch's
// share, since a race that has any is not in need.
func (r *race) memory(from *attempt) *buffer {
	if b := r.free; b != nil {
		r.free = nil
		return b
	}
	return r.s.f.staging.trySpare(len(from.buf.data))
}

// choose picks a peer that is not being asked and has not failed. When all their
// windows are full, it waits for room if the race has nothing else to wait for.
func (r *race) choose(size int) (covey.PeerID, bool) {
	n := r.s.f.neighbours
	for {
		left := slices.DeleteFunc(slices.Clone(r.peers), func(p covey.PeerID) bool {
			return slices.Contains(r.s.failed, p) || n.banned(p) ||
				slices.ContainsFunc(r.running, func(a *attempt) bool { return a.peer == p })
		})
		if len(left) == 0 {
			return "", false
		}
		p, room, ok := n.take(left, size)
		if ok || len(r.running) > 0 {
			return p, ok
		}
		select {
		case <-room:
		case <-r.ctx.Done():
			return "", false
		}
	}
}

// start runs the attempt.
func (r *race) start(a *attempt) {
	ctx, cancel := context.WithCancel(r.ctx)
	a.stop = cancel
	a.began = time.Now()
	a.checked, a.checkedAt = a.began, a.from
	r.running = append(r.running, a)
	r.tried++
	f, l := r.s.f, r.s.fl.locator
	run := func() {
		a.err = f.attempt(ctx, l, a)
		a.ended = time.Now()
		cancel()
		r.ended <- a
	}
	if !f.table.spawn(run) {
		cancel()
		a.err, a.ended = errStopped, a.began
		r.ended <- a
	}
}

// finish stops what is still under way. Without a winner it waits for a buffer
// that nobody writes to; the others are freed when their attempts have ended.
func (r *race) finish(won *attempt) {
	for _, a := range r.running {
		if won != nil && a.told.lastAt(a.began).Before(won.began) {
			// It said nothing while the winner did all of its work: the next
			// block need not find that out again.
			r.s.f.neighbours.doubt(a.peer, suspicion)
		}
		a.stop()
	}
	for won == nil && r.free == nil {
		a := <-r.ended
		r.lost(a, won)
		r.free = a.buf
	}
	if won == nil {
		r.s.buf = r.free
	} else if r.free != nil {
		r.free.free()
	}
	if len(r.running) > 0 && !r.s.f.table.spawn(func() { r.drain(won) }) {
		r.drain(won)
	}
}

// drain waits for the losers, a tenth of a second at most, and frees what is
// theirs.
func (r *race) drain(won *attempt) {
	for len(r.running) > 0 {
		a := <-r.ended
		r.lost(a, won)
		a.buf.free()
	}
}

// lost takes in an attempt that was stopped.
func (r *race) lost(a, won *attempt) {
	r.over(a)
	r.s.f.score(a, true)
	if won != nil {
		r.s.f.hedges.received(0, max(a.filled()-max(a.from, won.from), 0))
	}
}
