package mount

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// Every benchmark reads the same bytes from a native file in the same run,
// alternating, and reports the mount's speed as a ratio to it: 1 is native.

// benchFile is a file of the cache, mounted and whole, beside its native twin.
func benchFile(b *testing.B, size int64) (m *mounted, ours, native string) {
	names := newFakeNames()
	names.opts.BlockSize = covey.DefaultBlockSize
	names.file("f", "v1", size)
	m = start(b, names, Options{})
	m.blocks.fill(b, "f")
	native = filepath.Join(b.TempDir(), "f")
	w, err := os.Create(native)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	e, _ := names.current("f")
	r, err := m.blocks.OpenWhole(names.Object("f", e))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(w, r); err != nil {
		b.Fatal(err)
	}
	return m, m.path("f"), native
}

// compare times both in turns and reports what the mount does.
func compare(b *testing.B, bytes int64, ours, native func()) {
	ours() // both warm
	native()
	var took, reference time.Duration
	b.ResetTimer()
	for b.Loop() {
		t0 := time.Now()
		native()
		t1 := time.Now()
		ours()
		took += time.Since(t1)
		reference += t1.Sub(t0)
	}
	b.ReportMetric(reference.Seconds()/took.Seconds(), "x-native")
	b.ReportMetric(float64(bytes)*float64(b.N)/took.Seconds()/1e6, "MB/s")
}

const benchSize = 256 << 20

func sequential(b *testing.B, name string, buf []byte) {
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Read(buf); err == io.EOF {
			return
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWarmSequential(b *testing.B) {
	_, ours, native := benchFile(b, benchSize)
	buf := make([]byte, 1<<20)
	compare(b, benchSize, func() { sequential(b, ours, buf) }, func() { sequential(b, native, buf) })
}

func benchRandom(b *testing.B, size, reads int) {
	_, ours, native := benchFile(b, benchSize)
	buf := make([]byte, size)
	pass := func(name string) func() {
		return func() {
			f, err := os.Open(name)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			rng := rand.New(rand.NewPCG(1, 2))
			for range reads {
				if _, err := f.ReadAt(buf, rng.Int64N(benchSize-int64(size))&^4095); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	compare(b, int64(size*reads), pass(ours), pass(native))
}

func BenchmarkRandom128K(b *testing.B) { benchRandom(b, 128<<10, 1000) }
func BenchmarkRandom4K(b *testing.B)   { benchRandom(b, 4<<10, 10_000) }

// BenchmarkDaemonSequential reads a file that is not passed through, first as
// the daemon serves it, then from the kernel's page cache of the mount.
func BenchmarkDaemonSequential(b *testing.B) {
	m, ours, native := benchFile(b, benchSize)
	m.tree.passthrough.disable("the benchmark measures the daemon")
	buf := make([]byte, 1<<20)
	for _, kept := range []bool{false, true} {
		b.Run(fmt.Sprintf("kept=%v", kept), func(b *testing.B) {
			compare(b, benchSize, func() {
				if !kept {
					dropPages(b, ours)
				}
				sequential(b, ours, buf)
			}, func() { sequential(b, native, buf) })
		})
	}
}

// dropPages takes the file out of the page cache of the mount.
func dropPages(b *testing.B, name string) {
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSmallFiles opens, reads and closes files of 110 KiB in random order.
func BenchmarkSmallFiles(b *testing.B) {
	const files, size = 2000, 110 << 10
	names := newFakeNames()
	names.opts.BlockSize = covey.DefaultBlockSize
	names.opts.Immutable = true
	for i := range files {
		names.file(fmt.Sprintf("f%05d", i), "v1", size)
	}
	m := start(b, names, Options{})
	native := b.TempDir()
	for i := range files {
		name := fmt.Sprintf("f%05d", i)
		m.blocks.fill(b, name)
		if err := os.WriteFile(filepath.Join(native, name), wanted(name, "v1", size), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for _, threads := range []int{1, 8} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			order := rand.New(rand.NewPCG(3, 4)).Perm(files)
			pass := func(dir string) func() {
				return func() {
					var wg sync.WaitGroup
					for w := range threads {
						wg.Go(func() {
							buf := make([]byte, size)
							for i := w; i < files; i += threads {
								f, err := os.Open(filepath.Join(dir, fmt.Sprintf("f%05d", order[i])))
								if err != nil {
									b.Error(err)
									return
								}
								if _, err := io.ReadFull(f, buf); err != nil {
									b.Error(err)
								}
								f.Close()
							}
						})
					}
					wg.Wait()
				}
			}
			compare(b, files*size, pass(m.dir), pass(native))
		})
	}
}

// BenchmarkPush pushes files of 110 KiB into the page cache, forgets them and
// reports files a second and processor seconds per GiB.
func BenchmarkPush(b *testing.B) {
	const files, size = 4000, 110 << 10
	names := newFakeNames()
	names.opts.BlockSize = covey.DefaultBlockSize
	names.opts.Immutable = true
	for i := range files {
		names.file(fmt.Sprintf("d/f%05d", i), "v1", size)
	}
	m := start(b, names, Options{Profile: Small, PushBudget: 8 << 30, PushRate: 1 << 40})
	for i := range files {
		m.blocks.fill(b, fmt.Sprintf("d/f%05d", i))
	}
	m.list(b, "d")
	var took, cpu time.Duration
	for b.Loop() {
		began, used := time.Now(), processorTime(b)
		done, err := m.Push(b.Context(), "")
		took += time.Since(began)
		cpu += processorTime(b) - used
		if err != nil || done.Files != files {
			b.Fatalf("pushed %+v, %v", done, err)
		}
		m.tree.pusher.dropAll()
	}
	if n := m.Status().Reads; n != 0 {
		b.Fatalf("%d reads", n)
	}
	total := float64(b.N) * files
	b.ReportMetric(total/took.Seconds(), "files/s")
	b.ReportMetric(cpu.Seconds()/(total*size/(1<<30)), "core-s/GiB")
}

// dropAll takes every pushed file out of the kernel's page cache.
func (p *pusher) dropAll() {
	budget := p.budget
	p.budget = 0
	p.makeRoom()
	p.budget = budget
}

func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
