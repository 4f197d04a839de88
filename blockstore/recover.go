package blockstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/covey-cache/covey"
)

// recover opens the index and fills the table from it. An index that is damaged
// is moved aside, and the store starts with an empty one.
func (s *tier) recover() (crashed bool, err error) {
	err = covey.ErrCorrupt
	if !s.at.exists(nameDamaged) {
		crashed, err = s.load()
	}
	if !errors.Is(err, covey.ErrCorrupt) {
		return crashed, err
	}
	s.log.Warn("cache index cannot be read; starting with an empty cache",
		"tier", s.opts.Dir, "kept", s.at.path(nameBad), "err", err)
	if s.index != nil {
		_ = s.index.close() // it is damaged, and goes
	}
	s.table, s.used, s.group = s.newTable(), 0, 0
	s.reserved = 0
	clear(s.pins)
	if err := s.at.quarantine(); err != nil {
		return false, err
	}
	return s.load()
}

func (s *tier) load() (crashed bool, err error) {
	if err := s.at.makeDirs(); err != nil {
		return false, err
	}
	if err := s.at.probe(); err != nil {
		return false, err
	}
	if err := s.at.checkIndex(); err != nil {
		return false, err
	}
	s.index, err = openIndex(s.at.path(nameIndex), s.at.fs, s.at.os, s.opts.memtable, s.log)
	if err != nil {
		return false, err
	}
	m, err := s.index.mark()
	if errors.Is(err, covey.ErrNotFound) {
		// A new index knows none of the files that may be here.
		m.clean, err = true, s.startData()
	}
	if err != nil {
		return false, asCorrupt(err)
	}
	s.group = m.group
	if err := s.loadTable(m); err != nil {
		return false, asCorrupt(err)
	}
	if err := s.loadPins(); err != nil {
		return false, asCorrupt(err)
	}
	if err := s.loadDatasets(); err != nil {
		return false, asCorrupt(err)
	}
	return !m.clean, s.index.setMark(mark{group: m.group})
}

func (s *tier) startData() error {
	used := false
	if _, err := s.index.scan([]byte{0}, []byte{0xff}, 1, func(_, _ []byte) error {
		used = true
		return nil
	}); err != nil {
		return err
	}
	if used {
		return fmt.Errorf("index of something else: %w", covey.ErrCorrupt)
	}
	return errors.Join(s.at.discard(), s.at.makeDirs())
}

// asCorrupt makes any error of reading the index that is not the operating
// system's mean damage.
func asCorrupt(err error) error {
	if err == nil || isOSError(err) || errors.Is(err, covey.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", covey.ErrCorrupt, err)
}

// loaders is how many goroutines read the presence records. Decoding is most of
// the time, and 2 million records should not take seconds.
const loaders = 4

// loadTable reads the presence records. It takes time for every object, not for
// every block.
func (s *tier) loadTable(m mark) error {
	var wg sync.WaitGroup
	errs := make([]error, loaders)
	for i := range loaders {
		lower := []byte{keyPresence, byte(i * 256 / loaders)}
		upper := []byte{keyPresence, byte((i + 1) * 256 / loaders)}
		if i == loaders-1 {
			upper = []byte{keyPresence + 1}
		}
		wg.Go(func() { errs[i] = s.loadRange(lower, upper, m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// loadBatch is how many records are added to the table under one lock.
const loadBatch = 1024

func (s *tier) loadRange(lower, upper []byte, m mark) error {
	type loaded struct {
		id covey.ObjectID
		p  presence
	}
	batch := make([]loaded, 0, loadBatch)
	unsorted := s.opts.rules.at(0) // which data set it is of, its name will say
	add := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, b := range batch {
			o := b.p.object()
			e := s.table.add(b.id, o.Blocks())
			s.table.load(e, &b.p)
			s.table.requeue(e, queueOf(unsorted, s.table.kind(e, unsorted, b.p.size)))
			s.used += s.table.objectUse(e, o)
			s.recallHanded(e)
			if !m.clean && b.p.group == m.group {
				e.flags |= flagSuspect
			}
		}
		batch = batch[:0]
	}
	_, err := s.index.scan(lower, upper, -1, func(k, v []byte) error {
		p, err := parsePresence(v)
		if err != nil {
			return err
		}
		if len(k) != 33 {
			return badRecord("presence", k)
		}
		p.bits = append([]byte(nil), p.bits...)
		if p.replicas != nil {
			p.replicas = append([]byte(nil), p.replicas...)
		}
		batch = append(batch, loaded{covey.ObjectID(k[1:]), p})
		if len(batch) == loadBatch {
			add()
		}
		return nil
	})
	add()
	return err
}
