package mount

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// overlay shows drafts on top of the data set.
type overlay struct {
	Names
	t *tree
}

func (o overlay) Lookup(ctx context.Context, path string) (dataset.Entry, error) {
	if d := o.t.draftAt(path); d != nil {
		o.t.writes.mu.Lock()
		defer o.t.writes.mu.Unlock()
		return d.shown(path[strings.LastIndexByte(path, '/')+1:]), nil
	}
	return o.Names.Lookup(ctx, path)
}

// ReadDir yields the data set's entries, with drafts in the place of those they
// will replace, and then the drafts of names that are new.
func (o overlay) ReadDir(ctx context.Context, dir string) iter.Seq2[dataset.Entry, error] {
	drafts := o.t.writes.in(dir)
	if drafts == nil {
		return o.Names.ReadDir(ctx, dir)
	}
	return func(yield func(dataset.Entry, error) bool) {
		for e, err := range o.Names.ReadDir(ctx, dir) {
			if d, ok := drafts[e.Name]; ok && err == nil {
				e = d
				delete(drafts, e.Name)
			}
			if !yield(e, err) {
				return
			}
		}
		for _, d := range drafts {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// in returns the drafts of a directory by name, nil for none.
func (w *writes) in(dir string) map[string]dataset.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all map[string]dataset.Entry
	for path, d := range w.byPath {
		parent, name := "", path
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent, name = path[:i], path[i+1:]
		}
		if parent == dir && d.opened {
			if all == nil {
				all = map[string]dataset.Entry{}
			}
			all[name] = d.shown(name)
		}
	}
	return all
}

// below reports whether drafts lie below a directory.
func (w *writes) below(dir string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for path := range w.byPath {
		if strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

var errDraftsBelow = fmt.Errorf("files below it are being written: %w", covey.ErrInvalid)
