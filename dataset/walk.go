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
// It holds the listings of the directories between path and where it is, and has
// the next few directories listed ahead.
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
	ahead := lookahead{d: d, path: path}
	descend := func(before string, all bool) bool {
		for n := len(waiting) - 1; n >= 0 && (all || waiting[n]+"/" < before); n-- {
			dir := waiting[n]
			waiting = waiting[:n]
			ahead.descend()
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

// walkAhead is how many directories of one level a walk has listed ahead. A
// listing takes an origin 20 to 50 ms, so that eight of them list the small
// directories of a class-per-directory data set at 200 a second or more.
const walkAhead = 8

// lookahead lists the directories in one that is being walked ahead of the walk,
// once its own listing is complete.
type lookahead struct {
	d      *Dataset
	path   string
	view   *view
	next   int // index of the entry to look at next
	listed int // directories that a listing was begun for
	walked int
}

// descend is called before each directory is walked.
func (a *lookahead) descend() {
	if a.view == nil {
		l, fresh, _ := a.d.cached(a.path)
		if !fresh {
			a.walked++
			return
		}
		a.view = l.view.Load()
	}
	for c, i := range a.view.from(a.next) {
		if a.listed-a.walked >= walkAhead {
			break
		}
		a.next++
		if c.recs[i].kind != Dir {
			continue
		}
		if a.listed++; a.listed > a.walked {
			a.d.warm(joinPath(a.path, c.name(i)))
		}
	}
	a.walked++
}

// warm begins to list a directory, unless that is known or under way.
func (d *Dataset) warm(path string) {
	_, fresh, known := d.cached(path)
	if fresh || known != nil {
		return
	}
	if r, err := d.follow(path, nil); err == nil {
		d.leave(r, true)
	}
}
