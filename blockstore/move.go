package blockstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/covey-cache/covey"
)

const (
	// moveEvery is how often a store looks whether anything should be in another
	// tier. It is the time that admission at full speed takes to fill what is kept
	// free of a tier of a few GiB.
	moveEvery = time.Second
	// defaultMoveRate turns 8 GiB of memory over in two minutes. It is a thirtieth of
	// what an NVMe disk gives and half of what a hard disk does; what arrives faster
	// goes to the next tier at once.
	defaultMoveRate int64 = 64 << 20
	// maxSplit bounds the objects that wait to be gathered into one tier; others are
	// found at the next start.
	maxSplit = 4 << 10
	// maxHot bounds the objects that wait to be moved up; others are used again.
	maxHot = 256
	// hotUses is from how many uses on an object may move up, one that was read in as
	// many epochs of late; it has to be used twice as often as what makes room for it.
	hotUses = 4
)

// keptFree is the share of a tier that is kept free for new blocks, as long as a
// slower tier has room; spareAgain is where moving down ends, so that it does not
// begin again with every block.
const (
	keptFree   = 10
	spareAgain = 7
)

// hot is an object that is used often, in a tier that is not the fastest.
type hot struct {
	at *tier
	id covey.ObjectID
}

// mover moves objects between the tiers of a store, in the background.
type mover struct {
	s     *Store
	ctx   context.Context //nolint:containedctx // it lives as long as the goroutine
	limit *rate.Limiter
	known []*tier // those that were searched for objects in several
}

// moveObjects runs until the store closes.
func (s *Store) moveObjects(ctx context.Context) {
	defer s.done.Done()
	if len(s.shelves) == 0 {
		return
	}
	m := &mover{s: s, ctx: ctx, limit: rate.NewLimiter(rate.Limit(s.opts.MoveRate), int(covey.MaxBlockSize))}
	m.limit.AllowN(time.Now(), int(covey.MaxBlockSize))
	m.searchNew()
	tick := time.NewTicker(moveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.searchNew()
		for ctx.Err() == nil && m.step() {
		}
	}
}

// searchNew looks for objects in several tiers when a tier was opened: one that failed
// and is back may have blocks, and pins, that others took over meanwhile.
func (m *mover) searchNew() {
	if now := slices.Collect(m.s.tiers()); !slices.Equal(now, m.known) {
		m.known = now
		m.findSplit()
	}
}

// step does one thing that should be done; false when there is none.
func (m *mover) step() bool {
	tiers := m.usable()
	for i, t := range tiers {
		if t.over() > 0 {
			if m.shrink(t, tiers) {
				return true
			}
		} else if i < len(tiers)-1 && t.crowded(keptFree) {
			moved := 0
			for t.crowded(spareAgain+keptFree) && m.ctx.Err() == nil && m.demote(t, tiers[i+1:], 0) {
				moved++
			}
			if moved > 0 {
				return false // the next tick sees whether more is due
			}
		}
	}
	if m.gather(tiers) {
		return true
	}
	select {
	case h := <-m.s.hot:
		m.promote(h, tiers)
		return true
	default:
	}
	return false
}

// usable returns the tiers that admit blocks and answer.
func (m *mover) usable() []*tier {
	var list []*tier
	for _, sh := range m.s.shelves {
		if t := sh.at.Load(); t != nil && sh.ailing() == nil && !t.stalled() {
			list = append(list, t)
		}
	}
	return list
}

// over is how much more a tier holds than it may, since its budget was made smaller.
func (s *tier) over() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used - s.budget
}

// crowded reports whether less than percent of the tier is free.
func (s *tier) crowded(percent int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.budget-s.used-s.reserved < s.budget/100*percent
}

// spareFor reports whether all of an object fits into the spare room.
func (s *tier) spareFor(o covey.Object, id covey.ObjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault == nil && s.missing(o, id) <= s.spare()
}

// coldest returns the object of a tier that should be the first to leave it: of the
// oldest of each queue, the one that was used least, and most of these the one in
// the queue that gives way first. A limit on its uses may be given.
func (s *tier) coldest(most int) (id covey.ObjectID, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *entry
	for q := range s.table.queues {
		if s.table.queues[q].oldest == 0 {
			continue
		}
		e := s.oldest(queue(q), newcomer{}) //nolint:gosec // it is a queue's number
		if e != nil && (best == nil || e.uses < best.uses) {
			best = e
		}
	}
	if best == nil || most > 0 && int(best.uses) > most {
		return covey.ObjectID{}, false
	}
	return best.id, true
}

// demote moves the coldest object of a tier to the first slower one with room for it.
func (m *mover) demote(t *tier, slower []*tier, mostUses int) bool {
	id, ok := t.coldest(mostUses)
	if !ok {
		return false
	}
	o, err := t.name(id)
	if err != nil {
		t.passOver(id)
		return false
	}
	for _, to := range slower {
		if to.spareFor(o, id) {
			return m.try(o, t, to)
		}
	}
	return false
}

// passOver puts an object at the end of its queue, so that others are tried.
func (s *tier) passOver(id covey.ObjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		s.table.touch(e)
	}
}

