package mount

import (
	"context"
	"errors"
	"path"
	"time"

	"github.com/covey-cache/covey"
)

// Formats that their libraries map rather than read. A page fault of a mapping
// that the daemon serves costs a message for each piece of readahead, twenty times
// what a passed-through one does, and cannot be undone while the file is open. So
// such a file is completed at open where that is not too long a wait.
var mappedFormats = map[string]bool{
	".safetensors": true, ".arrow": true, ".npy": true, ".bin": true, ".idx": true,
}

const (
	// maxCompleteMapped is half a second of a 4 Gb/s origin.
	maxCompleteMapped = 256 << 20
	// completeMappedIn bounds the wait; the file is served if it is not whole then.
	completeMappedIn = 10 * time.Second
	// completeAhead is how many blocks are fetched side by side: 20 ms of first
	// byte at 3 GB/s.
	completeAhead = 16
	// completeAgain is how long a file that did not become whole is left alone:
	// a cache without room has room again when something goes, not at once.
	completeAgain = time.Minute
)

// toComplete reports whether an open fetches the whole file.
func (t *tree) toComplete(h *handle) bool {
	size := h.object.Size
	if t.completeAtOpen < 0 {
		return false
	}
	return size <= t.completeAtOpen ||
		size <= maxCompleteMapped && mappedFormats[path.Ext(h.path)] && h.inode.mayComplete(time.Now())
}

// completeMapped fetches every block of a larger file, as far as time and the
// cache allow. What is wrong with the object is an error; everything else is for
// the reads to meet.
func (t *tree) completeMapped(ctx context.Context, h *handle) error {
	ctx, cancel := context.WithTimeout(ctx, completeMappedIn)
	defer cancel()
	defer h.dropBlocks(false)
	for i := range h.object.Blocks() {
		if i%completeAhead == 0 {
			t.prefetchBlocks(ctx, h, i, min(i+2*completeAhead, h.object.Blocks()))
		}
		b, err := t.block(ctx, h, i)
		if err != nil {
			h.inode.couldNotComplete(time.Now())
			if errors.Is(err, covey.ErrStale) || errors.Is(err, covey.ErrNotFound) {
				return err
			}
			t.log.Debug("file not completed at open", "path", h.path, "error", err)
			return nil
		}
		h.done(b)
	}
	return nil
}

// mayComplete reports whether a larger file is worth completing now.
func (in *inode) mayComplete(now time.Time) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return now.After(in.leaveUntil)
}

// couldNotComplete says that the file did not become whole.
func (in *inode) couldNotComplete(now time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.leaveUntil = now.Add(completeAgain)
}
