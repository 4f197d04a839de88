package dataset

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// run is a listing under way. Whoever wants the directory follows it. It ends
// early when the last follower has given up, unless one of them got its answer:
// then somebody works in this directory and will want the rest.
type run struct {
	*listing
	cancel context.CancelFunc
	// Both guarded by Dataset.mu.
	followers int
	kept      bool
}

// maxIdlePages is how many pages in a row may bring nothing new. Origins that
// scan deleted keys do answer empty pages; a thousand of them are a million
// deleted keys.
const maxIdlePages = 1000

var errClosed = fmt.Errorf("the data set is no longer in use: %w", covey.ErrUnavailable)

// follow joins the directory's run or begins one. known, if any, is a run that
// the caller saw a moment ago: if it has ended well since, that is the one.
func (d *Dataset) follow(path string, known *run) (*run, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.join(path, known)
}

// join is follow with mu held.
func (d *Dataset) join(path string, known *run) (*run, error) {
	if d.closed {
		return nil, errClosed
	}
	r := d.runs[path]
	if r == nil && known != nil {
		if v := known.view.Load(); v.done && v.err == nil {
			r = known
		}
	}
	if r == nil {
		ctx, cancel := context.WithCancel(d.ctx)
		r = &run{listing: newListing(path, d.nextSeq(), time.Now()), cancel: cancel}
		d.runs[path] = r
		d.wg.Go(func() {
			defer cancel()
			d.list(ctx, r)
		})
	}
	r.followers++
	return r, nil
}

// leave ends what follow began. keep says that the follower got what it wanted.
func (d *Dataset) leave(r *run, keep bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.followers--
	r.kept = r.kept || keep
	if r.followers == 0 && !r.kept {
		r.cancel()
		d.forget(r)
	}
}

// forget takes the run out of those that can be joined. mu is held.
func (d *Dataset) forget(r *run) {
	if d.runs[r.path] == r {
		delete(d.runs, r.path)
	}
}

// list is the goroutine of a run.
func (d *Dataset) list(ctx context.Context, r *run) {
	p := newPager(d.dirKey(r.path), d.src.Bucket)
	p.patient = d.missedSome(r.path)
	err := d.listPages(ctx, r, p)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("listing given up: %w", errors.Join(covey.ErrUnavailable, ctx.Err()))
		}
		err = fmt.Errorf("list directory %q of %s: %w", r.path, d.src.URL, err)
	}
	r.hidden, r.late = p.hidden, p.late
	old := d.settle(r, err)
	d.countListing(ctx, r, p, old, err)
	if err == nil && old != nil {
		d.announceDiff(old, r.listing)
	}
}

func (d *Dataset) listPages(ctx context.Context, r *run, p *pager) error {
	var token string
	for idle := 0; ; {
		page, err := p.bucket.List(ctx, origin.ListRequest{Prefix: p.prefix, Delimiter: "/", Token: token})
		if ctx.Err() == nil {
			d.heard(err)
		}
		if err != nil {
			return err
		}
		progress, err := p.add(page)
		if err != nil {
			return err
		}
		idle++
		if progress {
			idle = 0
		}
		last := page.Next == ""
		switch {
		case !last && page.Next == token:
			return fmt.Errorf("the origin answers one page token for ever: %w", covey.ErrUnavailable)
		case idle > maxIdlePages:
			return fmt.Errorf("the origin answers %d pages without a new key: %w", idle, covey.ErrUnavailable)
		}
		if last && !p.exists && r.path != "" {
			if p.exists, err = isEmptyDir(ctx, p.bucket, p.prefix); err != nil {
				return err
			}
		}
		settled, err := p.take(ctx, last)
		if err != nil {
			return err
		}
		d.mu.Lock()
		fits := d.listings.reserve(int64(len(settled)))
		d.mu.Unlock()
		r.extend(settled, p.exists)
		if !fits {
			return fmt.Errorf("more than %d entries: %w", d.opts.MaxEntries, covey.ErrFull)
		}
		if last {
			return nil
		}
		token = page.Next
	}
}

// settle ends the run: it turns the reservation into a cached listing, when that
// is complete, and returns the listing it replaces. Whoever holds mu sees either
// a run to follow or what came of it.
func (d *Dataset) settle(r *run, err error) (old *listing) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(r)
	r.finish(err)
	n := int64(r.view.Load().n)
	d.listings.reserve(-n)
	switch {
	case err == nil:
		old, _ = d.listings.get(r.path)
		if old != nil && old.seq > r.seq {
			return nil // a later run was faster
		}
		d.listings.put(r.path, r.listing, n+dirCost)
		if d.changedSince(r.path, r.seq) {
			r.dirty.Store(true)
		}
		for _, name := range r.late {
			// Lookups ask for it, and the next ReadDir lists again.
			d.facts.put(joinPath(r.path, name), fact{doubt: true, seq: d.nextSeq(), at: time.Now()}, 1)
			r.dirty.Store(true)
		}
	case errors.Is(err, covey.ErrFull) && n > d.opts.MaxEntries:
		partial := newListing(r.path, r.seq, r.at)
		partial.finish(err)
		partial.oversize = true
		d.listings.put(r.path, partial, dirCost)
	}
	if old != nil && old.oversize {
		return nil
	}
	return old
}

// missedSome reports whether the directory's last listing missed directories, so
// that the next has to wait for them.
func (d *Dataset) missedSome(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.complete(path)
	return l != nil && len(l.late) > 0
}

func (d *Dataset) countListing(ctx context.Context, r *run, p *pager, old *listing, err error) {
	result := "complete"
	switch {
	case ctx.Err() != nil:
		result = "cancelled"
	case err != nil:
		result = "failed"
	}
	d.opts.Metrics.listings.WithLabelValues(result).Inc()
	d.opts.Metrics.hidden.Add(float64(p.hidden))
	if p.hidden > 0 && err == nil && (old == nil || old.hidden == 0) {
		d.opts.Log.Info("keys that cannot be file names are hidden",
			"dataset", d.src.URL, "directory", r.path, "keys", p.hidden, "example", fmt.Sprintf("%q", p.example))
	}
}
