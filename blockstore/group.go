package blockstore

import (
	"slices"

	"github.com/covey-cache/covey"
)

// maxPending bounds the blocks that wait to be made durable, at about 300 bytes
// each. It is more than 10 s of the fastest admission; a disk that stalls longer
// fills it, and admission stops until the disk answers.
const maxPending = 64 << 10

// group is what happened since the last group commit: the records that the index
// does not have yet. It is read like a memtable in front of the index. The
// store's mu guards it until it is sealed; from then on it does not change.
type group struct {
	objects map[covey.ObjectID]*objectChange
	blocks  map[blockKey]change
}

// objectChange is one object's part of a group.
type objectChange struct {
	object  covey.Object
	indexes []uint32 // of its blocks in group.blocks
	// wiped says that the object was dropped: what the index has of it goes
	// before anything of this group is written.
	wiped bool
	// fresh says that the object's file was written to and must be synced.
	fresh bool
	// presence is the object's record as of sealing, nil when it is gone.
	presence []byte
}

// change is what becomes of one block's record.
type change struct {
	record
	gone bool
	// prior says that the index may have an older record of the block, whose
	// place has to be taken back when it differs.
	prior bool
	// fresh says that the bytes were written since the last group, and go when
	// they cannot be synced.
	fresh bool
}

func newGroup() *group {
	return &group{objects: make(map[covey.ObjectID]*objectChange), blocks: make(map[blockKey]change)}
}

func (g *group) empty() bool { return len(g.objects) == 0 }

// touch returns the object's part of the group, made when missing.
func (g *group) touch(id covey.ObjectID, o covey.Object) *objectChange {
	oc := g.objects[id]
	if oc == nil {
		oc = &objectChange{object: o}
		g.objects[id] = oc
	}
	return oc
}

// put notes a block's change. What a change of the same block in this group said
// of the index and of its bytes still holds.
func (g *group) put(o covey.Object, k blockKey, c change) {
	oc := g.touch(k.id, o)
	if old, ok := g.blocks[k]; ok {
		c.prior = c.prior || old.prior
		c.fresh = c.fresh || old.fresh && !c.gone
	} else {
		oc.indexes = append(oc.indexes, k.index)
	}
	oc.fresh = oc.fresh || c.fresh
	g.blocks[k] = c
}

// wipe forgets all blocks of an object, here and in the index.
func (g *group) wipe(id covey.ObjectID, o covey.Object) {
	oc := g.touch(id, o)
	for _, i := range oc.indexes {
		delete(g.blocks, blockKey{id, i})
	}
	oc.indexes, oc.wiped, oc.fresh = nil, true, false
}

// lookup returns what the group knows of a block. known is false when the index
// has to be asked.
func (g *group) lookup(k blockKey) (c change, known bool) {
	if g == nil {
		return change{}, false
	}
	if c, ok := g.blocks[k]; ok {
		return c, true
	}
	if oc := g.objects[k.id]; oc != nil && oc.wiped {
		return change{gone: true}, true
	}
	return change{}, false
}

// fresh returns the objects whose files have to be synced.
func (g *group) fresh() []covey.ObjectID {
	var ids []covey.ObjectID
	for id, oc := range g.objects {
		if oc.fresh {
			ids = append(ids, id)
		}
	}
	return ids
}

// seal takes down which blocks each object has now: those of the groups before
// and of this one. Blocks admitted from here on are the next group's.
func (g *group) seal(t *table, number uint64) {
	for id, oc := range g.objects {
		e := t.find(&id)
		if e == nil {
			oc.presence = nil
			continue
		}
		p := presence{
			group: number, size: oc.object.Size, blockSize: oc.object.BlockSize,
			whole: e.count == e.blocks,
			coded: e.flags&flagCoded != 0, use: e.use,
		}
		if !p.whole {
			p.bits = make([]byte, (e.blocks+7)/8)
			for i := range int(e.blocks) {
				if t.has(e, i) {
					p.bits[i/8] |= 1 << (uint(i) % 8)
				}
			}
		}
		p.replica = e.flags&flagReplica != 0
		if e.flags&flagMixed != 0 {
			p.replicas = make([]byte, (e.blocks+7)/8)
			for i := range int(e.blocks) {
				if t.isReplica(e, i) {
					p.replicas[i/8] |= 1 << (uint(i) % 8)
				}
			}
		}
		if e.flags&flagTimed != 0 {
			p.added = e.stamp
		}
		oc.presence = p.encode()
		slices.Sort(oc.indexes)
	}
}