// shrink takes an object out of a tier that holds more than it may: to another tier,
// or else for good.
func (m *mover) shrink(t *tier, tiers []*tier) bool {
	id, ok := t.coldest(0)
	if !ok {
		return false
	}
	o, err := t.name(id)
	if err == nil {
		for _, to := range tiers {
			if to != t && to.spareFor(o, id) {
				return m.try(o, t, to)
			}
		}
	}
	if t.evictFor(newcomer{primary: true, trades: true, idle: m.s.opts.IdleAfter, now: time.Now()}) {
		return true
	}
	t.mu.Lock()
	e := t.table.find(&id)
	if e == nil || t.claims[id] != 0 || t.pinned(id) {
		t.mu.Unlock()
		return false
	}
	return t.evictEntry(e, false)
}

// promote moves an object that is used often to a faster tier, in the place of what
// is used half as often at most.
func (m *mover) promote(h hot, tiers []*tier) {
	o, err := h.at.name(h.id)
	if err != nil {
		return
	}
	uses := h.at.usesOf(h.id)
	for i, to := range tiers {
		if to == h.at {
			return
		}
		for n := 0; n < maxPassed && !to.takes(o); n++ {
			if !m.demote(to, tiers[i+1:], max(uses/2, 1)) {
				break
			}
		}
		if to.takes(o) {
			m.try(o, h.at, to)
			return
		}
	}
}

// takes reports whether an object may move up to the tier: there is room for it, and
// as much is left free as is kept for new blocks.
func (s *tier) takes(o covey.Object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := min(s.budget-s.used, s.room) - s.reserved - DiskUse(o)
	return s.fault == nil && left >= s.budget/100*keptFree
}

func (s *tier) usesOf(id covey.ObjectID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		return int(e.uses)
	}
	return 0
}

// try moves an object, and reports whether it did.
func (m *mover) try(o covey.Object, from, to *tier) bool {
	err := m.move(o, from, to)
	if err == nil {
		m.s.moved.Add(1)
		return true
	}
	from.passOver(o.ID())
	if m.ctx.Err() == nil {
		m.s.log.Debug("move an object", "key", o.Key, "from", from.opts.Dir, "to", to.opts.Dir, "err", err)
	}
	return false
}

// errGrew says that an object got more blocks in the tier it is to leave.
var errGrew = errors.New("it grew while it was moved")

// move copies an object, makes the copy durable, and only then takes the original
// away: a crash in between leaves both. Readers find one or the other throughout, and
// handles and descriptors of the original keep its bytes. A pin moves with it, the
// new one first.
func (m *mover) move(o covey.Object, from, to *tier) error {
	id := o.ID()
	uses := from.usesOf(id) // to copy it is no use
	m.s.moving.begin(id)
	defer m.s.moving.end()
	second, err := m.s.pinAlso(o, id, from, to)
	if err != nil {
		return err
	}
	err = m.carry(o, id, from, to, uses)
	if err != nil && second {
		// What it was to make room for stays where it is.
		err = errors.Join(err, m.s.pinOnce(o, id, from, to))
	}
	return err
}

// carry moves an object that is pinned where it goes to.
func (m *mover) carry(o covey.Object, id covey.ObjectID, from, to *tier, uses int) error {
	for range 3 {
		if err := m.copy(o, id, from, to); err != nil {
			return err
		}
		if err := to.Sync(); err != nil {
			return err
		}
		to.inherit(id, uses, from)
		if err := m.s.pinOnce(o, id, to, from); err != nil {
			return err
		}
		if gone, err := m.s.leave(o, id, from, to); gone || err != nil {
			return err
		}
	}
	return errGrew
}

func (s *tier) keeps(id covey.ObjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pinned(id)
}

// copy admits to one tier what another has of an object.
func (m *mover) copy(o covey.Object, id covey.ObjectID, from, to *tier) error {
	if o.Blocks() == 0 {
		err := to.PutEmpty(o)
		if err == nil && m.s.moving.isDisturbed() {
			err = errors.Join(errDisturbed, to.DropObject(o))
		}
		return err
	}
	var buf []byte
	for i := range o.Blocks() {
		l, k := o.Block(i), blockKey{id, uint32(i)}
		if !from.holds(k) || to.holds(k) {
			continue
		}
		n := int(l.Range().Len)
		if err := m.limit.WaitN(m.ctx, n); err != nil {
			return err
		}
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		if err := m.copyBlock(l, k, from, to, buf[:n]); err != nil && !errors.Is(err, covey.ErrNotFound) {
			return err // what is not there was dropped meanwhile
		}
	}
	return nil
}

// provenance is where a block came from that is here.
func (s *tier) provenance(k blockKey) (p provenance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&k.id); e != nil && s.table.has(e, int(k.index)) {
		p = provenance{replica: s.table.isReplica(e, int(k.index)), many: e.flags&flagMany != 0}
	}
	return p
}

