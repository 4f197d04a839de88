package mount

import "math/bits"

// nodeSlab finds nodes by their ID: the low half is a place in a slice, the high
// half a number that no other node of the last four billion had, so that an ID is
// not used twice while anybody can remember it. It costs 8 bytes a node, a third
// of a map.
//
// The zero value works. It is not safe for concurrent use.
type nodeSlab struct {
	places []*node
	free   []uint32
	number uint32
	used   int
}

// put gives the node an ID and a place.
func (s *nodeSlab) put(n *node) {
	if len(s.places) == 0 {
		s.places = make([]*node, 1, 16) // ID 0 is nobody's
	}
	var at uint32
	if k := len(s.free); k > 0 {
		at, s.free = s.free[k-1], s.free[:k-1]
		s.places[at] = n
	} else {
		at = uint32(len(s.places))
		s.places = append(s.places, n)
	}
	n.id = uint64(s.number)<<32 | uint64(at)
	// The first node, the root, has number 0 and with it the ID 1.
	if s.number++; s.number == 0 {
		s.number = 1
	}
	s.used++
}

func (s *nodeSlab) get(id uint64) *node {
	at := uint32(id)
	if int(at) >= len(s.places) {
		return nil
	}
	if n := s.places[at]; n != nil && n.id == id {
		return n
	}
	return nil
}

func (s *nodeSlab) remove(n *node) {
	at := uint32(n.id)
	s.places[at] = nil
	s.free = append(s.free, at)
	s.used--
}

// nodeSet finds nodes by their directory and name: open addressing with linear
// probing over at most three quarters full, 11 to 21 bytes a node. A removed node
// leaves no mark: those behind it move up.
//
// The zero value works. It is not safe for concurrent use.
type nodeSet struct {
	slots []*node // a power of two
	used  int
}

// find returns the node of a name, whose st_ino is its hash.
func (s *nodeSet) find(dir *node, ino uint64, name string) *node {
	if len(s.slots) == 0 {
		return nil
	}
	mask := uint64(len(s.slots) - 1)
	for i := ino & mask; ; i = (i + 1) & mask {
		n := s.slots[i]
		if n == nil || n.ino == ino && n.parent == dir && n.name == name {
			return n
		}
	}
}

// add stores a node whose name is not in the set.
func (s *nodeSet) add(n *node) {
	if 4*(s.used+1) > 3*len(s.slots) {
		s.resize(max(16, 2*len(s.slots)))
	}
	s.insert(n)
	s.used++
}

func (s *nodeSet) insert(n *node) {
	mask := uint64(len(s.slots) - 1)
	i := n.ino & mask
	for s.slots[i] != nil {
		i = (i + 1) & mask
	}
	s.slots[i] = n
}

func (s *nodeSet) resize(to int) {
	old := s.slots
	s.slots = make([]*node, 1<<bits.Len(uint(to-1)))
	for _, n := range old {
		if n != nil {
			s.insert(n)
		}
	}
}

// remove takes the node out, if it is in.
func (s *nodeSet) remove(n *node) {
	if len(s.slots) == 0 {
		return
	}
	mask := uint64(len(s.slots) - 1)
	i := n.ino & mask
	for s.slots[i] != n {
		if s.slots[i] == nil {
			return
		}
		i = (i + 1) & mask
	}
	// Every node up to the next gap stays reachable from where its hash points.
	for j := (i + 1) & mask; s.slots[j] != nil; j = (j + 1) & mask {
		home := s.slots[j].ino & mask
		if (j-home)&mask >= (j-i)&mask {
			s.slots[i] = s.slots[j]
			i = j
		}
	}
	s.slots[i] = nil
	s.used--
	if len(s.slots) > 1<<16 && 8*s.used < len(s.slots) {
		s.resize(len(s.slots) / 4)
	}
}
