package blockstore

import (
	"maps"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// readers returns the objects of a tier that was closed whose files somebody may still
// read, through a handle or a descriptor: the tier that comes in its place must not
// change those files.
func (s *tier) readers() map[covey.ObjectID]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make(map[covey.ObjectID]struct{}, len(s.opts.handed))
	maps.Copy(ids, s.opts.handed)
	for id := range s.open {
		ids[id] = struct{}{}
	}
	for _, slab := range s.table.slab {
		for i := range slab {
			if slab[i].flags&flagHanded != 0 {
				ids[slab[i].id] = struct{}{}
			}
		}
	}
	return ids
}

// recallHanded marks an object whose file may have readers from before the tier was
// opened. mu is held.
func (s *tier) recallHanded(e *entry) {
	if _, ok := s.opts.handed[e.id]; ok {
		e.flags |= flagHanded
	}
}

// wasWhole reports whether a file of which the index has only a part has no holes, and
// marks the object if so. The process that crashed may have given such a file to the
// kernel before the index heard of the last blocks; where a holder kept the mounts, jobs
// still read it, and the blocks must not become zeros under them. They take room that
// is not counted until they come again, those of one group at most.
func (s *tier) wasWhole(id covey.ObjectID, size int64) bool {
	if !s.at.os {
		return false
	}
	f, err := s.data.descriptor(id)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != size {
		return false
	}
	if hole, err := f.Seek(0, unix.SEEK_HOLE); err != nil || hole < size {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.table.find(&id); e != nil {
		e.flags |= flagHanded
	}
	return true
}
