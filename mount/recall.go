package mount

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/covey-cache/covey/dataset"
)

// image is what a ledger amounts to.
type image struct {
	nodes  map[uint64]*imageNode
	open   map[uint64]imageOpen
	dirs   map[uint64]uint64 // handle to node
	backed map[int32]struct{}
	small  bool
	// The highest numbers ever given out, which are not used again.
	number, fh, dir uint64
}

type imageNode struct {
	id, parent    uint64
	kind          dataset.Kind
	mode          uint16
	size, mtime   int64
	name, version string
	lookups       uint64
}

type imageOpen struct {
	node    uint64
	passed  bool
	writes  bool
	backing int32
	size    int64
	opener  uint32
}

// fields reads a record's numbers and texts; bad says that one was not there.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) num() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad = true
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) text() string {
	n := f.num()
	if n > uint64(len(f.b)) {
		f.bad = true
		return ""
	}
	s := string(f.b[:n])
	f.b = f.b[n:]
	return s
}

// replay reads a log, and tells where it ends.
func replay(log []byte) (im *image, end int, err error) {
	im = &image{
		nodes: map[uint64]*imageNode{}, open: map[uint64]imageOpen{},
		dirs: map[uint64]uint64{}, backed: map[int32]struct{}{},
	}
	for at := 0; at+4 <= len(log); {
		h := header(log, at)
		if h == 0 {
			end = at
			break
		}
		n := int(h >> 8)
		if at+4+n > len(log) {
			return nil, 0, fmt.Errorf("record of %d bytes at %d: %w", n, at, errLedger)
		}
		f := &fields{b: log[at+4 : at+4+n]}
		im.apply(byte(h), f)
		if f.bad {
			return nil, 0, fmt.Errorf("record %d at %d: %w", byte(h), at, errLedger)
		}
		at += 4 + (n+recordAlign-1)/recordAlign*recordAlign
		end = at
	}
	im.prune()
	return im, end, nil
}

func (im *image) apply(op byte, f *fields) {
	switch op {
	case recNode:
		n := &imageNode{
			id: f.num(), parent: f.num(), kind: dataset.Kind(f.num()), mode: uint16(f.num()),
			size: int64(f.num()), mtime: int64(f.num()), name: f.text(), version: f.text(),
		}
		im.nodes[n.id] = n
		im.number = max(im.number, n.id>>32)
	case recLookup:
		id, count := f.num(), f.num()
		if n := im.nodes[id]; n != nil {
			n.lookups += count
		}
	case recForget:
		id, lookups := f.num(), f.num()
		if n := im.nodes[id]; n != nil {
			n.lookups -= min(n.lookups, lookups)
		}
	case recSize:
		id, size, mtime := f.num(), f.num(), f.num()
		if n := im.nodes[id]; n != nil {
			n.size, n.mtime = int64(size), int64(mtime)
		}
	case recOpen:
		fh, node, flags := f.num(), f.num(), f.num()
		im.open[fh] = imageOpen{
			node: node, passed: flags&1 != 0, writes: flags&2 != 0,
			backing: int32(f.num()), size: int64(f.num()), opener: uint32(f.num()),
		}
		im.fh = max(im.fh, fh)
	case recRelease:
		delete(im.open, f.num())
	case recOpenDir:
		fh := f.num()
		im.dirs[fh] = f.num()
		im.dir = max(im.dir, fh)
	case recReleaseDir:
		delete(im.dirs, f.num())
	default:
		im.applyRest(op, f)
	}
}

func (im *image) applyRest(op byte, f *fields) {
	switch op {
	case recBacked:
		im.backed[int32(f.num())] = struct{}{}
	case recUnbacked:
		delete(im.backed, int32(f.num()))
	case recMove:
		id, parent, name := f.num(), f.num(), f.text()
		if n := im.nodes[id]; n != nil {
			n.parent, n.name = parent, name
		}
	case recSmall:
		im.small = true
	case recLast:
		im.number, im.fh, im.dir = max(im.number, f.num()), max(im.fh, f.num()), max(im.dir, f.num())
	default:
		f.bad = true
	}
}

// prune drops nodes that the kernel has forgotten and that are above none that it
// knows.
func (im *image) prune() {
	needed := map[uint64]bool{}
	for id, n := range im.nodes {
		if n.lookups > 0 {
			im.keepUp(id, needed)
		}
	}
	maps.DeleteFunc(im.nodes, func(id uint64, _ *imageNode) bool { return !needed[id] })
}

// keepUp marks a node and all above it.
func (im *image) keepUp(id uint64, needed map[uint64]bool) {
	for n := im.nodes[id]; n != nil && !needed[id]; n = im.nodes[id] {
		needed[id] = true
		id = n.parent
	}
}

// write appends the image to an empty ledger.
func (im *image) write(m *ledger) {
	m.begin().num(im.number).num(im.fh).num(im.dir).end(recLast)
	for _, id := range slices.Sorted(maps.Keys(im.nodes)) {
		n := im.nodes[id]
		m.begin().num(n.id).num(n.parent).num(uint64(n.kind)).num(uint64(n.mode)).
			num(uint64(n.size)).num(uint64(n.mtime)).text(n.name).text(n.version).end(recNode)
		m.lookup(id, n.lookups)
	}
	for fh, o := range im.open {
		var flags uint64
		if o.passed {
			flags |= 1
		}
		if o.writes {
			flags |= 2
		}
		m.begin().num(fh).num(o.node).num(flags).num(uint64(o.backing)).num(uint64(o.size)).num(uint64(o.opener)).end(recOpen)
	}
	for fh, id := range im.dirs {
		m.openDir(fh, id)
	}
	for id := range im.backed {
		m.backed(id)
	}
	if im.small {
		m.small()
	}
}
