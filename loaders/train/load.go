// Package train behaves towards its files as a training job does: it reads
// batches with threads of its own, and computes on them by sleeping.
//
// The loads are those of MLPerf Storage, with its figures for one H100. Its rules
// forbid to tell the storage what will be read; a run with a plan is therefore
// another measurement than one without, and is reported as such.
package train

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/covey-cache/covey"
)

// Load is what one accelerator asks of its storage.
type Load struct {
	Name string
	// SampleBytes is the mean length of a sample, and Stdev its deviation.
	SampleBytes, Stdev float64
	// FileSamples is how many samples a file has.
	FileSamples int
	// Batch is how many samples are computed on at once, and Compute how long
	// that takes.
	Batch   int
	Compute time.Duration
	// Threads read for one accelerator.
	Threads int
	// Bar is the utilisation that the benchmark asks for.
	Bar float64
}

// Loads are the emulated ones, by name.
var Loads = map[string]Load{
	"unet3d": {
		Name: "unet3d", SampleBytes: 146_600_628, Stdev: 68_341_808, FileSamples: 1,
		Batch: 7, Compute: 323 * time.Millisecond, Threads: 4, Bar: .90,
	},
	"resnet50": {
		Name: "resnet50", SampleBytes: 114_660, FileSamples: 1251,
		Batch: 400, Compute: 224 * time.Millisecond, Threads: 8, Bar: .90,
	},
	"cosmoflow": {
		Name: "cosmoflow", SampleBytes: 2_828_486, Stdev: 71_311, FileSamples: 1,
		Batch: 1, Compute: 3500 * time.Microsecond, Threads: 4, Bar: .70,
	},
}

// Scaled returns the load with samples of so much of their length. What an
// accelerator asks for in a second becomes that much less; the computing and the
// number of requests stay.
func (l Load) Scaled(scale float64) Load {
	l.SampleBytes, l.Stdev = l.SampleBytes*scale, l.Stdev*scale
	return l
}

// Rate is what one accelerator asks for in a second when it never waits, in
// bytes.
func (l Load) Rate() float64 { return l.SampleBytes * float64(l.Batch) / l.Compute.Seconds() }

// sizes returns the lengths of n files, the same each time.
func (l Load) sizes(n int) []int64 {
	random := rand.New(rand.NewPCG(0x636f766579, uint64(n)))
	all := make([]int64, n)
	for i := range all {
		one := l.SampleBytes + l.Stdev*random.NormFloat64()
		// No sample is shorter than a hundredth of the mean, as in the benchmark.
		one = math.Max(one, l.SampleBytes/100)
		all[i] = max(int64(one), 1) * int64(l.FileSamples)
	}
	return all
}

// Generate writes n files of the load into a directory, which it makes. The names
// are in the order of their numbers. It refuses a directory with files in it.
func (l Load) Generate(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		return fmt.Errorf("generate a data set in %s: it is not empty, or cannot be read: %w", dir, covey.ErrInvalid)
	}
	random := rand.NewChaCha8([32]byte{'c', 'o', 'v', 'e', 'y'})
	block := make([]byte, 1<<20)
	for i, size := range l.sizes(n) {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s_%07d", l.Name, i)))
		if err != nil {
			return err
		}
		for left := size; left > 0 && err == nil; {
			k := min(left, int64(len(block)))
			_, _ = random.Read(block[:k]) // it never fails
			_, err = f.Write(block[:k])
			left -= k
		}
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("generate a data set in %s: %w", dir, err)
		}
	}
	return nil
}
