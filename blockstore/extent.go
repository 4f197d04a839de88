package blockstore

import (
	"slices"

	"github.com/covey-cache/covey"
)

// Extent returns what the store holds of one extent, as All would yield it, and
// false when that is nothing. It costs one short scan of the index.
func (s *tier) Extent(id covey.ExtentID) (Held, bool) {
	recent, moved := s.recent(&id)
	lower := append([]byte{keyExtent}, id[:]...)
	upper := append(slices.Clone(lower), covey.MaxExtentBlocks)
	h := Held{Extent: id}
	for a := range merge(s.adverts(lower, upper, moved), recent) {
		if !h.Have.Has(int(a.place.Slot)) {
			h.add(a)
		}
	}
	return h, h.Have != 0
}
