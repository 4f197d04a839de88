package train

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small is a load of files that take no time to make.
func small() Load {
	return Load{Name: "small", SampleBytes: 3000, Stdev: 500, FileSamples: 5, Batch: 4, Compute: 2 * time.Millisecond, Threads: 3}
}

func TestRunReadsEverySampleOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	l := small()
	if err := l.Generate(dir, 24); err != nil {
		t.Fatal(err)
	}
	if err := l.Generate(dir, 24); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("generated twice: %v", err)
	}
	var size int64
	for _, n := range l.sizes(24) {
		size += n
	}
	var mu sync.Mutex
	taken := map[int]uint64{}
	between := 0
	o := Options{
		Load: l, Dir: dir, Epochs: 3, Ranks: []uint32{0, 1}, World: 2, Seed: 9, Compute: true,
		Taken: func(rank int, files uint64) {
			mu.Lock()
			defer mu.Unlock()
			taken[rank] = max(taken[rank], files)
		},
		Between: func(int) error { between++; return nil },
	}
	epochs, err := Run(t.Context(), o)
	if err != nil || len(epochs) != 3 || between != 4 {
		t.Fatalf("%d epochs, %d between, %v", len(epochs), between, err)
	}
	for i, e := range epochs {
		// 12 files of 5 samples a rank are 15 batches of 4.
		if e.Bytes != size || e.Samples != 24*5 {
			t.Errorf("epoch %d: %d samples, %d bytes, want %d and %d", i, e.Samples, e.Bytes, 24*5, size)
		}
		if e.FirstBatch <= 0 || e.FirstBatch > e.Took || e.Utilisation <= 0 || e.Utilisation > 1 {
			t.Errorf("epoch %d: %+v", i, e)
		}
	}
	if taken[0] != 36 || taken[1] != 36 {
		t.Errorf("taken %v", taken)
	}
}

func TestRunEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	l := small()
	if err := l.Generate(dir, 8); err != nil {
		t.Fatal(err)
	}
	o := Options{Load: l, Dir: dir, Epochs: 1, Ranks: []uint32{0}, World: 1, Compute: true}
	o.Load.Compute = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "small_0000003")); err != nil {
		t.Fatal(err)
	}
	o.World = 9
	if _, err := Run(t.Context(), o); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("fewer files than ranks: %v", err)
	}
	o.World, o.Ranks, o.Load.Compute = 1, nil, 0
	if _, err := Run(t.Context(), o); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("no ranks: %v", err)
	}
}

// The loads ask for what the benchmark's authors say of an H100.
func TestRates(t *testing.T) {
	for name, want := range map[string]float64{"unet3d": 3.18e9, "resnet50": .205e9, "cosmoflow": .81e9} {
		if got := Loads[name].Rate(); got < want*.98 || got > want*1.02 {
			t.Errorf("%s asks for %.3g bytes a second, want %.3g", name, got, want)
		}
	}
}
