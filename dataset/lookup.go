package dataset

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// smallDir is how many entries a directory may have to be listed again when
	// one of them is asked for past its age. A thousand is one request, and
	// renews them all; beyond, it is cheaper to ask for the one.
	smallDir = 1000

	// patience is how many entries of a listing under way a lookup lets pass
	// before it asks for its name by itself: about 0.4 s of listing.
	patience = 10_000
)

// knowledge is what was known of a path when a lookup began.
type knowledge struct {
	entry Entry // Kind 0 means that there was nothing of this name
	at    time.Time
	have  bool
	// doubt is the seq of an Invalidate that nothing learnt since has answered,
	// else 0.
	doubt uint64
	// relist says that listing the directory is the way to find out; run is
	// one that is under way already and will do.
	relist bool
	run    *run
}

// Lookup returns one entry, from the cached listing of its directory where that
// is young enough. ErrNotFound only when the origin said so, or when the path
// could not be shown at all; when the origin cannot be asked, a known entry
// stays valid for StaleIfError, and an unknown one is ErrUnavailable.
//
// A lookup past the age lists the directory again when it has at most 1,000
// entries, else it asks for the one name and remembers the answer for MaxAge.
func (d *Dataset) Lookup(ctx context.Context, path string) (Entry, error) {
	if path == "" {
		return Entry{Kind: Dir}, nil
	}
	if !validPath(path) {
		return Entry{}, d.notFound(path)
	}
	k := d.known(path)
	if k.have && d.fresh(k.at) {
		return d.answer(path, k.entry)
	}
	if d.standIn(k) && d.inOutage() {
		return d.stale(k.entry), nil
	}
	e, err := d.find(ctx, path, k)
	switch {
	case err == nil:
		return d.answer(path, e)
	case ctx.Err() != nil || !unreachable(err):
		return Entry{}, err
	case d.standIn(k):
		return d.stale(k.entry), nil
	case !errors.Is(err, covey.ErrUnavailable):
		return Entry{}, fmt.Errorf("%w: %w", covey.ErrUnavailable, err)
	}
	return Entry{}, err
}

func (d *Dataset) notFound(path string) error {
	return fmt.Errorf("%q in %s: %w", path, d.src.URL, covey.ErrNotFound)
}

func (d *Dataset) answer(path string, e Entry) (Entry, error) {
	if e.Kind == 0 {
		return Entry{}, d.notFound(path)
	}
	return e, nil
}

// standIn reports whether what is known may be told while the origin cannot be
// reached. That there was nothing of this name may not: it could be there now.
func (d *Dataset) standIn(k knowledge) bool {
	return k.have && k.entry.Kind != 0 && d.usable(k.at)
}

func (d *Dataset) stale(e Entry) Entry {
	d.opts.Metrics.stale.Inc()
	return e
}

// known collects what is known of a path, and how to find out more.
func (d *Dataset) known(path string) knowledge {
	dir, name := splitPath(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	var k knowledge
	f, ok := d.facts.get(path)
	l, listed := d.listings.get(dir)
	oversize := listed && l.oversize
	if oversize {
		l, listed = nil, false
	}
	switch {
	case ok && (!listed || f.seq > l.seq):
		if f.doubt {
			k.doubt = f.seq
		} else {
			k.entry, k.at, k.have = f.entry, f.at, true
		}
	case listed:
		k.entry, k.at, k.have = l.lookup(name), l.at, true
	}
	r := d.runs[dir]
	if r != nil && r.seq > k.doubt && d.fresh(r.at) {
		k.run = r
	}
	small := listed && l.view.Load().n <= smallDir || !listed && !oversize
	k.relist = small && d.opts.believes() && (r == nil || k.run != nil)
	return k
}

// believes reports whether listings are believed at all.
func (o Options) believes() bool { return o.Immutable || o.MaxAge > 0 }

// find asks the origin, by the directory's listing or by name. The entry's Kind
// is 0 when the origin has nothing of this name.
func (d *Dataset) find(ctx context.Context, path string, k knowledge) (Entry, error) {
	switch {
	case k.relist:
		e, found, err := d.findListed(ctx, path, k.run)
		if found || err != nil {
			return e, err
		}
	case k.run != nil:
		_, name := splitPath(path)
		if c, i, settled := k.run.view.Load().find(name); c != nil {
			return c.entry(i), nil
		} else if settled {
			return Entry{}, nil
		}
	}
	return d.ask(ctx, path, k.doubt, d.opts.believes())
}

// findListed follows the directory's run until it has got to the name. It is not
// found when that takes too long.
func (d *Dataset) findListed(ctx context.Context, path string, known *run) (e Entry, found bool, err error) {
	dir, name := splitPath(path)
	r, err := d.follow(dir, known)
	if err != nil {
		return Entry{}, false, err
	}
	answered := false
	defer func() { d.leave(r, answered) }()
	for {
		v := r.view.Load()
		c, i, settled := v.find(name)
		switch {
		case c != nil:
			answered = true
			return c.entry(i), true, nil
		case settled:
			answered = true
			return Entry{}, true, nil
		case errors.Is(v.err, covey.ErrFull):
			return Entry{}, false, nil
		case v.err != nil:
			return Entry{}, false, v.err
		case v.n > patience:
			answered = true
			return Entry{}, false, nil
		}
		select {
		case <-v.grown:
		case <-ctx.Done():
			return Entry{}, false, fmt.Errorf("look up %q in %s: %w", path, d.src.URL, ctx.Err())
		}
	}
}
