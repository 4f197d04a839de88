package plan

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/covey-cache/covey"
)

func TestTensorFlow(t *testing.T) {
	var v struct {
		Shard []struct {
			N, Shards, Index uint64
			Order            []uint64
		}
		Interleave []struct {
			Records      []uint64
			Cycle, Block int
			Order        [][2]uint64
		}
	}
	readGolden(t, "tensorflow.json", &v)
	for _, c := range v.Shard {
		seq, err := Shard(c.N, c.Shards, c.Index)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Collect(seq); !slices.Equal(got, c.Order) {
			t.Errorf("shard %d of %d of %d elements:\n got %v\nwant %v", c.Index, c.Shards, c.N, got, c.Order)
		}
	}
	for _, c := range v.Interleave {
		seq, err := Interleave(c.Records, c.Cycle, c.Block)
		if err != nil {
			t.Fatal(err)
		}
		var got [][2]uint64
		for r := range seq {
			got = append(got, [2]uint64{uint64(r.File), r.Index})
		}
		if !slices.Equal(got, c.Order) {
			t.Errorf("interleave %v, cycle %d, block %d:\n got %v\nwant %v", c.Records, c.Cycle, c.Block, got, c.Order)
		}
	}
	if len(v.Shard) == 0 || len(v.Interleave) == 0 {
		t.Error("tensorflow.json lacks vectors")
	}
}

func TestTensorFlowEdges(t *testing.T) {
	for _, c := range [][3]uint64{{1, 0, 0}, {1, 2, 2}} {
		if _, err := Shard(c[0], c[1], c[2]); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("shard %v: %v", c, err)
		}
	}
	seq, err := Shard(math.MaxUint64, math.MaxUint64-1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(seq); !slices.Equal(got, []uint64{0, math.MaxUint64 - 1}) {
		t.Errorf("at the end of uint64: %v", got)
	}
	for _, c := range [][2]int{{0, 1}, {1, 0}, {-1, 1}} {
		if _, err := Interleave([]uint64{1}, c[0], c[1]); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("interleave %v: %v", c, err)
		}
	}
	none, err := Interleave(nil, 4, 1)
	if err != nil {
		t.Fatal(err)
	}
	for r := range none {
		t.Errorf("no files gave %v", r)
	}
	endless, err := Interleave([]uint64{math.MaxUint64, math.MaxUint64}, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	for r := range endless {
		if r.Index == 3 {
			break
		}
	}
}
