package blockstore

import (
	"bytes"
	"context"
	"iter"

	"github.com/covey-cache/covey"
)

// Stat returns what is here of an object, without I/O. Of one that is neither here
// nor pinned, that is nothing.
func (s *Store) Stat(o covey.Object) Stat {
	st := Stat{Object: o, Missing: DiskUse(o)}
	if o.Validate() != nil {
		return st
	}
	id := o.ID()
	var here []*tier
	for t := range s.tiers() {
		part := Stat{Object: o}
		if !t.stat(&part) {
			continue
		}
		if part.Blocks > 0 {
			here = append(here, t)
			st.Missing = part.Missing
		}
		st.Blocks += part.Blocks
		st.Replicas += part.Replicas
		st.Used += part.Used
		st.Plain += part.Plain
		st.Whole = st.Whole || part.Whole
		st.Pinned = st.Pinned || part.Pinned
	}
	if len(here) > 1 {
		st.Blocks, st.Missing = 0, DiskUse(o)
		for i := range o.Blocks() {
			if anyHolds(here, blockKey{id, uint32(i)}) {
				st.Blocks++
				st.Missing -= blockUse(o, i)
			}
		}
		st.Whole = st.Blocks == o.Blocks()
	}
	return st
}

func anyHolds(tiers []*tier, k blockKey) bool {
	for _, t := range tiers {
		if t.holds(k) {
			return true
		}
	}
	return false
}

// Du adds up the objects, here or pinned, for which match says yes; a nil match
// means all. It reads the name of each object from the index, and blocks nobody;
// objects that come or go while it runs may be counted or not. match hears of each
// object once.
func (s *Store) Du(match func(covey.Object) bool) (Du, error) {
	var du Du
	var before []*tier
	for t := range s.tiers() {
		part, err := t.Du(func(o covey.Object) bool {
			id := o.ID()
			for _, b := range before {
				if b.knows(id) {
					return false // it was asked about there
				}
			}
			if match != nil && !match(o) {
				return false
			}
			if len(s.shelves) > 1 {
				du.add(s.Stat(o))
				return false
			}
			return true
		})
		if err != nil {
			return du, err
		}
		du.sum(part)
		before = append(before, t)
	}
	return du, nil
}

// TierPart is what one tier has of some objects. A block that is in two tiers counts
// in both.
type TierPart struct {
	Dir string
	Du
}

// DuTiers is Du for each tier by itself, the fastest first.
func (s *Store) DuTiers(match func(covey.Object) bool) ([]TierPart, error) {
	var parts []TierPart
	for t := range s.tiers() {
		du, err := t.Du(match)
		if err != nil {
			return parts, err
		}
		parts = append(parts, TierPart{Dir: t.opts.Dir, Du: du})
	}
	return parts, nil
}

// StatTiers is Stat for each tier that has anything of the object, the fastest first.
func (s *Store) StatTiers(o covey.Object) []TierPart {
	var parts []TierPart
	for t := range s.tiers() {
		st := Stat{Object: o}
		if o.Validate() == nil && t.stat(&st) {
			p := TierPart{Dir: t.opts.Dir}
			p.add(st)
			parts = append(parts, p)
		}
	}
	return parts
}

// Where returns the fastest tier that has a block, and whether the block came from a
// neighbour.
func (s *Store) Where(l covey.Locator) (dir string, replica, ok bool) {
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	for t := range s.tiers() {
		if t.holds(k) {
			return t.opts.Dir, t.provenance(k).replica, true
		}
	}
	return "", false, false
}

// knows reports whether the tier has anything of an object, or a pin of it.
func (s *tier) knows(id covey.ObjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pinned(id) || s.table.find(&id) != nil
}

