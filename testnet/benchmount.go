package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/peer"
)

const (
	benchNames = 100_000 // entries of the directory that is listed
	benchStats = 20_000  // names that are looked up one by one
	benchOpens = 20_000
)

// mountBench measures what a mount costs over the native file system, row by row
// of the mount's budget. One agent has the same source mounted in both profiles.
type mountBench struct {
	*bench
	agent  *Process
	native string
	large  string // mount of profile large
	small  string // mount of profile small
	dir    string
	mounts int
	w      *tabwriter.Writer
}

// budgetRow is one row of the table.
type budgetRow struct {
	name, unit, budget string
	// ours and native measure one round each; native may be nil.
	ours, native func(ctx context.Context) (float64, error)
	gib          float64 // read in a round, where the agent's processor time counts
}

// BenchMount prints every row of the mount's budget that there is, native and
// mount in turn in one run.
func BenchMount(ctx context.Context, opts BenchOptions) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	dir, remove, err := benchDir("", "covey-bench-")
	if err != nil {
		return err
	}
	defer remove(&err)
	b := &mountBench{bench: newBench(opts), native: filepath.Join(dir, "native"), dir: dir}
	if err := errors.Join(b.makeFiles(b.native), b.makeNames()); err != nil {
		return err
	}
	cluster, err := NewCluster(ClusterOptions{Binary: opts.Binary, Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	b.large = filepath.Join(dir, "large")
	b.agent, err = cluster.Start(ctx, AgentSpec{
		Mounts: []peer.MountSpec{{Source: b.native, Dir: b.large}},
		Args:   []string{"--immutable", "--profile", "large"},
	})
	if err != nil {
		return err
	}
	if err := bringAll(ctx, b.agent.Client(), b.large); err != nil {
		return err
	}
	if b.small, err = b.mount(ctx, "small"); err != nil {
		return err
	}
	return b.table(ctx)
}

// makeNames makes the directory that is only listed.
func (b *mountBench) makeNames() error {
	dir := filepath.Join(b.native, "names")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range benchNames {
		f, err := os.Create(filepath.Join(dir, nameOf(i)))
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func nameOf(i int) string { return fmt.Sprintf("n%07d", i) }

// mount mounts the source once more, on a directory of its own: the kernel knows
// nothing of it.
func (b *mountBench) mount(ctx context.Context, profile string) (string, error) {
	b.mounts++
	at := filepath.Join(b.dir, fmt.Sprintf("m%d", b.mounts))
	if err := os.Mkdir(at, 0o755); err != nil {
		return "", err
	}
	_, err := b.agent.Client().Mount(ctx, gateway.MountRequest{Source: b.native, Dir: at, Profile: profile})
	return at, err
}

func (b *mountBench) table(ctx context.Context) error {
	b.w = tabwriter.NewWriter(b.opts.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(b.w, "item\tnative\tmount\tratio\tagent core-s/GiB\tbudget\t")
	for _, r := range b.rows() {
		if err := b.row(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	if err := b.w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(b.opts.Out, "medians of %d rounds, native and mount in turn; %d names in the listed directory\n", b.opts.Rounds, benchNames)
	return nil
}

func (b *mountBench) row(ctx context.Context, r budgetRow) error {
	var native, ours, ratios, cpu []float64
	for range b.opts.Rounds {
		n := 0.0
		if r.native != nil {
			var err error
			if n, err = r.native(ctx); err != nil {
				return err
			}
			native = append(native, n)
		}
		before, err := processorSeconds(b.agent.PID())
		if err != nil {
			return err
		}
		o, err := r.ours(ctx)
		if err != nil {
			return err
		}
		after, err := processorSeconds(b.agent.PID())
		if err != nil {
			return err
		}
		ours = append(ours, o)
		if n > 0 {
			ratios = append(ratios, o/n)
		}
		if r.gib > 0 {
			cpu = append(cpu, (after-before)/r.gib)
		}
	}
	fmt.Fprintf(b.w, "%s\t%s\t%.0f %s\t%s\t%s\t%s\t\n", r.name, number(native, "%.0f"), median(ours), r.unit, number(ratios, "%.2f"), number(cpu, "%.3f"), r.budget)
	return b.w.Flush()
}

func number(v []float64, format string) string {
	if len(v) == 0 {
		return "-"
	}
	return fmt.Sprintf(format, median(v))
}

// processorSeconds is what the process has used so far.
func processorSeconds(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, nil // USER_HZ is 100 on every Linux
}

func (b *mountBench) rows() []budgetRow {
	const gib = 1 << 30
	on := func(dir *string, f func(dir string) (float64, error)) func(context.Context) (float64, error) {
		return func(context.Context) (float64, error) { return f(*dir) }
	}
	one := func(dir string) (float64, error) { return b.bench.small(dir, 1) }
	eight := func(dir string) (float64, error) { return b.bench.small(dir, 8) }
	cold := func(f func(string) (float64, error)) func(string) (float64, error) {
		return func(dir string) (float64, error) {
			if err := b.dropFiles(); err != nil {
				return 0, err
			}
			return f(dir)
		}
	}
	smallGiB := float64(benchSmallFiles*benchSmallSize) / gib
	return []budgetRow{
		{"warm read, 1 MiB sequential", "MiB/s", "0.95, 0.01", on(&b.large, b.sequential), on(&b.native, b.sequential), benchLarge / gib},
		{"warm mmap", "MiB/s", "0.95", on(&b.large, mapped), on(&b.native, mapped), benchLarge / gib},
		{"served by the agent, 1 stream", "MiB/s", "2,384, 0.30", on(&b.small, b.served), on(&b.native, b.sequential), benchLarge / gib},
		{"re-read from FUSE's page cache", "MiB/s", "0.45", on(&b.small, b.sequential), on(&b.native, b.sequential), benchLarge / gib},
		{"small files warm, profile small, 1 thread", "files/s", "0.9", on(&b.small, one), on(&b.native, one), 0},
		{"small files warm, profile small, 8 threads", "files/s", "0.9", on(&b.small, eight), on(&b.native, eight), 0},
		{"small files warm, passthrough, 8 threads", "files/s", "15,000, 0.2", on(&b.large, eight), on(&b.native, eight), 0},
		{"small files, page cache cold, passthrough", "files/s", "6,000", on(&b.large, cold(eight)), on(&b.native, cold(eight)), 0},
		{"small files, page cache cold, in order, profile small", "files/s", "", b.inOrder, nil, smallGiB},
		{"open and close, passthrough", "a second", "15,400 (65 us)", on(&b.large, openClose), on(&b.native, openClose), 0},
		{"readdirplus and stat", "entries/s", "120,000", b.fresh(b.listing), on(&b.native, b.listing), 0},
		{"cold stat, 1 thread", "a second", "15,000", b.fresh(func(d string) (float64, error) { return b.stats(d, 1) }), on(&b.native, func(d string) (float64, error) { return b.stats(d, 1) }), 0},
		{"cold stat, 8 threads", "a second", "35,000", b.fresh(func(d string) (float64, error) { return b.stats(d, 8) }), on(&b.native, func(d string) (float64, error) { return b.stats(d, 8) }), 0},
		{"fill and read, local source", "MiB/s", "1,907", b.fill, nil, benchLarge / gib},
	}
}

// served reads the large file as the agent serves it.
func (b *mountBench) served(dir string) (float64, error) {
	if err := dropPages(filepath.Join(dir, "large")); err != nil {
		return 0, err
	}
	return b.sequential(dir)
}

// dropPages takes a file out of the page cache.
func dropPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// dropFiles takes the small files out of the page cache, the native ones and the
// cache's.
func (b *mountBench) dropFiles() error {
	unix.Sync()
	for _, dir := range []string{b.native, b.agent.CacheDir()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || d.Name()[0] == 'n' {
				return err
			}
			if err := dropPages(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mapped adds up one byte of each page of the large file through a mapping.
func mapped(dir string) (float64, error) {
	f, err := os.Open(filepath.Join(dir, "large"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	began := time.Now()
	p, err := unix.Mmap(int(f.Fd()), 0, benchLarge, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	sum := 0
	for i := 0; i < len(p); i += 4096 {
		sum += int(p[i])
	}
	took := time.Since(began).Seconds()
	if sum == 0 {
		return 0, errors.New("the mapping is empty")
	}
	return benchLarge / (1 << 20) / took, unix.Munmap(p)
}

// inOrder reads the small files of a fresh mount in the listing's order, after the
// names are known, with what the page cache has of them dropped.
func (b *mountBench) inOrder(ctx context.Context) (float64, error) {
	at, err := b.mount(ctx, "small")
	if err != nil {
		return 0, err
	}
	dirs, err := os.ReadDir(at)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, benchSmallSize+1)
	var took time.Duration
	for _, d := range dirs {
		if !d.IsDir() || d.Name() == "names" {
			continue
		}
		if _, err := lsLong(filepath.Join(at, d.Name())); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	for i := range benchSmallFiles {
		if err := readSmall(filepath.Join(at, smallName(i)), buf); err != nil {
			return 0, err
		}
	}
	took = time.Since(began)
	return benchSmallFiles / took.Seconds(), b.agent.Client().Unmount(ctx, at)
}

func openClose(dir string) (float64, error) {
	began := time.Now()
	for range benchOpens {
		fd, err := unix.Open(filepath.Join(dir, smallName(0)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Close(fd); err != nil {
			return 0, err
		}
	}
	return benchOpens / time.Since(began).Seconds(), nil
}

// fresh measures on a mount that the kernel knows nothing of; the agent knows the
// listing.
func (b *mountBench) fresh(f func(dir string) (float64, error)) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		at, err := b.mount(ctx, "large")
		if err != nil {
			return 0, err
		}
		rate, err := f(at)
		return rate, errors.Join(err, b.agent.Client().Unmount(ctx, at))
	}
}

// lsLong lists a directory with the attributes of every entry.
func lsLong(dir string) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return n, err
			}
			n++
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func (b *mountBench) listing(dir string) (float64, error) {
	began := time.Now()
	n, err := lsLong(filepath.Join(dir, "names"))
	if err == nil && n != benchNames {
		err = fmt.Errorf("%d entries", n)
	}
	return float64(n) / time.Since(began).Seconds(), err
}

// stats looks names up in a shuffled order.
func (b *mountBench) stats(dir string, threads int) (float64, error) {
	order := b.random.Perm(benchNames)[:benchStats]
	errs := make([]error, threads)
	var all sync.WaitGroup
	began := time.Now()
	for t := range threads {
		all.Go(func() {
			var st unix.Stat_t
			for i := t; i < len(order) && errs[t] == nil; i += threads {
				errs[t] = unix.Lstat(filepath.Join(dir, "names", nameOf(order[i])), &st)
			}
		})
	}
	all.Wait()
	return benchStats / time.Since(began).Seconds(), errors.Join(errs...)
}

// fill reads a file that the cache does not have.
func (b *mountBench) fill(ctx context.Context) (float64, error) {
	if _, err := b.agent.Client().Evict(ctx, filepath.Join(b.large, "large")); err != nil {
		return 0, err
	}
	// Another node of the kernel's: this mount has the file open-able as it was.
	at, err := b.mount(ctx, "large")
	if err != nil {
		return 0, err
	}
	rate, err := b.sequential(at)
	return rate, errors.Join(err, b.agent.Client().Unmount(ctx, at))
}
