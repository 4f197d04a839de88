package blockstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
)

// Pin guarantees that every block of the object can be admitted and is not
// evicted: room for what is not here is taken out of one tier's budget, and nobody
// else gets it. Where there is none, what gives way to a primary is evicted: replicas,
// idle data sets, and what trades. The pin is durable when Pin returns; the blocks are
// whoever's fetches them. Pinning again does nothing.
//
// A [NoRoomError] when it does not fit beside what does not give way, and then
// nothing was evicted; Evict makes room. [covey.ErrReadOnly] when disk faults stopped
// admission.
func (s *Store) Pin(o covey.Object) error {
	_, err := s.PinAll(context.Background(), []covey.Object{o})
	return err
}

// PinAll pins one object after the other, until one does not fit or ctx is done, and
// returns how many of them are pinned now. None of them gives way to another. Nothing
// is evicted when it is plain that all of them together do not fit. A [NoRoomError]
// says what they lack together.
func (s *Store) PinAll(ctx context.Context, objects []covey.Object) (pinned int, err error) {
	p := pinner{s: s, yields: make(map[*tier]int64)}
	p.n = newcomer{primary: true, also: make(map[covey.ObjectID]struct{}, len(objects)), idle: s.opts.IdleAfter, now: time.Now()}
	var need int64
	for _, o := range objects {
		if err := o.Validate(); err != nil {
			return 0, fmt.Errorf("pin %s: %w", o.Key, err)
		}
		p.n.also[o.ID()] = struct{}{}
		p.n.trades = p.n.trades || s.opts.rules.of(o).Policy.trades()
		if st := s.Stat(o); !st.Pinned {
			need += st.Missing
		}
	}
	if lack := p.lack(need); lack > 0 && len(objects) > 1 { // of one, its tier says
		return 0, fmt.Errorf("pin %d objects in any tier: %w", len(objects), &NoRoomError{Missing: lack})
	}
	for i, o := range objects {
		if err = ctx.Err(); err == nil {
			err = p.pin(o, o.ID())
		}
		var none *NoRoomError
		if errors.As(err, &none) {
			lack := none.Missing
			for _, o := range objects[i+1:] {
				lack += s.Stat(o).Missing
			}
			err = fmt.Errorf("pin %s in any tier: %w", o.Key, &NoRoomError{Missing: lack})
		}
		if err != nil {
			return i, err
		}
	}
	return len(objects), nil
}

// pinner makes room for pins.
type pinner struct {
	s      *Store
	n      newcomer
	yields map[*tier]int64 // what gives way in each tier, as far as it was asked for
}

// lack is how much more room is needed than there is and gives way, in all tiers.
func (p *pinner) lack(need int64) int64 {
	if need == 0 {
		return 0
	}
	for t := range p.s.tiers() {
		t.mu.Lock()
		if t.fault != nil {
			t.mu.Unlock()
			return 0 // who cannot pin there says why
		}
		need -= max(0, t.spare())
		t.mu.Unlock()
	}
	for t := range p.s.tiers() {
		if need <= 0 {
			return 0
		}
		need -= p.yieldOf(t)
	}
	return need
}

func (p *pinner) yieldOf(t *tier) int64 {
	n, known := p.yields[t]
	if !known {
		n = t.yieldable(p.n)
		p.yields[t] = n
	}
	return n
}

func (p *pinner) pin(o covey.Object, id covey.ObjectID) error {
	s := p.s
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	if s.Stat(o).Pinned {
		return nil
	}
	var least *NoRoomError
	err := errNoTier
	order := s.order(o, id)
	for _, room := range [...]bool{false, true} {
		for _, t := range order {
			if err = p.pinIn(t, o, room); err == nil {
				s.gatherIn(t, id)
				return nil
			}
			var none *NoRoomError
			switch {
			case !errors.As(err, &none):
				if !passesOn(err) {
					return err
				}
			case least == nil || none.Missing < least.Missing:
				least = none
			}
		}
		if least == nil {
			return err
		}
	}
	return least
}

// pinIn pins an object in one tier, and makes room for it there if that is wanted and
// is of use.
func (p *pinner) pinIn(t *tier, o covey.Object, room bool) error {
	err := t.Pin(o)
	var none *NoRoomError
	if !room || !errors.As(err, &none) {
		return err
	}
	if yields := p.yieldOf(t); yields < none.Missing {
		return fmt.Errorf("pin %s in %s: %w", o.Key, t.opts.Dir, &NoRoomError{Missing: none.Missing - yields})
	}
	passes := 0 // each search passes over some that are pinned, and puts them last
	for errors.As(err, &none) {
		before := t.Usage()
		if !t.evictFor(p.n) {
			if passes++; passes > before.Objects/maxPassed+1 {
				return err
			}
			continue
		}
		p.yields[t] -= max(0, before.Used-t.Usage().Used)
		t.remeasure()
		err = t.Pin(o)
	}
	return err
}

// gatherIn sees to it that blocks which other tiers have of an object come to the one
// that it is pinned in, where they are not evicted.
func (s *Store) gatherIn(at *tier, id covey.ObjectID) {
	for t := range s.tiers() {
		if t != at && t.blocksOf(id) > 0 {
			s.noteSplit(id, t)
			return
		}
	}
}

// yieldable adds up what of a tier gives way, in bytes. It reads the shape of every
// object from the index, a second for some million, which only a pin that does not fit
// has to wait for; what the index is yet to hear of does not count.
func (s *tier) yieldable(n newcomer) (sum int64) {
	if s.Sync() != nil {
		return 0
	}
	_, err := s.index.scan([]byte{keyPresence}, []byte{keyPresence + 1}, -1, func(k, v []byte) error {
		p, err := parsePresence(v)
		if err != nil || len(k) != 33 {
			return nil // what cannot be read is not counted on
		}
		id, o := covey.ObjectID(k[1:]), p.object()
		s.mu.Lock()
		defer s.mu.Unlock()
		e := s.table.find(&id)
		if e == nil || !s.mayGo(e, n) {
			return nil
		}
		class, may := n.class(s.opts.rules.at(e.queue.rule()), e.queue.kind())
		switch {
		case !may:
		case class != classReplica || e.flags&flagMixed == 0:
			sum += s.table.objectUse(e, o)
		case e.flags&flagCoded == 0:
			sum += s.table.replicaUse(e, o)
		}
		return nil
	})
	if err != nil {
		s.log.Debug("add up what gives way", "tier", s.opts.Dir, "err", err)
	}
	return sum
}

// replicaUse is the disk use of the replicas of an object that is stored as it is.
func (t *table) replicaUse(e *entry, o covey.Object) (sum int64) {
	for i := range int(e.blocks) {
		if t.has(e, i) && t.isReplica(e, i) {
			sum += blockUse(o, i)
		}
	}
	return sum
}

// Unpin ends a pin, durably. What is here stays until it is evicted. Unpinning
// what is not pinned is no error.
func (s *Store) Unpin(o covey.Object) error {
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	var errs []error
	for t := range s.tiers() {
		errs = append(errs, t.Unpin(o))
	}
	return errors.Join(errs...)
}
