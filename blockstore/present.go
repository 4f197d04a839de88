package blockstore

import (
	"sync"

	"github.com/covey-cache/covey"
)

// Present returns which blocks of the extent are here, without I/O. A block that
// was not read in this life may yet turn out to be damaged, and Get then drops
// it.
func (s *tier) Present(e *covey.Extent) covey.Bitmap { return s.present(e, s.extents.ids(e)) }

// present is Present for an extent whose ObjectIDs are known, as extentCache.ids
// returns them.
func (s *tier) present(e *covey.Extent, ids []covey.ObjectID) covey.Bitmap {
	if len(ids) == 0 {
		return 0
	}
	var have covey.Bitmap
	s.mu.Lock()
	defer s.mu.Unlock()
	var last *entry
	for i := range e.Blocks {
		if i >= covey.MaxExtentBlocks {
			break
		}
		id := &ids[min(i, len(ids)-1)]
		if last == nil || last.id != *id {
			last = s.table.find(id)
		}
		index := e.Blocks[i].Index
		if last != nil && index >= 0 && index < int(last.blocks) && s.table.has(last, index) {
			have = have.With(i)
		}
	}
	return have
}

// extentCache remembers the ObjectIDs of extents of small objects. Computing 64
// of them takes 18 us; looking them up takes 2.
type extentCache struct {
	mu sync.Mutex
	m  map[covey.ExtentID][]covey.ObjectID
}

// maxExtentCache bounds the cache to 1 MiB.
const maxExtentCache = 512

// ids returns the object of each block, or a single one when all blocks are of
// that.
func (c *extentCache) ids(e *covey.Extent) []covey.ObjectID {
	if len(e.Blocks) == 0 {
		return nil
	}
	one := true
	for i := range e.Blocks[1:] {
		one = one && e.Blocks[i+1].Object == e.Blocks[0].Object
	}
	if one {
		return []covey.ObjectID{e.Blocks[0].Object.ID()}
	}
	c.mu.Lock()
	ids := c.m[e.ID]
	c.mu.Unlock()
	if len(ids) == len(e.Blocks) {
		return ids
	}
	ids = make([]covey.ObjectID, len(e.Blocks))
	for i, l := range e.Blocks {
		ids[i] = l.Object.ID()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxExtentCache {
		c.m = make(map[covey.ExtentID][]covey.ObjectID)
	}
	c.m[e.ID] = ids
	return ids
}
