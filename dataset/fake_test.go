package dataset

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memBucket is an origin in memory: exact about order, roll-up and pages, and
// with the faults that a test sets.
type memBucket struct {
	mu      sync.Mutex
	keys    []string // sorted
	infos   map[string]origin.Info
	page    int           // most items of a page; 0 means 1000
	delay   time.Duration // of every request
	fail    error         // of every request
	failAt  int           // fail from that page of any listing on, 0 never
	lists   int
	probes  int // lists with a limit
	stats   int
	gate    chan struct{} // when set, pages behind the first wait for it
	inspect func(origin.ListRequest) (origin.Page, error, bool)
}

func newBucket(keys ...string) *memBucket {
	b := &memBucket{infos: make(map[string]origin.Info)}
	for _, k := range keys {
		b.put(k, 100, "v1")
	}
	return b
}

func (b *memBucket) put(key string, size int64, version string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.infos[key]; !ok {
		i := sort.SearchStrings(b.keys, key)
		b.keys = append(b.keys, "")
		copy(b.keys[i+1:], b.keys[i:])
		b.keys[i] = key
	}
	b.infos[key] = origin.Info{Key: key, Size: size, Version: version, ModTime: time.Unix(1700000000, 123456789)}
}

func (b *memBucket) remove(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.infos, key)
	i := sort.SearchStrings(b.keys, key)
	b.keys = append(b.keys[:i], b.keys[i+1:]...)
}

func (b *memBucket) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// requests returns the number of LIST and STAT requests since the last call.
func (b *memBucket) requests() (lists, stats int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lists, stats = b.lists, b.stats
	b.lists, b.stats, b.probes = 0, 0, 0
	return lists, stats
}

func (b *memBucket) Origin() string { return "mem://bucket" }

func (b *memBucket) begin(ctx context.Context) error {
	b.mu.Lock()
	delay := b.delay
	b.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fail
}

func (b *memBucket) Stat(ctx context.Context, key string) (origin.Info, error) {
	err := b.begin(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats++
	if err != nil {
		return origin.Info{}, err
	}
	info, ok := b.infos[key]
	if !ok {
		return origin.Info{}, fmt.Errorf("stat %s: %w", key, covey.ErrNotFound)
	}
	info.ModTime = info.ModTime.Truncate(time.Second) // as HEAD has it
	return info, nil
}

func (b *memBucket) List(ctx context.Context, req origin.ListRequest) (origin.Page, error) {
	err := b.begin(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lists++
	if req.Limit > 0 {
		b.probes++
	}
	if err != nil {
		return origin.Page{}, err
	}
	if b.inspect != nil {
		if page, err, ok := b.inspect(req); ok {
			return page, err
		}
	}
	if gate := b.gate; gate != nil && req.Token != "" {
		b.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		b.mu.Lock()
		if ctx.Err() != nil {
			return origin.Page{}, ctx.Err()
		}
	}
	if b.failAt > 0 && b.lists >= b.failAt {
		return origin.Page{}, fmt.Errorf("list: %w", covey.ErrUnavailable)
	}
	return b.slice(req), nil
}

func (b *memBucket) slice(req origin.ListRequest) origin.Page {
	limit := b.page
	if limit == 0 {
		limit = 1000
	}
	if req.Limit > 0 {
		limit = min(limit, req.Limit)
	}
	var page origin.Page
	i := sort.SearchStrings(b.keys, max(req.Prefix, req.Token))
	for ; i < len(b.keys) && strings.HasPrefix(b.keys[i], req.Prefix); i++ {
		key := b.keys[i]
		if req.Token != "" && (key == req.Token || strings.HasSuffix(req.Token, "/") && strings.HasPrefix(key, req.Token) && req.Token != req.Prefix) {
			continue
		}
		if n := len(page.Objects) + len(page.Prefixes); n == limit {
			return page
		}
		rest := key[len(req.Prefix):]
		k := -1
		if req.Delimiter != "" {
			k = strings.Index(rest, req.Delimiter)
		}
		if k < 0 {
			page.Objects = append(page.Objects, b.infos[key])
			page.Next = key
			continue
		}
		roll := req.Prefix + rest[:k+1]
		page.Prefixes = append(page.Prefixes, roll)
		page.Next = roll
		for i+1 < len(b.keys) && strings.HasPrefix(b.keys[i+1], roll) {
			i++
		}
	}
	page.Next = ""
	return page
}

func (b *memBucket) Get(context.Context, string, string, covey.Range) (io.ReadCloser, error) {
	return nil, covey.ErrUnavailable
}

func (b *memBucket) Put(context.Context, string, io.Reader, int64) (origin.Info, error) {
	return origin.Info{}, covey.ErrReadOnly
}

func (b *memBucket) Delete(context.Context, string) error { return covey.ErrReadOnly }

// open returns the data set of a bucket, closed with the test.
func open(t testing.TB, b origin.Bucket, prefix string, opts Options) *Dataset {
	d := New(&origin.Source{Bucket: b, Prefix: prefix, URL: "mem://bucket/" + prefix}, opts)
	t.Cleanup(d.Close)
	return d
}

// names reads a directory and returns its names, directories with a slash.
func names(t testing.TB, d *Dataset, path string) ([]string, error) {
	t.Helper()
	out := []string{}
	for e, err := range d.ReadDir(t.Context(), path) {
		if err != nil {
			return out, err
		}
		if e.Kind == Dir {
			e.Name += "/"
		}
		out = append(out, e.Name)
	}
	return out, nil
}
