package blockstore

import (
	"bytes"
	"iter"
	"slices"

	"github.com/covey-cache/covey"
)

// Held is the part of an extent that the store has, as the directory wants to
// hear it.
type Held struct {
	Extent covey.ExtentID
	Have   covey.Bitmap
	// Digests has one entry for each bit of Have, lowest slot first.
	Digests []covey.Digest
}

// add notes a slot. Slots come in rising order.
func (h *Held) add(a advert) {
	h.Have = h.Have.With(int(a.place.Slot))
	h.Digests = append(h.Digests, a.digest)
}

// heldBatch is how many records are read at a time: some hundred KiB, and a lock
// on the index of a few milliseconds.
const heldBatch = 4096

// All yields what the store holds, extent by extent in the order of their IDs,
// for the directory's full refresh. It blocks nobody and needs memory for a few
// thousand blocks, besides those not yet written to the index. Blocks that come
// or go while it runs may be in or not. It ends early, with a warning in the log,
// when the index cannot be read.
func (s *tier) All() iter.Seq[Held] {
	return func(yield func(Held) bool) {
		recent, moved := s.recent(nil)
		var h Held
		for a := range merge(s.adverts([]byte{keyExtent}, []byte{keyExtent + 1}, moved), recent) {
			if a.place.Extent != h.Extent {
				if h.Have != 0 && !yield(h) {
					return
				}
				h = Held{Extent: a.place.Extent}
			}
			if !h.Have.Has(int(a.place.Slot)) {
				h.add(a)
			}
		}
		if h.Have != 0 {
			yield(h)
		}
	}
}

// recent returns the blocks that the index does not have as they are now, in the
// order of their places, and the set of their keys. With only, it returns the
// blocks of that extent alone; the set is of all.
func (s *tier) recent(only *covey.ExtentID) ([]advert, map[blockKey]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var recent []advert
	moved := make(map[blockKey]struct{})
	for _, g := range [...]*group{s.pending, s.flushing} {
		if g == nil {
			continue
		}
		for k, c := range g.blocks {
			if _, newer := moved[k]; newer {
				continue
			}
			moved[k] = struct{}{}
			if only != nil && c.place.Extent != *only {
				continue
			}
			e := s.table.find(&k.id)
			if !c.gone && e != nil && s.table.has(e, int(k.index)) {
				recent = append(recent, advert{key: k, place: c.place, digest: c.digest})
			}
		}
	}
	slices.SortFunc(recent, comparePlaces)
	return recent, moved
}

func comparePlaces(a, b advert) int {
	if c := bytes.Compare(a.place.Extent[:], b.place.Extent[:]); c != 0 {
		return c
	}
	return int(a.place.Slot) - int(b.place.Slot)
}

// adverts yields the index's record of each slot in [lower, upper) whose block
// is here and not in except.
func (s *tier) adverts(lower, upper []byte, except map[blockKey]struct{}) iter.Seq[advert] {
	return func(yield func(advert) bool) {
		batch := make([]advert, 0, heldBatch)
		for next := lower; next != nil; {
			batch = batch[:0]
			var err error
			next, err = s.advertBatch(next, upper, &batch)
			if err != nil {
				s.log.Warn("list what the cache holds", "tier", s.opts.Dir, "err", err)
			}
			s.mu.Lock()
			batch = slices.DeleteFunc(batch, func(a advert) bool {
				_, moved := except[a.key]
				e := s.table.find(&a.key.id)
				return moved || e == nil || int(a.key.index) >= int(e.blocks) || !s.table.has(e, int(a.key.index))
			})
			s.mu.Unlock()
			for _, a := range batch {
				if !yield(a) {
					return
				}
			}
		}
	}
}

func (s *tier) advertBatch(lower, upper []byte, to *[]advert) (next []byte, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.index.scan(lower, upper, heldBatch, func(k, v []byte) error {
		a, err := parseAdvert(k, v)
		if err != nil {
			return nil //nolint:nilerr // a record that cannot be read is a block that nobody hears of
		}
		*to = append(*to, a)
		return nil
	})
}

// merge yields both sequences, each in the order of places, in that order.
func merge(old iter.Seq[advert], recent []advert) iter.Seq[advert] {
	return func(yield func(advert) bool) {
		for a := range old {
			for len(recent) > 0 && comparePlaces(recent[0], a) <= 0 {
				if !yield(recent[0]) {
					return
				}
				recent = recent[1:]
			}
			if !yield(a) {
				return
			}
		}
		for _, a := range recent {
			if !yield(a) {
				return
			}
		}
	}
}

// Objects yields the objects the store has any block of, in no useful order. It
// needs little memory and blocks nobody; objects that came in the last second
// may be missing.
func (s *tier) Objects() iter.Seq[covey.Object] {
	return func(yield func(covey.Object) bool) {
		upper := []byte{keyObject + 1}
		for next := []byte{keyObject}; next != nil; {
			var batch []covey.Object
			var err error
			next, err = s.objectBatch(next, upper, &batch)
			if err != nil {
				s.log.Warn("list what the cache holds", "tier", s.opts.Dir, "err", err)
			}
			for _, o := range batch {
				if !yield(o) {
					return
				}
			}
		}
	}
}

func (s *tier) objectBatch(lower, upper []byte, to *[]covey.Object) (next []byte, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.index.scan(lower, upper, heldBatch, func(_, v []byte) error {
		o, err := parseObject(v)
		if err != nil {
			return nil // a name that cannot be read is not listed
		}
		id := o.ID()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.table.find(&id) != nil {
			*to = append(*to, o)
		}
		return nil
	})
}
