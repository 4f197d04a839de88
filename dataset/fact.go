package dataset

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
)

// maxFacts bounds what is known of single paths beside the listings: about
// 300 bytes each, 20 MB in all. It is what lookups in huge directories go by,
// so it should hold the files that a node has open.
const maxFacts = 65536

// fact is what is known of one path by itself: the answer to a question, or a
// doubt that makes everything learnt before it worthless.
type fact struct {
	entry Entry // Kind 0 means that there is nothing of this name
	seq   uint64
	at    time.Time
	doubt bool
}

// query is a question about one path under way, shared like a run.
type query struct {
	seq       uint64
	at        time.Time
	cancel    context.CancelFunc
	done      chan struct{}
	followers int // guarded by Dataset.mu

	// Set before done is closed.
	entry Entry
	err   error
}

// ask asks the origin about one path by itself. after is the seq that the answer
// must be later than; shared says whether an answer that is under way will do.
// The entry's Kind is 0 when the origin has nothing of this name.
func (d *Dataset) ask(ctx context.Context, path string, after uint64, shared bool) (Entry, error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return Entry{}, errClosed
	}
	q := d.queries[path]
	if q == nil || q.seq <= after || !shared {
		qctx, cancel := context.WithCancel(d.ctx)
		q = &query{seq: d.nextSeq(), at: time.Now(), cancel: cancel, done: make(chan struct{})}
		d.queries[path] = q
		d.wg.Go(func() {
			defer cancel()
			d.runQuery(qctx, path, q)
		})
	}
	q.followers++
	d.mu.Unlock()

	select {
	case <-q.done:
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.followers--; q.followers == 0 {
		q.cancel()
		if d.queries[path] == q {
			delete(d.queries, path)
		}
	}
	select {
	case <-q.done:
		return q.entry, q.err
	default:
		return Entry{}, fmt.Errorf("ask for %q of %s: %w", path, d.src.URL, ctx.Err())
	}
}

// runQuery is the goroutine of a query.
func (d *Dataset) runQuery(ctx context.Context, path string, q *query) {
	entry, err := d.stat(ctx, path)
	if ctx.Err() == nil {
		d.heard(err)
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(covey.ErrUnavailable, ctx.Err())
	}
	if err != nil {
		q.err = fmt.Errorf("ask for %q of %s: %w", path, d.src.URL, err)
		close(q.done)
		return
	}
	old, had := d.learn(path, fact{entry: entry, seq: q.seq, at: q.at})
	q.entry = keepPrecision(old, entry)
	close(q.done)
	if had && !sameObject(old, entry) {
		d.announce(path, old, entry)
	}
}

// stat asks for the object and for keys below it at the same time: the
// directory wins.
func (d *Dataset) stat(ctx context.Context, path string) (Entry, error) {
	_, name := splitPath(path)
	type answer struct {
		entry Entry
		err   error
	}
	file := make(chan answer, 1)
	go func() {
		info, err := d.src.Bucket.Stat(ctx, d.src.Prefix+path)
		file <- answer{entryOf(name, info), err}
	}()
	isDir := false
	var err error
	if key := d.dirKey(path); dirFits(key) {
		isDir, err = hasKeys(ctx, d.src.Bucket, key)
	}
	f := <-file
	switch {
	case err != nil:
		return Entry{}, err
	case isDir:
		return Entry{Name: name, Kind: Dir}, nil
	case !errors.Is(f.err, covey.ErrNotFound):
		return f.entry, f.err
	}
	if key := d.dirKey(path); dirFits(key) {
		isDir, err = isEmptyDir(ctx, d.src.Bucket, key)
	}
	if err != nil || !isDir {
		return Entry{}, err
	}
	return Entry{Name: name, Kind: Dir}, nil
}

// learn stores the answer to a question, and returns what was believed before.
// A doubt that arose since the question stays.
func (d *Dataset) learn(path string, f fact) (old Entry, had bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, name := splitPath(path)
	known, ok := d.facts.get(path)
	l := d.complete(dir)
	if ok && !known.doubt && (l == nil || known.seq > l.seq) {
		old, had = known.entry, true
	} else if l != nil {
		old, had = l.lookup(name), true
	}
	if had && l != nil && !sameObject(old, f.entry) {
		l.dirty.Store(true)
	}
	f.entry = keepPrecision(old, f.entry)
	if !ok || known.seq < f.seq {
		d.facts.put(path, f, 1)
	}
	return old, had
}

// keepPrecision returns the new entry, with the old one's time where that is the
// same but finer: S3 says milliseconds in a listing and seconds elsewhere.
func keepPrecision(old, e Entry) Entry {
	if sameObject(old, e) && e.ModTime.Equal(old.ModTime.Truncate(time.Second)) {
		e.ModTime = old.ModTime
	}
	return e
}

// lookup returns the entry in a complete listing, of kind 0 when it has none of
// this name.
func (l *listing) lookup(name string) Entry {
	c, i, _ := l.view.Load().find(name)
	if c == nil {
		return Entry{}
	}
	return c.entry(i)
}

// complete returns the directory's cached listing, nil when there is none or it
// is only known to be too large. mu is held.
func (d *Dataset) complete(dir string) *listing {
	l, ok := d.listings.get(dir)
	if !ok || l.oversize {
		return nil
	}
	return l
}

// Invalidate makes the next Lookup of the path ask the origin, after a read
// said ErrStale or ErrNotFound, and the next ReadDir of it list again.
func (d *Dataset) Invalidate(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.complete(path); l != nil {
		l.dirty.Store(true)
	}
	if path == "" {
		return // the root itself cannot change
	}
	if dir, _ := splitPath(path); d.complete(dir) != nil {
		d.complete(dir).dirty.Store(true)
	}
	d.facts.put(path, fact{doubt: true, seq: d.nextSeq(), at: time.Now()}, 1)
}
