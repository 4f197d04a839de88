package mount

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/covey-cache/covey/origin"
)

// writeBytes is what one round writes to each place: enough to be past the start
// of a file, and little enough to stay in the page cache of a small machine.
const writeBytes = 256 << 20

// timeWrite writes to a file that has no name any more, so that nothing is
// uploaded, and returns bytes per second.
func timeWrite(b *testing.B, dir string, step int) float64 {
	b.Helper()
	name := filepath.Join(dir, "bench")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(name); err != nil {
		b.Fatal(err)
	}
	p := noise(step, 1)
	began := time.Now()
	for range writeBytes / step {
		if _, err := f.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	return writeBytes / time.Since(began).Seconds()
}

// BenchmarkWrite writes in requests of 1 MiB and of 128 KiB natively, passed
// through and served, in turns, and reports the medians of the ratios. Have TMPDIR
// be a tmpfs: a disk's write-back is slower than all three.
func BenchmarkWrite(b *testing.B) {
	passed := startWritable(b, b.TempDir(), origin.Options{}, false)
	served := startWritable(b, b.TempDir(), origin.Options{}, true)
	if s := passed.Status(); !s.Passthrough {
		b.Skipf("no passthrough here: %s", s.PassthroughWhy)
	}
	for _, size := range []struct {
		name string
		step int
	}{{"1MiB", 1 << 20}, {"128KiB", 128 << 10}} {
		b.Run(size.name, func(b *testing.B) {
			var natives, ratios, serves []float64
			// Each is timed behind an untimed write whose pages it can have: memory
			// that the host has to find first is slower than all three.
			timed := func(dir string) float64 {
				timeWrite(b, passed.staging.dir, 1<<20)
				return timeWrite(b, dir, size.step)
			}
			for range max(b.N, 5) {
				native := timed(passed.staging.dir)
				natives = append(natives, native/1e9)
				ratios = append(ratios, timed(passed.dir)/native)
				serves = append(serves, timed(served.dir)/1e9)
			}
			b.ReportMetric(median(natives), "native-GB/s")
			b.ReportMetric(median(ratios), "passthrough/native")
			b.ReportMetric(median(serves), "served-GB/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
