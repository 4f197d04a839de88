package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/origin"
)

const (
	coldLatency   = 20 * time.Millisecond
	coldRate      = 1 << 30 // bytes a second, all requests together
	coldLarge     = 2 << 30
	coldFiles     = 20_000
	coldFileSize  = 16 << 10
	coldReaders   = 8
	coldInFlight  = 32 + coldReaders // what prefetch begins at once, and the readers
	coldDirectory = "small"
)

// slowOrigin makes up one large object and many small ones: the first byte after
// 20 ms, and 1 GiB a second for all requests together. A real server that fast
// would need more processor time than the mount under test.
type slowOrigin struct {
	origin.Bucket // nothing else is called
	bytes         []byte
	gets          atomic.Int64
	mu            sync.Mutex
	free          time.Time // when the line is free
}

func (o *slowOrigin) Origin() string { return "slow:///bench" }

func (o *slowOrigin) info(key string, size int64) origin.Info {
	return origin.Info{Key: key, Size: size, Version: "v1", ModTime: time.Unix(1_700_000_000, 0)}
}

func (o *slowOrigin) List(_ context.Context, req origin.ListRequest) (origin.Page, error) {
	if req.Prefix == "" {
		return origin.Page{Objects: []origin.Info{o.info("large", coldLarge)}, Prefixes: []string{coldDirectory + "/"}}, nil
	}
	first := 0
	if req.Token != "" {
		if _, err := fmt.Sscan(req.Token, &first); err != nil {
			return origin.Page{}, err
		}
	}
	var page origin.Page
	for i := first; i < min(first+1000, coldFiles); i++ {
		page.Objects = append(page.Objects, o.info(req.Prefix+nameOf(i), coldFileSize))
	}
	if first+1000 < coldFiles {
		page.Next = fmt.Sprint(first + 1000)
	}
	return page, nil
}

func (o *slowOrigin) Get(ctx context.Context, _, _ string, r covey.Range) (io.ReadCloser, error) {
	o.gets.Add(1)
	select {
	case <-time.After(coldLatency):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &slowBody{o: o, left: r.Len}, nil
}

// slowBody is one answer; its bytes take their turn on the line.
type slowBody struct {
	o    *slowOrigin
	left int64
}

func (b *slowBody) Close() error { return nil }

func (b *slowBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.o.bytes[:min(int64(len(p)), b.left, int64(len(b.o.bytes)))])
	b.left -= int64(n)
	b.o.mu.Lock()
	now := time.Now()
	if b.o.free.Before(now) {
		b.o.free = now
	}
	b.o.free = b.o.free.Add(time.Duration(n) * time.Second / coldRate)
	wait := b.o.free.Sub(now)
	b.o.mu.Unlock()
	if wait > time.Millisecond {
		time.Sleep(wait)
	}
	return n, nil
}

// alone is the directory of a mesh of one: every block is granted to who asks.
type alone struct{ lease atomic.Uint64 }

func (a *alone) Resolve(_ context.Context, w dht.Want) (dht.Plan, error) {
	var p dht.Plan
	for slot := range w.Need.Slots() {
		p.Blocks = append(p.Blocks, dht.BlockPlan{Slot: slot, State: dht.Granted, Lease: a.lease.Add(1), TTL: time.Minute})
	}
	return p, nil
}
func (*alone) Done(context.Context, covey.PeerID, dht.Outcome) error { return nil }
func (*alone) Progress(context.Context, []dht.Reading) error         { return nil }
func (*alone) Announce(dht.Have)                                     {}

type nobody struct{}

func (nobody) Fetch(context.Context, covey.PeerID, covey.Locator, []byte, bool) error {
	return covey.ErrNotFound
}

type slowOrigins struct{ *slowOrigin }

func (o slowOrigins) Open(ctx context.Context, x covey.Object, r covey.Range) (io.ReadCloser, error) {
	return o.Get(ctx, x.Key, x.Version, r)
}

type coldBlocks struct {
	*fetch.Fetcher
	store *blockstore.Store
}

func (b coldBlocks) OpenWhole(o covey.Object) (*os.File, error) {
	f, err := b.store.OpenWhole(o)
	if err == nil || o.Blocks() > 2 || !b.Admitted(o) {
		return f, err
	}
	return b.store.OpenWhole(o)
}

