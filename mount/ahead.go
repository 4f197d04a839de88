package mount

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/covey-cache/covey"
)

// follower recognises files of one directory that are opened in the order of
// the listing, by their slots in the extents that small files share.
type follower struct {
	mu     sync.Mutex // leaf; guards all
	extent covey.ExtentID
	slot   int
	run    bool           // the rest of extent was asked for
	before covey.ExtentID // the one that a run has left; stragglers still open files there

	// What the readers of large files will open next, if they go through the
	// directory: at most one file each for maxExpected of them.
	expected  [maxExpected]string
	next      int // place in expected
	met, fail int
}

// maxExpected is how many files of a directory may be read to their ends side by
// side, each by a worker of its own, for their successors to be recognised.
const maxExpected = 16

// expect says which file comes behind one that is being read to its end, and
// reports whether those that did so far were opened.
func (f *follower) expect(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.expected[:], path) {
		f.expected[f.next] = path
		f.next = (f.next + 1) % maxExpected
	}
	return f.met > f.fail
}

// opened takes the open of a large file into account.
func (f *follower) opened(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.expected[:], path); i >= 0 {
		f.expected[i] = ""
		f.met = min(f.met+1, maxExpected)
		return
	}
	f.met, f.fail = f.met/2, min(f.fail+f.met/2, 1)
}

// maxStride is how many slots one open may lie from the last one and still
// follow it: a loader's eight threads open files side by side.
const maxStride = 8

// note takes an open into account and returns which slots of the extent to ask
// for now: those behind it, once two opens in a row were neighbours.
func (f *follower) note(e *covey.Extent, slot int) covey.Bitmap {
	f.mu.Lock()
	defer f.mu.Unlock()
	same := e.ID == f.extent
	step := slot - f.slot
	follows := same && step > 0 && step <= maxStride ||
		!same && f.run && slot < maxStride
	if f.run && e.ID == f.before {
		return 0
	}
	switch {
	case same && f.run:
		f.slot = max(f.slot, slot)
		return 0
	case !follows:
		f.extent, f.slot, f.run = e.ID, slot, false
		return 0
	}
	if !same {
		f.before = f.extent
	}
	f.extent, f.slot, f.run = e.ID, slot, true
	return e.All() &^ covey.FirstBits(slot+1)
}

// extentsAhead is how many whole extents are asked for ahead of a reader of small
// files: 80 files or more, which keep 32 fetches in flight until the next extent is
// begun.
const extentsAhead = 2

// followOn asks for the extents behind one whose files are being opened in order.
func (t *tree) followOn(ctx context.Context, h *handle, e *covey.Extent) {
	prefix := strings.TrimSuffix(h.object.Key, h.path)
	for range extentsAhead {
		last := e.Blocks[len(e.Blocks)-1].Key
		path, entry, ok := t.names.After(strings.TrimPrefix(last, prefix))
		if !ok || entry.Size == 0 {
			return
		}
		next, slot, err := t.names.Extent(ctx, path, entry, 0)
		if err != nil || slot != 0 || next.ID == e.ID {
			return
		}
		t.blocks.Prefetch(next, next.All())
		e = next
	}
}

// nextShard asks for the begin of the file behind one that is being read to its
// end, where earlier readers went on like that.
func (t *tree) nextShard(ctx context.Context, h *handle) {
	path, e, ok := t.names.After(h.path)
	if !ok || !t.followerOf(h.node.parent).expect(path) {
		return
	}
	next := &handle{path: path, entry: e, object: t.names.Object(path, e)}
	if blocks := next.object.Blocks(); blocks > 1 {
		t.prefetchBlocks(ctx, next, 0, min(blocks, firstTarget))
	}
}
