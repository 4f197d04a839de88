package blockstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/covey-cache/covey"
)

// commitGroups commits what was admitted, at most SyncEvery after its first
// block. It sleeps while there is nothing.
func (s *tier) commitGroups() {
	defer s.done.Done()
	for {
		select {
		case <-s.stop:
			return
		case <-s.index.wake:
			s.indexFailed(s.index.err())
			continue
		case <-s.wake:
		}
		timer := time.NewTimer(s.opts.SyncEvery)
		select {
		case <-s.stop:
			timer.Stop()
			return
		case <-s.kick:
			timer.Stop()
		case <-timer.C:
		}
		s.flushMu.Lock()
		_ = s.flush() // it has stopped admission and said so
		s.flushMu.Unlock()
	}
}

// Sync makes everything admitted so far survive a power loss. Once a disk fault
// stopped admission it fails for ever.
func (s *tier) Sync() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	if err := s.flush(); err != nil {
		return fmt.Errorf("sync block store %s: %w", s.opts.Dir, kind(err))
	}
	return nil
}

// flush commits the pending group: first the files are synced, then the index
// names what is in them. flushMu is held.
//
// When either fails, nothing is written to the index any more in this life: what
// it says stays true, since data is never changed under it.
func (s *tier) flush() error {
	if err := s.index.err(); err != nil {
		s.indexFailed(err)
		return err
	}
	s.mu.Lock()
	if s.flushing != nil {
		err := s.fault
		s.mu.Unlock()
		return err
	}
	g := s.pending
	if g.empty() {
		s.mu.Unlock()
		return nil
	}
	s.group++
	number := s.group
	g.seal(s.table, number)
	s.pending, s.flushing = newGroup(), g
	s.mu.Unlock()

	began := time.Now()
	if err := s.data.sync(g.fresh()); err != nil {
		err = fmt.Errorf("sync blocks: %w", err)
		s.failWith(err)
		s.disown(g)
		return err
	}
	if err := s.index.write(func(b *pebble.Batch) error { return s.fill(b, g, number) }); err != nil {
		s.indexFailed(err)
		return err
	}
	s.metrics.commit.Observe(time.Since(began).Seconds())
	s.remeasure()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushing = nil
	return nil
}

// indexFailed ends admission after a failed write of the index, and reopens the
// index for reading. Doing so again does no harm.
func (s *tier) indexFailed(err error) {
	s.haltOnce.Do(func() {
		s.failWith(fmt.Errorf("cache index: %w", err))
		s.index.halt()
		if s.index.corrupt.Load() {
			if err := s.at.noteDamage(); err != nil {
				s.log.Warn("note that the cache index is damaged", "tier", s.opts.Dir, "err", err)
			}
		}
	})
}

// disown forgets the blocks of a group whose files could not be synced. The
// kernel may have thrown their pages away, and says so only once.
func (s *tier) disown(g *group) {
	var empty []covey.ObjectID
	s.mu.Lock()
	for k, c := range g.blocks {
		e := s.table.find(&k.id)
		if !c.fresh || e == nil || !s.table.has(e, int(k.index)) {
			continue
		}
		l := g.objects[k.id].object.Block(int(k.index))
		use := c.use(l.Range().Len)
		s.table.unset(e, int(k.index))
		s.discharge(l, k.id, use)
		s.table.account(e, l.Object, -use, false)
		s.drops++
		if e.count == 0 && s.claims[k.id] == 0 {
			s.table.remove(e)
			s.claims[k.id] = claimedWhole
			delete(s.open, k.id)
			empty = append(empty, k.id)
		}
	}
	s.mu.Unlock()
	for _, id := range empty {
		if err := s.data.remove(id); err != nil {
			s.log.Debug("remove a file that could not be synced", "tier", s.opts.Dir, "err", err)
		}
		s.unclaimWhole(id)
	}
}

// fill writes a group into a batch.
func (s *tier) fill(b *pebble.Batch, g *group, number uint64) error {
	for id, oc := range g.objects {
		if oc.wiped {
			if err := s.wipe(b, id); err != nil {
				return err
			}
		}
		for _, i := range oc.indexes {
			k := blockKey{id, i}
			if err := s.fillBlock(b, k, g.blocks[k]); err != nil {
				return err
			}
		}
		if err := fillObject(b, id, oc); err != nil {
			return err
		}
	}
	return b.Set([]byte{keyMark}, mark{group: number}.encode(), nil)
}

func (s *tier) fillBlock(b *pebble.Batch, k blockKey, c change) error {
	if c.prior {
		old, err := s.index.block(k)
		switch {
		case err == nil && (c.gone || old.place != c.place):
			if err := b.Delete(extentKey(old.place), nil); err != nil {
				return err
			}
		case err != nil && !errors.Is(err, covey.ErrNotFound):
			return err
		}
	}
	key := k.append(nil)
	if c.gone {
		return b.Delete(key, nil)
	}
	a := advert{key: k, place: c.place, digest: c.digest}
	return errors.Join(
		b.Set(key, c.encode(), nil),
		b.Set(extentKey(c.place), a.appendValue(nil), nil),
	)
}

func fillObject(b *pebble.Batch, id covey.ObjectID, oc *objectChange) error {
	if oc.presence == nil {
		return errors.Join(b.Delete(objectKey(keyPresence, id), nil), b.Delete(objectKey(keyObject, id), nil))
	}
	return errors.Join(
		b.Set(objectKey(keyPresence, id), oc.presence, nil),
		b.Set(objectKey(keyObject, id), encodeObject(oc.object), nil),
	)
}

// wipe deletes what the index has of an object's blocks.
func (s *tier) wipe(b *pebble.Batch, id covey.ObjectID) error {
	lower := objectKey(keyBlock, id)
	upper := append(objectKey(keyBlock, id), 0xff, 0xff, 0xff, 0xff, 0xff)
	_, err := s.index.scan(lower, upper, -1, func(_, v []byte) error {
		r, err := parseRecord(v)
		if err != nil {
			return err
		}
		return b.Delete(extentKey(r.place), nil)
	})
	return errors.Join(err, b.DeleteRange(lower, upper, nil))
}
