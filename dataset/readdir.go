package dataset

import (
	"context"
	"fmt"
	"iter"
)

// ReadDir yields the directory's entries in ascending byte order of the name,
// while later pages are still being listed. The error, if any, is the last thing
// yielded: an incomplete listing never looks complete. A prefix without keys is
// ErrNotFound, except the root.
//
// Concurrent calls follow one listing. While the origin cannot be reached, the
// rest comes from the listing before, for StaleIfError.
func (d *Dataset) ReadDir(ctx context.Context, path string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if path != "" && !validPath(path) {
			yield(Entry{}, d.notFound(path))
			return
		}
		l, fresh, known := d.cached(path)
		switch {
		case fresh:
			d.readListing(l, path, yield)
		case l != nil && d.usable(l.at) && d.inOutage():
			d.opts.Metrics.stale.Inc()
			d.readListing(l, path, yield)
		default:
			d.readRun(ctx, path, l, known, yield)
		}
	}
}

// cached returns the directory's complete listing, if any, whether it is to be
// believed, and the run under way, if any.
func (d *Dataset) cached(path string) (l *listing, fresh bool, r *run) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l = d.complete(path)
	return l, l != nil && d.fresh(l.at) && !l.dirty.Load(), d.runs[path]
}

func (d *Dataset) readListing(l *listing, path string, yield func(Entry, error) bool) {
	v := l.view.Load()
	for c, i := range v.from(0) {
		if !yield(c.entry(i), nil) {
			return
		}
	}
	if !v.exists && path != "" {
		yield(Entry{}, d.notFound(path))
	}
}

// readRun yields from a listing under way, the known one if it will do. old is
// the listing before, if any.
func (d *Dataset) readRun(ctx context.Context, path string, old *listing, known *run, yield func(Entry, error) bool) {
	r, err := d.follow(path, known)
	if err != nil {
		yield(Entry{}, err)
		return
	}
	complete := false
	defer func() { d.leave(r, complete) }()
	last := ""
	for n := 0; ; {
		v := r.view.Load()
		for c, i := range v.from(n) {
			if last = c.name(i); !yield(c.entry(i), nil) {
				return
			}
		}
		n = v.n
		switch {
		case v.err != nil:
			d.readRest(old, last, v.err, yield)
			return
		case v.done:
			complete = true
			if !v.exists && path != "" {
				yield(Entry{}, d.notFound(path))
			}
			return
		}
		select {
		case <-v.grown:
		case <-ctx.Done():
			yield(Entry{}, fmt.Errorf("read directory %q of %s: %w", path, d.src.URL, ctx.Err()))
			return
		}
	}
}

// readRest goes on from the listing before when the run failed behind the name
// last: what was known there stays valid as long as for a Lookup.
func (d *Dataset) readRest(old *listing, last string, err error, yield func(Entry, error) bool) {
	if old == nil || !unreachable(err) || !d.usable(old.at) || !old.view.Load().exists && old.path != "" {
		yield(Entry{}, err)
		return
	}
	d.opts.Metrics.stale.Inc()
	for c, i := range old.view.Load().after(last) {
		if !yield(c.entry(i), nil) {
			return
		}
	}
}

// Settled reports whether the directory's listing is known to its end, is
// believed, and misses nothing: whoever keeps what ReadDir yields now has all of
// it, for as long as the listing's age allows.
func (d *Dataset) Settled(path string) bool {
	l, fresh, _ := d.cached(path)
	return fresh && len(l.late) == 0
}

// After returns the file that comes behind the path in its directory's listing, as
// far as that is known; false when none is known. It asks nobody and believes a
// listing of any age: it is for guesses.
func (d *Dataset) After(path string) (next string, e Entry, ok bool) {
	dir, name := splitPath(path)
	d.mu.Lock()
	l := d.complete(dir)
	if r := d.runs[dir]; l == nil && r != nil {
		l = r.listing
	}
	d.mu.Unlock()
	if l == nil {
		return "", Entry{}, false
	}
	for c, i := range l.view.Load().after(name) {
		if c.recs[i].kind == File {
			e = c.entry(i)
			return joinPath(dir, e.Name), e, true
		}
	}
	return "", Entry{}, false
}