// inherit takes over how often an object was used, and since when it is here.
func (s *tier) inherit(id covey.ObjectID, uses int, from *tier) {
	from.mu.Lock()
	e := from.table.find(&id)
	if e == nil {
		from.mu.Unlock()
		return
	}
	stamp, timed := e.stamp, e.flags&flagTimed != 0
	from.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		e.uses = max(e.uses, uint8(uses)) //nolint:gosec // it was one
		if timed && e.flags&flagTimed != 0 {
			e.stamp = min(e.stamp, stamp)
		}
	}
}

// leave takes an object out of a tier when another has all of it.
func (s *Store) leave(o covey.Object, id covey.ObjectID, from, to *tier) (gone bool, err error) {
	if err := from.enter(); err != nil {
		return false, err
	}
	defer from.leave()
	from.mu.Lock()
	from.claimWhole(id) // nothing of it is on its way in or out
	defer from.unclaimWhole(id)
	from.mu.Unlock()
	for i := range o.Blocks() {
		k := blockKey{id, uint32(i)}
		if from.holds(k) && !to.holds(k) {
			return false, nil
		}
	}
	// A reader who found it in neither began before this, and looks again.
	s.moves.Add(1)
	from.mu.Lock()
	if from.pinned(id) {
		from.mu.Unlock()
		return false, fmt.Errorf("leave %s: %w", from.opts.Dir, ErrPinned)
	}
	_, err = from.removeObject(o, id)
	return true, err
}

// findSplit looks for objects that are in several tiers: spread there for want of
// room, or copied by a move that a crash ended.
func (m *mover) findSplit() {
	tiers := m.usable()
	for i, a := range tiers {
		for _, id := range a.pinIDs() {
			for _, b := range tiers[i+1:] {
				if b.keeps(id) {
					m.endSecondPin(id, a, b)
				}
			}
		}
		for slab := 0; ; slab++ {
			ids, more := a.idsOf(slab)
			if !more || m.ctx.Err() != nil {
				break
			}
			for _, id := range ids {
				for _, b := range tiers[i+1:] {
					if b.blocksOf(id) > 0 {
						m.s.noteSplit(id, a)
					}
				}
			}
		}
	}
}

// endSecondPin ends the pin of an object, of the two that a crash left, in the tier that
// has less of it.
func (m *mover) endSecondPin(id covey.ObjectID, a, b *tier) {
	from := b
	if b.blocksOf(id) > a.blocksOf(id) {
		from = a
	}
	var o covey.Object
	err := from.index.get(objectKey(keyPin, id), func(v []byte) (err error) {
		o, err = parseObject(v)
		return err
	})
	if err == nil {
		to := a
		if from == a {
			to = b
		}
		err = m.s.pinOnce(o, id, to, from)
	}
	if err != nil {
		m.s.log.Debug("end a second pin", "tier", from.opts.Dir, "err", err)
	}
}

func (s *tier) pinIDs() []covey.ObjectID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.pins))
}

func (s *tier) idsOf(slab int) (ids []covey.ObjectID, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slab >= len(s.table.slab) {
		return nil, false
	}
	for i := range s.table.slab[slab] {
		if e := &s.table.slab[slab][i]; e.count > 0 {
			ids = append(ids, e.id)
		}
	}
	return ids, true
}

// noteSplit remembers that an object is in several tiers, one of which is given.
func (s *Store) noteSplit(id covey.ObjectID, at *tier) {
	s.splitMu.Lock()
	defer s.splitMu.Unlock()
	if len(s.split) < maxSplit {
		s.split[id] = at
	}
}

// mayBeSplit remembers an object of which a block went to another tier than it should
// have, if others of it are elsewhere.
func (s *Store) mayBeSplit(id covey.ObjectID, at *tier) {
	for t := range s.tiers() {
		if t != at && t.blocksOf(id) > 0 {
			s.noteSplit(id, at)
			return
		}
	}
}

// gather brings one object that is in several tiers together, if one tier has room
// for all of it: the one where it is pinned, or else the fastest.
func (m *mover) gather(tiers []*tier) bool {
	m.s.splitMu.Lock()
	var id covey.ObjectID
	var at *tier
	for id, at = range m.s.split {
		break
	}
	delete(m.s.split, id)
	m.s.splitMu.Unlock()
	if at == nil {
		return false
	}
	o, err := at.name(id)
	parts := 0
	for _, t := range tiers {
		if t.blocksOf(id) > 0 || t.keeps(id) {
			parts++
		}
	}
	if err != nil || parts < 2 {
		return true
	}
	var to *tier
	for _, t := range tiers {
		if t.keeps(id) {
			to = t
			break
		}
		if to == nil && m.roomForRest(o, id, t, tiers) {
			to = t
		}
	}
	for _, t := range tiers {
		if to != nil && t != to && t.blocksOf(id) >= 0 {
			m.try(o, t, to)
		}
	}
	return true
}

// roomForRest reports whether a tier has room for what the others have of an object
// and it has not.
func (m *mover) roomForRest(o covey.Object, id covey.ObjectID, t *tier, tiers []*tier) bool {
	var need int64
	for i := range o.Blocks() {
		k := blockKey{id, uint32(i)}
		if !t.holds(k) && anyHolds(tiers, k) {
			need += blockUse(o, i)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fault == nil && need <= t.spare()
}
