package blockstore

import (
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/covey-cache/covey"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// claimedWhole in tier.claims says that an object's file as such is made or
// removed.
const claimedWhole = -1

// Put admits a block whose bytes have the given digest. It does not keep data.
// [covey.ErrFull] when the budget or the file system has no room, or when the
// disk is so slow that too much waits to be synced; [covey.ErrReadOnly] when a
// disk fault stopped admission; the caller goes on without. The block can be read
// at once, and survives a power loss from the next group commit on.
//
// Putting a block that is already here is a no-op, except that its place is
// brought up to date. Of several calls for one block at once, one writes.
func (s *tier) Put(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error {
	if d.IsZero() {
		return fmt.Errorf("admit %s: no digest: %w", l, covey.ErrInvalid)
	}
	return s.admitBlock(l, record{digest: d, place: p}, data)
}

// PutReplica is Put for a block that came from a neighbour; many says that many
// others have it.
func (s *tier) PutReplica(l covey.Locator, p covey.Place, d covey.Digest, data []byte, many bool) error {
	if d.IsZero() {
		return fmt.Errorf("admit %s: no digest: %w", l, covey.ErrInvalid)
	}
	return s.admitBlock(l, record{digest: d, place: p, from: provenance{replica: true, many: many}}, data)
}

// Admit is Put for bytes whose digest nobody has computed yet: it does so while it
// writes them. Whether they are the right ones is for the caller to know, as it is
// with bytes that come from the origin.
func (s *tier) Admit(l covey.Locator, p covey.Place, data []byte) error {
	return s.admitBlock(l, record{place: p}, data)
}

func (s *tier) admitBlock(l covey.Locator, r record, data []byte) error {
	if err := checkPut(l, r.place, data); err != nil {
		return fmt.Errorf("admit %s: %w", l, err)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.inUse()
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	if err := s.put(l, k, r, data); err != nil {
		s.metrics.refused.Inc()
		return fmt.Errorf("admit %s to %s: %w", l, s.opts.Dir, err)
	}
	return nil
}

func checkPut(l covey.Locator, p covey.Place, data []byte) error {
	if err := l.Validate(); err != nil {
		return err
	}
	switch {
	case int64(len(data)) != l.Range().Len:
		return fmt.Errorf("%d bytes for a block of %d: %w", len(data), l.Range().Len, covey.ErrInvalid)
	case int(p.Slot) >= covey.MaxExtentBlocks:
		return fmt.Errorf("slot %d of an extent: %w", p.Slot, covey.ErrInvalid)
	}
	return nil
}

func (s *tier) put(l covey.Locator, k blockKey, r record, data []byte) error {
	s.mu.Lock()
	s.claimBlock(k)
	if e := s.table.find(&k.id); e != nil && s.table.has(e, l.Index) {
		s.mu.Unlock()
		err := s.replace(l, k, r.place)
		s.unclaimBlock(k)
		return err
	}
	use := blockUse(l.Object, l.Index)
	if err := s.reserve(k.id, use); err != nil {
		s.mu.Unlock()
		s.unclaimBlock(k)
		return err
	}
	like := s.codedLike(l.Object, k.id)
	s.mu.Unlock()

	if err := s.write(l, k, &r, data, like); err != nil {
		s.writeFailed(l, k, use, err)
		return kind(err)
	}
	s.metrics.admitted.Inc()
	s.metrics.plainBytes.Add(float64(len(data)))
	stored := r.use(int64(len(data)))
	set := s.opts.rules.of(l.Object)
	s.mu.Lock()
	s.unneeded(use - stored)
	e := s.table.find(&k.id)
	if e == nil {
		e = s.table.add(k.id, l.Blocks())
		s.recallHanded(e)
	}
	s.table.account(e, l.Object, stored, r.coding != nil)
	s.table.kindle(e, l.Index, r.from.replica)
	if r.from.many {
		e.flags |= flagMany
	}
	s.table.set(e, l.Index)
	s.place(e, set, l.Size)
	s.table.mark(e, l.Index)
	s.note(l.Object, k, change{record: r, fresh: true, prior: s.mayHaveRecord(k)})
	s.mu.Unlock()
	s.unclaimBlock(k)
	return nil
}

// unneeded gives back room that was taken for a block and not needed. mu is held.
func (s *tier) unneeded(n int64) {
	s.used -= n
	s.room += n
}

// mayHaveRecord reports whether the index may have a record of a block that is
// not here: only if it was dropped and the drop is not written yet.
func (s *tier) mayHaveRecord(k blockKey) bool {
	_, inPending := s.pending.lookup(k)
	_, inFlushing := s.flushing.lookup(k)
	return inPending || inFlushing
}

// admit takes the disk use of a block from the room there is: for a pinned object
// from what is reserved, for any other from what is not. mu is held.
func (s *tier) admit(id covey.ObjectID, use int64) error {
	kept := s.reserved
	if s.pinned(id) {
		kept = 0
	}
	switch {
	case s.fault != nil:
		return fmt.Errorf("admission stopped: %w: %w", s.fault, covey.ErrReadOnly)
	case s.used+kept+use > s.budget:
		return fmt.Errorf("%d bytes: %w", s.budget, errBudget)
	case s.room-kept < use:
		return errReserve
	case len(s.pending.blocks) >= maxPending:
		return fmt.Errorf("%d blocks wait for the disk: %w", maxPending, covey.ErrFull)
	}
	s.charge(id, use)
	s.room -= use
	return nil
}

// charge counts room that blocks of the object take when they are stored as they
// are; a negative use gives it back. mu is held.
func (s *tier) charge(id covey.ObjectID, use int64) {
	s.used += use
	if s.pinned(id) {
		s.reserved -= use
	}
}

// writeFailed takes back what put had reserved, and stops admission when the
// disk is at fault.
func (s *tier) writeFailed(l covey.Locator, k blockKey, use int64, err error) {
	if !isTransient(err) && !isPlanted(err) {
		s.failWith(err)
	}
	// Part of the block may be there. Nobody will read it, but it takes room.
	if err := s.data.punch(k.id, l.Range()); err != nil {
		s.log.Debug("clear a block that was not admitted", "tier", s.opts.Dir, "err", err)
	}
	s.mu.Lock()
	s.charge(k.id, -use)
	s.mu.Unlock()
	s.unclaimBlock(k)
}

// replace brings the place of a block that is here up to date. The block is
// claimed.
func (s *tier) replace(l covey.Locator, k blockKey, p covey.Place) error {
	r, err := s.record(k)
	if err != nil || r.place == p {
		return err
	}
	r.place = p
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil || len(s.pending.blocks) >= maxPending {
		return nil // the old place serves until a restart, or the next listing
	}
	s.note(l.Object, k, change{record: r, prior: true})
	return nil
}

// note adds a change to the pending group. mu is held.
func (s *tier) note(o covey.Object, k blockKey, c change) {
	s.pending.put(o, k, c)
	s.noted()
}

// noted sees to it that the pending group gets committed. mu is held.
func (s *tier) noted() {
	signal(s.wake)
	if len(s.pending.blocks) >= maxPending/2 {
		signal(s.kick)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// errNoRecord says that the table has a block that the index does not know.
var errNoRecord = fmt.Errorf("no record in the index: %w", covey.ErrCorrupt)

// record returns what is known of a block that is here.
func (s *tier) record(k blockKey) (record, error) {
	s.mu.Lock()
	c, known := s.pending.lookup(k)
	if !known {
		c, known = s.flushing.lookup(k)
	}
	s.mu.Unlock()
	switch {
	case !known:
		r, err := s.index.block(k)
		if errors.Is(err, covey.ErrNotFound) {
			err = errNoRecord
		}
		return r, err
	case c.gone:
		return record{}, covey.ErrNotFound
	}
	return c.record, nil
}

// PutEmpty makes an object of no blocks known, so that OpenWhole finds it.
func (s *tier) PutEmpty(o covey.Object) error {
	if err := o.Validate(); err != nil || o.Size != 0 {
		return fmt.Errorf("admit %s of %d bytes as empty: %w", o.Key, o.Size, covey.ErrInvalid)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	id := o.ID()
	s.mu.Lock()
	s.claimWhole(id)
	defer s.unclaimWhole(id)
	err := s.admit(id, 0)
	known := s.table.find(&id) != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	if err == nil {
		err = s.data.create(id)
		if err != nil && !isTransient(err) && !isPlanted(err) {
			s.failWith(err)
		}
	}
	if err != nil {
		return fmt.Errorf("admit %s to %s: %w", o.Key, s.opts.Dir, kind(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.place(s.table.add(id, 0), s.opts.rules.of(o), 0)
	s.pending.touch(id, o).fresh = true
	s.noted()
	return nil
}

// claimBlock waits until nobody else writes to the block or changes the file as
// such. mu is held.
func (s *tier) claimBlock(k blockKey) {
	for {
		_, taken := s.writing[k]
		if !taken && s.claims[k.id] != claimedWhole {
			s.writing[k] = struct{}{}
			s.claims[k.id]++
			return
		}
		s.changed.Wait()
	}
}

func (s *tier) unclaimBlock(k blockKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, k)
	if s.claims[k.id]--; s.claims[k.id] <= 0 {
		delete(s.claims, k.id)
	}
	s.changed.Broadcast()
}

// claimWhole waits until nobody else writes to any block of the object. mu is
// held.
func (s *tier) claimWhole(id covey.ObjectID) {
	for s.claims[id] != 0 {
		s.changed.Wait()
	}
	s.claims[id] = claimedWhole
}

func (s *tier) unclaimWhole(id covey.ObjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claims, id)
	s.changed.Broadcast()
}
