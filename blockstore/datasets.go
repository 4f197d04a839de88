package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/covey-cache/covey"
)

// houseEvery is how often a store looks for what has had its time, writes down when
// data sets were used, and sorts objects whose data sets became known. A minute is
// fine enough for times of hours, and a walk over 20 million objects takes 0.1 s.
const houseEvery = time.Minute

// halveEvery is the half-life of the counts of uses under lfu.
const halveEvery = time.Hour

// keepHouse does what is due from time to time, until the store closes.
func (s *Store) keepHouse(ctx context.Context) {
	defer s.done.Done()
	halved := time.Now()
	tick := time.NewTicker(houseEvery)
	defer tick.Stop()
	for {
		for t := range s.tiers() {
			t.sortAll(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.unsorted:
			continue
		case <-tick.C:
		}
		halve := time.Since(halved) >= halveEvery
		if halve {
			halved = time.Now()
		}
		for t := range s.tiers() {
			t.expire(time.Now(), halve)
			if err := t.saveDatasets(); err != nil {
				s.log.Debug("write down when data sets were used", "tier", t.opts.Dir, "err", err)
			}
		}
	}
}

// expire evicts what has been kept for its time, and halves the counts of uses.
func (s *tier) expire(now time.Time, halve bool) {
	if s.enter() != nil {
		return
	}
	defer s.leave()
	timed := false
	for _, r := range s.opts.rules.all() {
		timed = timed || r.Policy == PolicyTTL
	}
	if !timed && !halve {
		return
	}
	for i := 0; ; i++ {
		ids, more := s.expired(i, now, halve)
		for _, id := range ids {
			s.mu.Lock()
			e := s.table.find(&id)
			if e == nil || s.claims[id] != 0 || s.pinned(id) {
				s.mu.Unlock()
				continue
			}
			s.evictEntry(e, false)
		}
		if !more {
			return
		}
	}
}

// expired walks one slab of the table.
func (s *tier) expired(slab int, now time.Time, halve bool) (ids []covey.ObjectID, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slab >= len(s.table.slab) {
		return nil, false
	}
	for i := range s.table.slab[slab] {
		e := &s.table.slab[slab][i]
		if e.blocks == 0 && e.id == (covey.ObjectID{}) {
			continue // free
		}
		r := s.opts.rules.at(e.queue.rule())
		if r.Policy == PolicyTTL && e.flags&flagTimed != 0 && now.Sub(time.Unix(int64(e.stamp), 0)) >= r.TTL {
			ids = append(ids, e.id)
		}
		if halve && e.uses > 1 {
			e.uses /= 2
			if r.Policy == PolicyLFU {
				s.table.sort(e, r, 0)
			}
		}
	}
	return ids, true
}

// sortPause is the rest after each batch of names, so that sorting all objects of a
// large cache, after a new data set became known, leaves a core half free.
const sortPause = 5 * time.Millisecond

// sortAll puts all objects into the queues of their data sets, if these changed.
func (s *tier) sortAll(ctx context.Context) {
	version := s.opts.rules.changed.Load()
	if s.sorted == version {
		return
	}
	for next := []byte{keyObject}; next != nil; {
		var batch []covey.Object
		var err error
		if next, err = s.nameBatch(next, []byte{keyObject + 1}, &batch); err != nil {
			s.log.Debug("sort objects by data set", "tier", s.opts.Dir, "err", err)
			return
		}
		for _, o := range batch {
			id, r := o.ID(), s.opts.rules.of(o)
			s.mu.Lock()
			if e := s.table.find(&id); e != nil {
				s.table.sort(e, r, o.Size)
			}
			s.mu.Unlock()
		}
		if next == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(sortPause):
		}
	}
	s.sorted = version
}

// keyDataset begins the key of when a data set was last used.
const keyDataset = 'd'

func datasetKey(r *rule) []byte {
	b := append([]byte{keyDataset}, r.Origin...)
	b = append(b, 0)
	return append(b, r.Prefix...)
}

// saveDatasets writes down when data sets were used that have been since the last
// time. Only the data sets of objects that may be here matter, but which those are
// costs more to find out than to write.
func (s *tier) saveDatasets() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.writeDatasets()
}

func (s *tier) writeDatasets() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	var fresh []*rule
	for _, r := range s.opts.rules.all()[1:] {
		if s.saved[r.number] != r.used.Load() {
			fresh = append(fresh, r)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	err := s.index.write(func(b *pebble.Batch) error {
		var errs []error
		for _, r := range fresh {
			used := r.used.Load()
			s.saved[r.number] = used
			errs = append(errs, b.Set(datasetKey(r), binary.AppendUvarint([]byte{recordVersion}, uint64(used)), nil))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		s.indexFailed(err)
	}
	return err
}

// loadDatasets makes the data sets known that earlier processes used. A record that
// cannot be read is a data set that counts as used now.
func (s *tier) loadDatasets() error {
	_, err := s.index.scan([]byte{keyDataset}, []byte{keyDataset + 1}, maxRules, func(k, v []byte) error {
		at := bytes.IndexByte(k, 0)
		if at < 0 || len(v) < 2 || v[0] != recordVersion {
			return badRecord("data set", v)
		}
		used, n := binary.Uvarint(v[1:])
		if n <= 0 || used > 1<<40 {
			return badRecord("data set", v)
		}
		s.opts.rules.recall(string(k[1:at]), string(k[at+1:]), time.Unix(int64(used), 0))
		return nil
	})
	if err != nil {
		return fmt.Errorf("data sets: %w", err)
	}
	return nil
}
