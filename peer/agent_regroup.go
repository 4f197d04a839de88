package peer

import (
	"context"
	"path"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

const (
	// regroupAfter is how long a directory must have been quiet for what was
	// written to it to be announced again, and regroupAtLatest how long that is
	// put off while writes go on: one LIST for a burst of files.
	regroupAfter    = time.Second
	regroupAtLatest = 5 * time.Second
	// maxRegroup bounds the files that wait, at some 500 bytes each. What does not
	// get in is read from the origin once more by the first node that wants it.
	maxRegroup = 16 << 10
)

// regrouper announces small files that were written here under the extents that
// other nodes will look for them in. Small files share extents that follow from
// their directory's listing, and a file that was just written is in none yet: it
// is an extent of its own until the directory is listed again.
//
// mu is a leaf lock and guards the fields below it.
type regrouper struct {
	wake chan struct{} // something waits

	mu    sync.Mutex
	dirs  map[writtenDir]*writtenFiles
	files int
}

type writtenDir struct{ source, dir string }

type writtenFiles struct {
	entries     map[string]dataset.Entry // by path
	first, last time.Time
}

func newRegrouper() *regrouper {
	return &regrouper{wake: make(chan struct{}, 1), dirs: map[writtenDir]*writtenFiles{}}
}

// add notes a file that was written and admitted.
func (r *regrouper) add(source, file string, e dataset.Entry) {
	dir := path.Dir(file)
	if dir == "." {
		dir = ""
	}
	k := writtenDir{source, dir}
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.dirs[k]
	if w == nil {
		w = &writtenFiles{entries: map[string]dataset.Entry{}, first: time.Now()}
		r.dirs[k] = w
	}
	w.last = time.Now()
	if _, known := w.entries[file]; !known {
		if r.files >= maxRegroup {
			return
		}
		r.files++
	}
	w.entries[file] = e
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// due takes the directories whose time has come, and says whether others wait.
func (r *regrouper) due(now time.Time) (due map[writtenDir]*writtenFiles, wait bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	due = map[writtenDir]*writtenFiles{}
	for k, w := range r.dirs {
		if now.Sub(w.last) < regroupAfter && now.Sub(w.first) < regroupAtLatest {
			wait = true
			continue
		}
		due[k] = w
		r.files -= len(w.entries)
		delete(r.dirs, k)
	}
	return due, wait
}

// regroup runs until ctx ends. While nothing was written it sleeps.
func (a *Agent) regroup(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.written.wake:
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(regroupAfter / 4):
			}
			var due map[writtenDir]*writtenFiles
			due, wait = a.written.due(time.Now())
			for k, w := range due {
				a.regroupDir(ctx, k, w.entries)
			}
		}
	}
}

// regroupDir lists the directory, which is shown changed since the files were
// written, and moves their blocks to the extents that the listing makes.
func (a *Agent) regroupDir(ctx context.Context, k writtenDir, files map[string]dataset.Entry) {
	var ds *dataset.Dataset
	for _, d := range a.datasets.List() {
		if d.Name() == k.source {
			ds = d
		}
	}
	if ds == nil {
		return // nobody here uses it any more
	}
	for _, err := range ds.ReadDir(ctx, k.dir) {
		if err != nil {
			a.log.Debug("a directory that was written to cannot be listed", "dataset", k.source, "dir", k.dir, "error", err)
			return
		}
	}
	for file, e := range files {
		if err := a.regroupFile(ctx, ds, file, e); err != nil {
			a.log.Debug("a written file is not announced under its listing", "dataset", k.source, "path", file, "error", err)
		}
	}
}

func (a *Agent) regroupFile(ctx context.Context, ds *dataset.Dataset, file string, e dataset.Entry) error {
	o := ds.Object(file, e)
	buf := make([]byte, min(o.Size, o.BlockSize))
	for i := range o.Blocks() {
		x, slot, err := ds.Extent(ctx, file, e, i)
		if err != nil {
			return err
		}
		h, err := a.store.Get(o.Block(i))
		if err != nil {
			return err // it was evicted
		}
		data := buf[:h.Len()]
		_, err = h.ReadAt(data, 0)
		digest := h.Digest()
		h.Release()
		if err != nil {
			return err
		}
		if err := a.admitWritten(o.Block(i), covey.Place{Extent: x.ID, Slot: uint8(slot)}, digest, data); err != nil {
			return err
		}
	}
	return nil
}
