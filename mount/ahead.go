package mount

import (
	"sync"

	"github.com/covey-cache/covey"
)

// follower recognises files of one directory that are opened in the order of
// the listing, by their slots in the extents that small files share.
type follower struct {
	mu     sync.Mutex // leaf; guards all
	extent covey.ExtentID
	slot   int
	run    bool // the rest of extent was asked for
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
	switch {
	case same && f.run:
		f.slot = max(f.slot, slot)
		return 0
	case !follows:
		f.extent, f.slot, f.run = e.ID, slot, false
		return 0
	}
	f.extent, f.slot, f.run = e.ID, slot, true
	return e.All() &^ covey.FirstBits(slot+1)
}