// BenchCold measures first reads from an origin with 20 ms to the first byte and
// 1 GiB/s, made up in this process, through mount, fetcher and store on tmpfs.
func BenchCold(ctx context.Context, opts BenchOptions) (err error) {
	dir, remove, err := benchDir("/dev/shm", "covey-cold-")
	if err != nil {
		return err
	}
	defer remove(&err)
	o := &slowOrigin{bytes: bytes.Repeat([]byte("covey!!\n"), 1<<17)}
	var large, small []float64
	for round := range opts.Rounds {
		l, s, err := coldRound(ctx, opts.Out, filepath.Join(dir, fmt.Sprint(round)), o)
		if err != nil {
			return err
		}
		large, small = append(large, l), append(small, s)
	}
	fmt.Fprintf(opts.Out, "cold sequential: %.2f x the origin's rate in the same round (budget 0.9)\n", median(large))
	fmt.Fprintf(opts.Out, "cold small files: %.2f x min(origin rate, requests in flight / latency) (budget 0.8)\n", median(small))
	return nil
}

// coldRound reads everything once through a mount over an empty store, and the
// origin's own bytes without one.
func coldRound(ctx context.Context, out io.Writer, dir string, o *slowOrigin) (large, small float64, err error) {
	at := filepath.Join(dir, "m")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return 0, 0, err
	}
	store, err := blockstore.Open(blockstore.Options{Dir: filepath.Join(dir, "cache"), Budget: 4 << 30})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, store.Close(), os.RemoveAll(filepath.Join(dir, "cache"))) }()
	ds := dataset.New(&origin.Source{Bucket: o, URL: "slow:///bench"}, dataset.Options{MaxAge: time.Hour})
	defer ds.Close()
	f := fetch.New(fetch.Options{Store: store, Directory: &alone{}, Exchange: nobody{}, Origins: slowOrigins{o}})
	m, err := mount.New(ds, coldBlocks{f, store}, at, mount.Options{Profile: mount.Large})
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = f.Run(ctx) })
	running.Go(func() { err = errors.Join(err, m.Run(ctx)) })
	defer running.Wait()
	defer cancel()
	<-m.Ready()

	reference, err := o.rate(ctx)
	if err != nil {
		return 0, 0, err
	}
	rate, first, err := coldSequential(filepath.Join(at, "large"))
	if err != nil {
		return 0, 0, err
	}
	files, err := coldSmall(filepath.Join(at, coldDirectory))
	if err != nil {
		return 0, 0, err
	}
	bound := min(coldRate/coldFileSize, float64(coldInFlight)/coldLatency.Seconds())
	fmt.Fprintf(out, "origin %.0f MiB/s by 8 requests at a time; large file %.0f MiB/s (first second %.0f); small files %.0f a second of %.0f\n",
		reference, rate, first, files, bound)
	return rate / reference, files / bound, nil
}

// rate is what the origin gives to eight requests of 4 MiB at a time.
func (o *slowOrigin) rate(ctx context.Context) (float64, error) {
	const total, size = 1 << 30, 4 << 20
	var next atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, 8)
	began := time.Now()
	for i := range errs {
		all.Go(func() {
			buf := make([]byte, size)
			for next.Add(size) <= total && errs[i] == nil {
				var rc io.ReadCloser
				if rc, errs[i] = o.Get(ctx, "", "", covey.Range{Len: size}); errs[i] == nil {
					_, errs[i] = io.ReadFull(rc, buf)
				}
			}
		})
	}
	all.Wait()
	return float64(total) / (1 << 20) / time.Since(began).Seconds(), errors.Join(errs...)
}

func coldSequential(path string) (rate, firstSecond float64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	began := time.Now()
	var total int64
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if took := time.Since(began); firstSecond == 0 && took >= time.Second {
			firstSecond = float64(total) / (1 << 20) / took.Seconds()
		}
		if errors.Is(err, io.EOF) {
			return float64(total) / (1 << 20) / time.Since(began).Seconds(), firstSecond, nil
		}
		if err != nil {
			return 0, 0, err
		}
		if !strings.HasPrefix(string(buf[:8]), "covey!!\n") {
			return 0, 0, fmt.Errorf("wrong bytes in front of %d", total)
		}
	}
}

// coldSmall reads the directory's files in order, with eight readers side by side.
func coldSmall(dir string) (float64, error) {
	return filesASecond(coldFiles, coldReaders, coldFileSize, func(i int) string { return filepath.Join(dir, nameOf(i)) })
}
