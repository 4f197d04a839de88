package dataset

import (
	"io/fs"
	"math"
	"strings"
	"time"
)

// chunkLen is how many entries share one arena. A thousand is a page of S3, and
// keeps the slack of an entry below a byte.
const chunkLen = 1024

// chunk is a run of a directory's entries in ascending order of the name,
// packed: the strings of all lie one behind the other in the arena, so that an
// entry costs the bytes of its strings and one record. A chunk is immutable.
type chunk struct {
	base  int // index in the directory of the first entry
	arena string
	recs  []record
}

// record is one entry: 32 bytes, and name, version and link, in this order, in
// the arena from off on.
type record struct {
	size       int64
	mtime      int64 // Unix nanoseconds, noTime when unknown
	off        uint32
	versionLen uint16
	linkLen    uint16
	mode       uint16
	nameLen    uint8
	kind       Kind
}

// noTime stands for the zero time, and for those that nanoseconds cannot say.
const noTime = math.MinInt64

// newChunk packs at most chunkLen entries, whose strings are within the limits
// of NAMES.md, so that offsets stay far below 4 GiB.
func newChunk(base int, entries []Entry) *chunk {
	var size int
	for i := range entries {
		size += len(entries[i].Name) + len(entries[i].Version) + len(entries[i].Link)
	}
	var arena strings.Builder
	arena.Grow(size)
	recs := make([]record, len(entries))
	for i := range entries {
		e := &entries[i]
		recs[i] = record{
			size:       e.Size,
			mtime:      packTime(e.ModTime),
			off:        uint32(arena.Len()),
			versionLen: uint16(len(e.Version)),
			linkLen:    uint16(len(e.Link)),
			mode:       uint16(e.Mode.Perm()),
			nameLen:    uint8(len(e.Name)),
			kind:       e.Kind,
		}
		arena.WriteString(e.Name)
		arena.WriteString(e.Version)
		arena.WriteString(e.Link)
	}
	return &chunk{base: base, arena: arena.String(), recs: recs}
}

func packTime(t time.Time) int64 {
	if t.IsZero() || t.Year() < 1679 || t.Year() > 2261 {
		return noTime
	}
	return t.UnixNano()
}

// name returns the name of entry i. It shares the arena.
func (c *chunk) name(i int) string {
	r := &c.recs[i]
	return c.arena[r.off : r.off+uint32(r.nameLen)]
}

// strings returns all strings of entry i in one. It shares the arena.
func (c *chunk) strings(i int) string {
	r := &c.recs[i]
	return c.arena[r.off : r.off+uint32(r.nameLen)+uint32(r.versionLen)+uint32(r.linkLen)]
}

// entry unpacks entry i. Its strings are a copy of their own, since callers keep
// them for as long as an inode lives, and would hold the whole arena otherwise.
func (c *chunk) entry(i int) Entry {
	r := &c.recs[i]
	s := strings.Clone(c.strings(i))
	n, v := int(r.nameLen), int(r.nameLen)+int(r.versionLen)
	e := Entry{
		Name: s[:n], Version: s[n:v], Link: s[v:],
		Kind: r.kind, Size: r.size, Mode: fs.FileMode(r.mode),
	}
	if r.mtime != noTime {
		e.ModTime = time.Unix(0, r.mtime)
	}
	return e
}

// same reports whether entry i is what entry j of the other chunk is.
func (c *chunk) same(i int, o *chunk, j int) bool {
	a, b := c.recs[i], o.recs[j]
	a.off, b.off = 0, 0
	return a == b && c.strings(i) == o.strings(j)
}

// sameObject reports whether two entries have the same bytes behind them. Times
// and permissions do not count: they come in different precision from different
// requests.
func sameObject(a, b Entry) bool {
	return a.Kind == b.Kind && a.Size == b.Size && a.Version == b.Version && a.Link == b.Link
}
