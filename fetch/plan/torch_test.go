package plan

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"github.com/covey-cache/covey"
)

type torchVectors struct {
	Random64 []struct {
		Seed uint64 `json:",string"`
		At   map[string]string
	}
	Randperm    []permutationCase
	WideSmall   []permutationCase `json:"wide_small"`
	Distributed []struct {
		N     uint64
		Seed  uint64 `json:",string"`
		Epoch uint32
		World uint32
		Rank  uint32
		golden
		Shuffle  bool
		DropLast bool `json:"drop_last"`
	}
}

func readTorch(t testing.TB) torchVectors {
	var v torchVectors
	readGolden(t, "torch.json", &v)
	if len(v.Random64) == 0 || len(v.Randperm) == 0 || len(v.WideSmall) == 0 || len(v.Distributed) == 0 {
		t.Fatal("torch.json lacks vectors")
	}
	return v
}

func TestRandom64(t *testing.T) {
	for _, c := range readTorch(t).Random64 {
		var rng twister
		rng.seed(c.Seed)
		seen := 0
		for i := range 1300 {
			got := rng.uint64()
			if want, ok := c.At[strconv.Itoa(i)]; ok {
				seen++
				if want != strconv.FormatUint(got, 10) {
					t.Errorf("seed %d: number %d is %d, want %s", c.Seed, i, got, want)
				}
			}
		}
		if seen != len(c.At) {
			t.Errorf("seed %d: compared %d numbers of %d", c.Seed, seen, len(c.At))
		}
	}
}

func TestPermutation(t *testing.T) {
	for _, c := range readTorch(t).Randperm {
		t.Run(fmt.Sprintf("n=%d,seed=%d", c.N, c.Seed), func(t *testing.T) {
			got, err := Permutation(t.Context(), c.N, c.Seed)
			if err != nil {
				t.Fatal(err)
			}
			c.check(t, got)
		})
	}
}

// TestPermutationWide takes the way of huge sizes for small ones; BenchmarkWide
// takes it where torch does.
func TestPermutationWide(t *testing.T) {
	for _, c := range readTorch(t).WideSmall {
		s := newShuffle(c.N, c.Seed, true)
		for s.drawn < c.N {
			if s.final() != 0 {
				t.Fatalf("n=%d: %d positions are final after %d draws", c.N, s.final(), s.drawn)
			}
			s.step(1)
		}
		got := make([]uint32, c.N)
		for i := range got {
			got[i] = s.at(uint64(i))
		}
		c.check(t, got)
	}
}

func TestPermutationRefuses(t *testing.T) {
	if _, err := Permutation(t.Context(), MaxSamples+1, 0); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("too many samples: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Permutation(ctx, 10, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDistributedSampler(t *testing.T) {
	for _, c := range readTorch(t).Distributed {
		name := fmt.Sprintf("n=%d,world=%d,rank=%d,seed=%d,epoch=%d,shuffle=%t,drop=%t",
			c.N, c.World, c.Rank, c.Seed, c.Epoch, c.Shuffle, c.DropLast)
		t.Run(name, func(t *testing.T) {
			o := mustOrder(t, Spec{
				Samples: c.N, Seed: c.Seed, Epoch: c.Epoch, World: c.World,
				Shuffle: c.Shuffle, DropLast: c.DropLast,
			})
			c.check(t, readAll(t, o, c.Rank, 1000))
		})
	}
}
