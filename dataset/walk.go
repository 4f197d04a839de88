package dataset

import (
	"context"
	"errors"
	"iter"

	"github.com/covey-cache/covey"
)

// FileAt is a file or symbolic link and where it is.
type FileAt struct {
	Path  string
	Entry Entry
}

// Walk yields every file and symbolic link at or below the path, depth first in
// ascending byte order of the key, so that a walk meets the objects as a flat
// listing would. An error ends it and is the last thing yielded. A directory
// that vanishes meanwhile is passed over.
//
// It holds the listings of the directories between path and where it is, and
// nothing else.
func (d *Dataset) Walk(ctx context.Context, path string) iter.Seq2[FileAt, error] {
	return func(yield func(FileAt, error) bool) {
		e, err := d.Lookup(ctx, path)
		switch {
		case err != nil:
			yield(FileAt{}, err)
		case e.Kind != Dir:
			yield(FileAt{path, e}, nil)
		default:
			d.walk(ctx, path, yield)
		}
	}
}

// walk reports whether to go on.
//
// Names come in their own order, in which "a" is in front of "a-1", while the
// keys of the directory a are behind it. So a directory waits until a name is
// greater than its key. Those that wait are prefixes of each other, the longest
// on top.
func (d *Dataset) walk(ctx context.Context, path string, yield func(FileAt, error) bool) bool {
	var waiting []string
	descend := func(before string, all bool) bool {
		for n := len(waiting) - 1; n >= 0 && (all || waiting[n]+"/" < before); n-- {
			dir := waiting[n]
			waiting = waiting[:n]
			if !d.walk(ctx, joinPath(path, dir), yield) {
				return false
			}
		}
		return true
	}
	for e, err := range d.ReadDir(ctx, path) {
		switch {
		case errors.Is(err, covey.ErrNotFound):
			return true
		case err != nil:
			yield(FileAt{}, err)
			return false
		case !descend(e.Name, false):
			return false
		case e.Kind == Dir:
			waiting = append(waiting, e.Name)
		case !yield(FileAt{joinPath(path, e.Name), e}, nil):
			return false
		}
	}
	return descend("", true)
}
