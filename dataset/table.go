package dataset

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// OpenFunc opens a source URL; origin.Open with its options filled in is one.
type OpenFunc func(ctx context.Context, url string) (*origin.Source, error)

// Table is the data sets in use of one agent. Equal sources share one Dataset,
// and data sets of one origin share its Bucket, and with it the bucket's limit
// on requests. All methods may be called concurrently.
type Table struct {
	open OpenFunc
	opts Options

	ctx    context.Context // of every opening
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// mu is taken before a data set's lock. Nothing is opened or closed under
	// it.
	//
	// INVARIANT: a member of sets has refs > 0, and a bucket of buckets is used
	// by as many members as it has refs, at least one.
	mu      sync.Mutex
	closed  bool
	sets    map[string]*member  // by canonical URL
	buckets map[string]*bucket  // by origin
	opening map[string]*opening // by URL as given
}

// member is a data set with the number of Adds that have not been released.
type member struct {
	ds    *Dataset
	refs  int
	given []string // spellings of the URL that are known to mean it
}

// bucket is an origin's bucket, with the source to close in the end.
type bucket struct {
	src  *origin.Source
	refs int
}

// maxSpellings bounds member.given; a source beyond it is opened again to learn
// that it is known.
const maxSpellings = 16

// opening is a source being opened, shared by those who add it.
type opening struct {
	cancel context.CancelFunc
	done   chan struct{}
	// waiting is guarded by Table.mu. Each becomes a reference at the end.
	waiting int

	// Set before done is closed.
	ds  *Dataset
	err error
}

// NewTable returns an empty table, whose data sets will have the given options.
// It opens nothing.
func NewTable(open OpenFunc, opts Options) *Table {
	ctx, cancel := context.WithCancel(context.Background())
	return &Table{
		open: open, opts: opts, ctx: ctx, cancel: cancel,
		sets:    make(map[string]*member),
		buckets: make(map[string]*bucket),
		opening: make(map[string]*opening),
	}
}

// Add returns the data set of a source URL, and opens it when it is not in use
// yet; concurrent calls open it once, and one that gives up does not fail the
// others. Each successful Add is to be paired with a Release.
func (t *Table) Add(ctx context.Context, url string) (*Dataset, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, fmt.Errorf("open source %s: %w", url, errClosed)
	}
	for _, m := range t.sets {
		if slices.Contains(m.given, url) {
			m.refs++
			t.mu.Unlock()
			return m.ds, nil
		}
	}
	op := t.opening[url]
	if op == nil {
		octx, cancel := context.WithCancel(t.ctx)
		op = &opening{cancel: cancel, done: make(chan struct{})}
		t.opening[url] = op
		t.wg.Go(func() { t.runOpening(octx, url, op) })
	}
	op.waiting++
	t.mu.Unlock()

	select {
	case <-op.done:
		return op.ds, op.err
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-op.done: // this caller has its reference already
		return op.ds, op.err
	default:
	}
	if op.waiting--; op.waiting == 0 {
		op.cancel()
		t.forget(url, op)
	}
	return nil, fmt.Errorf("open source %s: %w", url, ctx.Err())
}

// forget takes the opening out of those that can be joined. mu is held.
func (t *Table) forget(url string, op *opening) {
	if t.opening[url] == op {
		delete(t.opening, url)
	}
}

// runOpening is the goroutine of an opening.
func (t *Table) runOpening(ctx context.Context, url string, op *opening) {
	defer op.cancel()
	src, err := t.open(ctx, url)
	var unused *origin.Source
	t.mu.Lock()
	t.forget(url, op)
	switch {
	case err != nil:
		op.err = err
	case t.closed || op.waiting == 0:
		op.err = fmt.Errorf("open source %s: %w", url, errClosed)
		unused = src
	default:
		op.ds, unused = t.admit(url, src, op.waiting)
	}
	// Under mu, so that who gives up sees either no end or all of it.
	close(op.done)
	t.mu.Unlock()
	if unused != nil {
		t.closeSource(unused)
	}
}

// admit counts the users of an opened source, which it returns as unused when
// its bucket is in use already. mu is held.
func (t *Table) admit(url string, src *origin.Source, users int) (ds *Dataset, unused *origin.Source) {
	m := t.sets[src.URL]
	if m != nil {
		unused = src
	} else {
		shared := *src
		b := t.buckets[src.Bucket.Origin()]
		if b != nil {
			shared.Bucket, shared.Editor, unused = b.src.Bucket, b.src.Editor, src
		} else {
			b = &bucket{src: src}
			t.buckets[src.Bucket.Origin()] = b
		}
		b.refs++
		m = &member{ds: New(&shared, t.opts)}
		t.sets[src.URL] = m
	}
	m.refs += users
	if !slices.Contains(m.given, url) && len(m.given) < maxSpellings {
		m.given = append(m.given, url)
	}
	return m.ds, unused
}

// Release gives back what Add returned. The last one closes the data set, and
// the bucket when no other uses it.
func (t *Table) Release(ds *Dataset) {
	t.mu.Lock()
	m := t.sets[ds.Name()]
	if m == nil || m.ds != ds {
		t.mu.Unlock()
		return
	}
	m.refs--
	if m.refs > 0 {
		t.mu.Unlock()
		return
	}
	delete(t.sets, ds.Name())
	t.mu.Unlock()
	ds.Close()
	t.releaseBucket(ds.src.Bucket.Origin())
}

func (t *Table) releaseBucket(name string) {
	t.mu.Lock()
	b := t.buckets[name]
	b.refs--
	last := b.refs == 0
	if last {
		delete(t.buckets, name)
	}
	t.mu.Unlock()
	if last {
		t.closeSource(b.src)
	}
}

func (t *Table) closeSource(src *origin.Source) {
	if err := src.Close(); err != nil && t.opts.Log != nil {
		t.opts.Log.Warn("closing a source failed", "dataset", src.URL, "error", err)
	}
}

// ByOrigin returns the bucket that the objects of an origin are read from, when
// some data set in use has it.
func (t *Table) ByOrigin(name string) (origin.Bucket, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, ok := t.buckets[name]
	if !ok {
		return nil, false
	}
	return b.src.Bucket, true
}

// Open opens a range of an object at its origin: origin.Bucket.Get says what
// the reader promises. It is ErrUnavailable when no data set in use has the
// object's origin.
func (t *Table) Open(ctx context.Context, o covey.Object, r covey.Range) (io.ReadCloser, error) {
	b, ok := t.ByOrigin(o.Origin)
	if !ok {
		return nil, fmt.Errorf("read %s: no data set of origin %s is in use: %w", o.Key, o.Origin, covey.ErrUnavailable)
	}
	return b.Get(ctx, o.Key, o.Version, r)
}

// List returns the data sets in use, by name.
func (t *Table) List() []*Dataset {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*Dataset
	for _, m := range t.sets {
		out = append(out, m.ds)
	}
	slices.SortFunc(out, func(a, b *Dataset) int { return strings.Compare(a.Name(), b.Name()) })
	return out
}

// Close closes every data set and bucket and ends what is being opened, and
// waits for all. Adds fail from then on.
func (t *Table) Close() {
	t.mu.Lock()
	t.closed = true
	sets := t.sets
	t.sets = make(map[string]*member)
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	for _, m := range sets {
		m.ds.Close()
		t.releaseBucket(m.ds.src.Bucket.Origin())
	}
}