// Verify reads every block of the objects for which match says yes (all of them
// when it is nil) from the disk, past the page cache where that is possible, and
// compares its BLAKE3 digest, whether or not it was checked before. What does not
// match, or cannot be read, is dropped and counted as Get would; a pin of the
// object stays. It reads at most [Options.VerifyRate] bytes a second and keeps
// nobody waiting. Several may run at once, each at that rate.
//
// progress, if not nil, is called after each block, from the goroutine of Verify.
// Blocks that come or go while it runs may be checked or not.
//
// An error says that not everything was checked: ctx is done, the store was
// closed, an index cannot be read, or the process is out of descriptors. Bad
// blocks are no error.
func (s *Store) Verify(ctx context.Context, match func(covey.Object) bool, progress func(Verified)) (Verified, error) {
	var done Verified
	for t := range s.tiers() {
		before := done
		v, err := t.Verify(ctx, match, func(v Verified) {
			if progress != nil {
				progress(before.plus(v))
			}
		})
		if done = before.plus(v); err != nil {
			return done, err
		}
	}
	return done, nil
}

func (v Verified) plus(w Verified) Verified {
	return Verified{
		Objects: v.Objects + w.Objects, Blocks: v.Blocks + w.Blocks, Of: v.Of + w.Of,
		Bytes: v.Bytes + w.Bytes, Bad: v.Bad + w.Bad, Unreadable: v.Unreadable + w.Unreadable,
	}
}

// All yields what the store holds, extent by extent in the order of their IDs,
// for the directory's full refresh. It blocks nobody and needs memory for a few
// thousand blocks, besides those not yet written to an index. Blocks that come
// or go while it runs may be in or not. It ends early, with a warning in the log,
// when an index cannot be read.
func (s *Store) All() iter.Seq[Held] {
	return func(yield func(Held) bool) {
		var parts []*cursor
		for t := range s.tiers() {
			c := newCursor(t.All())
			defer c.stop()
			parts = append(parts, c)
		}
		for {
			var h Held
			found := false
			for _, c := range parts {
				switch {
				case !c.ok:
				case !found || bytes.Compare(c.held.Extent[:], h.Extent[:]) < 0:
					h, found = c.held, true
				case c.held.Extent == h.Extent:
					h = h.join(c.held)
				}
			}
			if !found || !yield(h) {
				return
			}
			for _, c := range parts {
				if c.ok && c.held.Extent == h.Extent {
					c.next()
				}
			}
		}
	}
}

// cursor is one tier's place in a walk over all.
type cursor struct {
	held Held
	ok   bool
	pull func() (Held, bool)
	stop func()
}

func newCursor(seq iter.Seq[Held]) *cursor {
	c := &cursor{}
	c.pull, c.stop = iter.Pull(seq)
	c.next()
	return c
}

func (c *cursor) next() { c.held, c.ok = c.pull() }

// join adds what another tier has of the same extent.
func (h Held) join(other Held) Held {
	digests := make(map[int]covey.Digest)
	for _, part := range [...]Held{other, h} {
		i := 0
		for slot := range part.Have.Slots() {
			digests[slot] = part.Digests[i]
			i++
		}
	}
	both := Held{Extent: h.Extent, Have: h.Have | other.Have}
	for slot := range both.Have.Slots() {
		both.Digests = append(both.Digests, digests[slot])
	}
	return both
}

// Extent returns what the store holds of one extent, as All would yield it, and
// false when that is nothing. It costs one short scan of each index.
func (s *Store) Extent(id covey.ExtentID) (h Held, ok bool) {
	h.Extent = id
	for t := range s.tiers() {
		switch part, some := t.Extent(id); {
		case some && ok:
			h = h.join(part)
		case some:
			h, ok = part, true
		}
	}
	return h, ok
}

// Objects yields the objects the store has any block of, in no useful order. It
// needs little memory and blocks nobody; objects that came in the last second
// may be missing.
func (s *Store) Objects() iter.Seq[covey.Object] {
	return func(yield func(covey.Object) bool) {
		var before []*tier
		for t := range s.tiers() {
		objects:
			for o := range t.Objects() {
				id := o.ID()
				for _, b := range before {
					if b.blocksOf(id) >= 0 {
						continue objects
					}
				}
				if !yield(o) {
					return
				}
			}
			before = append(before, t)
		}
	}
}
