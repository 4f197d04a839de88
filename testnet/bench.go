package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/peer"
)

// BenchOptions configure the measurement of warm reads.
type BenchOptions struct {
	// Binary is the covey program.
	Binary string
	// Rounds is how often everything is measured; medians count.
	Rounds int
	Out    io.Writer
}

const (
	benchLarge      = 1 << 30    // the large file: more than any processor cache, well under memory
	benchSmallFiles = 10_000     // as many as the issue of small files names
	benchSmallSize  = 100 << 10  // the size of an ImageNet photograph
	benchSmallDir   = 1000       // files a directory
	benchRandomSpan = 256 << 20  // bytes moved by one round of 128 KiB reads
	benchRandom4K   = 100_000    // 4 KiB reads a round
	benchSeed       = 0x636f7665 // any number will do; a fixed one makes runs alike
)

// measure is one kind of read, done below a directory. It returns a rate; the
// ratio of two rates is what counts.
type measure struct {
	name, unit string
	run        func(b *bench, dir string) (float64, error)
}

var measures = []measure{
	{"1 MiB sequential", "MiB/s", (*bench).sequential},
	{"128 KiB random", "MiB/s", (*bench).random128K},
	{"4 KiB random", "reads/s", (*bench).random4K},
	{"open+read+close, 100 KiB files, 1 thread", "files/s", func(b *bench, dir string) (float64, error) { return b.small(dir, 1) }},
	{"open+read+close, 100 KiB files, 8 threads", "files/s", func(b *bench, dir string) (float64, error) { return b.small(dir, 8) }},
}

// bench is one run.
type bench struct {
	opts   BenchOptions
	random *rand.Rand
	order  []int // of small files
}

// Bench measures warm reads through a mount against the same reads of the native
// files, in turn in one run, and prints the medians and their ratio. The files
// are on the same file system as the cache.
func Bench(ctx context.Context, opts BenchOptions) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	dir, remove, err := benchDir("", "covey-bench-")
	if err != nil {
		return err
	}
	defer remove(&err)
	native, at := filepath.Join(dir, "native"), filepath.Join(dir, "mount")
	b := newBench(opts)
	if err := b.makeFiles(native); err != nil {
		return err
	}
	cluster, err := NewCluster(ClusterOptions{Binary: opts.Binary, Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	p, err := cluster.Start(ctx, AgentSpec{Mounts: []peer.MountSpec{{Source: native, Dir: at}}})
	if err != nil {
		return err
	}
	if err := bringAll(ctx, p.Client(), at); err != nil {
		return err
	}
	return b.compare(ctx, native, at, p)
}

func newBench(opts BenchOptions) *bench {
	b := &bench{opts: opts, random: rand.New(rand.NewPCG(benchSeed, 0))}
	b.order = b.random.Perm(benchSmallFiles)
	return b
}

// bringAll prefetches everything below a path and waits for it.
func bringAll(ctx context.Context, c *gateway.Client, path string) error {
	j, err := c.Prefetch(ctx, gateway.PrefetchRequest{Path: path})
	for err == nil && j.State == "running" {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		j, err = c.Job(ctx, j.ID)
	}
	if err == nil && j.State != "done" {
		err = fmt.Errorf("prefetch %s: %s: %s", path, j.State, j.Error)
	}
	return err
}

func (b *bench) makeFiles(dir string) error {
	block := make([]byte, 1<<20)
	fill := func() {
		for i := 0; i < len(block); i += 8 {
			v := b.random.Uint64()
			for k := range 8 {
				block[i+k] = byte(v >> (8 * k))
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	large, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		return err
	}
	defer large.Close()
	for range benchLarge / len(block) {
		fill()
		if _, err := large.Write(block); err != nil {
			return err
		}
	}
	for i := range benchSmallFiles {
		if i%benchSmallDir == 0 {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, smallName(i))), 0o755); err != nil {
				return err
			}
		}
		if i%8 == 0 {
			fill()
		}
		off := i % 8 * benchSmallSize
		if err := os.WriteFile(filepath.Join(dir, smallName(i)), block[off:off+benchSmallSize], 0o644); err != nil {
			return err
		}
	}
	return nil
}

func smallName(i int) string { return fmt.Sprintf("d%02d/f%05d", i/benchSmallDir, i) }

// compare runs every measure on both, in turn, and prints medians.
func (b *bench) compare(ctx context.Context, native, at string, p *Process) error {
	w := tabwriter.NewWriter(b.opts.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "warm read\tnative\tthrough the mount\tratio\t")
	for _, m := range measures {
		var rates [2][]float64
		var ratios []float64
		for round := range b.opts.Rounds + 1 {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			var rate [2]float64
			for i, dir := range [2]string{native, at} {
				r, err := m.run(b, dir)
				if err != nil {
					return fmt.Errorf("%s in %s: %w", m.name, dir, err)
				}
				rate[i] = r
			}
			if round == 0 {
				continue // it filled the page cache
			}
			rates[0], rates[1] = append(rates[0], rate[0]), append(rates[1], rate[1])
			ratios = append(ratios, rate[1]/rate[0])
		}
		fmt.Fprintf(w, "%s\t%.0f %s\t%.0f %s\t%.2f\t\n", m.name, median(rates[0]), m.unit, median(rates[1]), m.unit, median(ratios))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	s, err := p.Client().Status(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.opts.Out, "medians of %d rounds; opens passed through %d, served by the agent %d\n",
		b.opts.Rounds, s.Mounts[0].OpensPassthrough, s.Mounts[0].OpensDaemon)
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func (b *bench) sequential(dir string) (float64, error) {
	f, err := os.Open(filepath.Join(dir, "large"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	began := time.Now()
	var total int64
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return float64(total) / (1 << 20) / time.Since(began).Seconds(), nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func (b *bench) random128K(dir string) (float64, error) {
	const size = 128 << 10
	rate, err := b.randomReads(dir, size, benchRandomSpan/size)
	return rate * size / (1 << 20), err
}

func (b *bench) random4K(dir string) (float64, error) {
	return b.randomReads(dir, 4<<10, benchRandom4K)
}

// randomReads returns reads per second of n reads at random multiples of size.
func (b *bench) randomReads(dir string, size, n int) (float64, error) {
	f, err := os.Open(filepath.Join(dir, "large"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(benchSeed, uint64(size)))
	buf := make([]byte, size)
	began := time.Now()
	for range n {
		if _, err := f.ReadAt(buf, random.Int64N(benchLarge/int64(size))*int64(size)); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// small opens, reads and closes every small file once in a shuffled order.
func (b *bench) small(dir string, threads int) (float64, error) {
	return filesASecond(benchSmallFiles, threads, benchSmallSize, func(i int) string {
		return filepath.Join(dir, smallName(b.order[i]))
	})
}

// filesASecond opens, reads and closes n files of one size, in order, by so many
// threads side by side.
func filesASecond(n, threads, size int, path func(i int) string) (float64, error) {
	errs := make([]error, threads)
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for t := range threads {
		all.Go(func() {
			buf := make([]byte, size+1)
			for errs[t] == nil {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				errs[t] = readSmall(path(i), buf)
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(began).Seconds(), errors.Join(errs...)
}

// readSmall reads a file that is one byte shorter than buf.
func readSmall(path string, buf []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.ReadFull(f, buf)
	if n != len(buf)-1 {
		return fmt.Errorf("%s: %d bytes: %w", path, n, err)
	}
	return nil
}
