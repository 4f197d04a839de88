package mount

import (
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/covey-cache/covey/dataset"
)

// node is what the kernel knows by one node ID: a directory by its path, or a
// file or symlink by path and version. A new version of an object is a new node
// with the same st_ino, so that handles and mapped pages of the old one keep
// the old bytes.
type node struct {
	parent *node // nil for the root
	open   *inode

	name    string
	version string // of a symlink: its target
	size    int64
	mtime   int64 // ns since 1970
	id, ino uint64
	lookups uint64 // references the kernel holds
	mode    uint16 // permission bits
	kind    dataset.Kind
	ahead   aheadState // guarded by pusher.mu
}

// path returns the node's path from the data set's root, "" for the root.
func (n *node) path() string {
	if n.parent == nil {
		return ""
	}
	if n.parent.parent == nil {
		return n.name
	}
	var names []string
	for ; n.parent != nil; n = n.parent {
		names = append(names, n.name)
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}

// child returns the path of a name in the directory.
func (n *node) child(name string) string {
	if n.parent == nil {
		return name
	}
	return n.path() + "/" + name
}

// is reports whether the entry is what the node stands for.
func (n *node) is(e dataset.Entry) bool {
	if n.kind != e.Kind {
		return false
	}
	switch e.Kind {
	case dataset.Dir:
		return true
	case dataset.Symlink:
		return n.version == e.Link
	default:
		return n.version == e.Version && n.size == e.Size
	}
}

// nodes is the table of what the kernel remembers, and as large as that: an
// entry comes with a lookup and goes with the last forget. It costs 96 bytes, its
// strings, and about 25 in the two tables (BenchmarkTable).
//
// mu is a leaf lock: code holding it calls nothing outside this file. It guards
// the tables and every field of a node that changes: open, mtime, mode,
// lookups.
//
// INVARIANT: a node is in byID while lookups > 0; the root always.
// INVARIANT: byName has, of each path, the node of the version seen last.
type nodes struct {
	mu     sync.RWMutex
	byID   nodeSlab
	byName nodeSet
	root   *node
	modes  modes
	ledger *ledger
}

// modes are the permissions of what its origin has none for.
type modes struct{ file, dir uint16 }

// readModes are those of a mount that only reads.
var readModes = modes{file: 0o444, dir: 0o555}

func newNodes(now time.Time) *nodes {
	t := &nodes{modes: readModes}
	t.root = &node{kind: dataset.Dir, ino: fuse.FUSE_ROOT_ID, mtime: now.UnixNano(), mode: 0o555}
	t.byID.put(t.root)
	return t
}

// get returns the node of an ID, nil when the kernel should not know it.
func (t *nodes) get(id uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID.get(id)
}

// enter returns the node of an entry of the directory, with one more reference
// and its attributes in attr.
func (t *nodes) enter(dir *node, e dataset.Entry, attr *fuse.Attr) *node {
	ino := inoOf(dir.ino, e.Name)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byName.find(dir, ino, e.Name)
	if n == nil || !n.is(e) {
		if n != nil {
			t.byName.remove(n)
		}
		n = t.add(dir, ino, e)
	}
	n.mode, n.mtime = t.permissions(e), e.ModTime.UnixNano()
	if e.ModTime.IsZero() {
		n.mtime = 0
	}
	n.lookups++
	t.ledger.lookup(n.id, 1)
	n.attr(attr)
	return n
}

func (t *nodes) add(dir *node, ino uint64, e dataset.Entry) *node {
	n := &node{parent: dir, ino: ino, kind: e.Kind}
	version := ""
	switch e.Kind {
	case dataset.File:
		version, n.size = e.Version, e.Size
	case dataset.Symlink:
		version, n.size = e.Link, int64(len(e.Link))
	}
	// A copy, in one piece: the entry's strings may lie in a listing's memory,
	// and nodes outlive many listings.
	both := e.Name + version
	n.name, n.version = both[:len(e.Name)], both[len(e.Name):]
	t.byName.add(n)
	t.byID.put(n)
	t.ledger.node(n)
	return n
}

// forget drops references and returns the node when it is gone.
func (t *nodes) forget(id, lookups uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID.get(id)
	if n == nil || n == t.root {
		return nil
	}
	t.ledger.forget(id, lookups)
	if n.lookups > lookups {
		n.lookups -= lookups
		return nil
	}
	n.lookups = 0
	t.byID.remove(n)
	t.byName.remove(n)
	return n
}

// find returns the node of the version of a path that was seen last, nil when
// the kernel does not know it.
func (t *nodes) find(dir *node, name string) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byName.find(dir, inoOf(dir.ino, name), name)
}

// walk returns the node of a path, nil when the kernel does not know it.
func (t *nodes) walk(path string) *node {
	n := t.root
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && n != nil {
			n = t.find(n, name)
		}
	}
	return n
}

// inode returns the node's open state, made when first asked for.
func (t *nodes) inode(n *node) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.open == nil {
		n.open = &inode{}
	}
	return n.open
}

// fill writes the node's attributes.
func (t *nodes) fill(n *node, a *fuse.Attr) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n.attr(a)
}

// len returns the number of nodes the kernel holds, with the root.
func (t *nodes) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID.used
}

// attr writes all but the owner, which is the mount's; the caller holds mu.
func (n *node) attr(a *fuse.Attr) {
	a.Ino = n.ino
	a.Size = uint64(n.size)
	a.Blocks = uint64(n.size+511) / 512
	sec, nsec := n.mtime/1e9, n.mtime%1e9
	if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	}
	a.Mtime, a.Mtimensec = uint64(sec), uint32(nsec)
	a.Atime, a.Atimensec = a.Mtime, a.Mtimensec
	a.Ctime, a.Ctimensec = a.Mtime, a.Mtimensec
	a.Mode = typeOf(n.kind) | uint32(n.mode)
	// Directories do not count their subdirectories, which 1 says.
	a.Nlink = 1
}

func typeOf(k dataset.Kind) uint32 {
	switch k {
	case dataset.Dir:
		return fuse.S_IFDIR
	case dataset.Symlink:
		return fuse.S_IFLNK
	default:
		return fuse.S_IFREG
	}
}

// permissions are the origin's, without set-ID and sticky bits, or the mount's
// where it has none.
func (t *nodes) permissions(e dataset.Entry) uint16 {
	switch {
	case e.Kind == dataset.Symlink:
		return 0o777
	case e.Mode.Perm() != 0:
		return uint16(e.Mode.Perm())
	case e.Kind == dataset.Dir:
		return t.modes.dir
	default:
		return t.modes.file
	}
}

// inoOf returns the st_ino of a name in the directory of the given st_ino: 64-bit
// FNV-1a of both, finished as in MurmurHash3, so that it is the same on every
// host and after every restart. Values with a meaning to the kernel or to
// go-fuse are left out.
func inoOf(dir uint64, name string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := 0; i < 64; i += 8 {
		h = (h ^ dir>>i&0xff) * prime
	}
	for i := 0; i < len(name); i++ {
		h = (h ^ uint64(name[i])) * prime
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	if h <= fuse.FUSE_ROOT_ID || h == fuse.FUSE_UNKNOWN_INO || h == ^uint64(0) {
		h ^= 1 << 40
	}
	return h
}
