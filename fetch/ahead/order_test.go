package ahead

import (
	"context"
	"errors"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// readRank reads a rank's whole order, so many at a time.
func readRank(t *testing.T, o *Order, rank uint32, at int) []uint32 {
	t.Helper()
	var all []uint32
	for buf := make([]uint32, at); ; {
		n, err := o.Read(context.Background(), rank, uint64(len(all)), buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		all = append(all, buf[:n]...)
	}
}

// An order of many epochs is the orders of its epochs, one after the other; what
// a resumed job had done counts in the first only.
func TestOrderGoesThroughEpochs(t *testing.T) {
	for _, spec := range []plan.Spec{
		{Samples: 103, World: 4, Seed: 7, Epoch: 3, Shuffle: true},
		{Samples: 103, World: 4, Seed: 7, Epoch: 3, Base: 40, Shuffle: true, DropLast: true},
		{Samples: 103, World: 4, Base: 200},
		{Samples: 3, World: 8, Shuffle: true, DropLast: true},
	} {
		o, err := NewOrder(spec, 5)
		if err != nil {
			t.Fatal(err)
		}
		for rank := range spec.World {
			var want []uint32
			for e := range uint32(5) {
				s := spec
				s.Epoch += e
				if e > 0 {
					s.Base = 0
				}
				one, err := plan.NewOrder(s)
				if err != nil {
					t.Fatal(err)
				}
				buf := make([]uint32, s.PerRank())
				if _, err := one.Read(t.Context(), rank, 0, buf); err != nil {
					t.Fatal(err)
				}
				want = append(want, buf...)
			}
			if got := readRank(t, o, rank, 7); !slices.Equal(got, want) {
				t.Errorf("%+v, rank %d: %d samples, want %d, or another order", spec, rank, len(got), len(want))
			}
			if o.Total(rank) != uint64(len(want)) {
				t.Errorf("%+v: total %d, want %d", spec, o.Total(rank), len(want))
			}
		}
	}
}

func TestListedOrder(t *testing.T) {
	o := NewListedOrder(map[uint32][]uint32{5: {3, 1, 4}})
	if got := readRank(t, o, 5, 2); !slices.Equal(got, []uint32{3, 1, 4}) {
		t.Errorf("%v", got)
	}
	if o.Total(5) != 3 || o.Total(6) != 0 || o.Fits(5) != nil || !errors.Is(o.Fits(4), covey.ErrInvalid) {
		t.Error(o.Total(5), o.Total(6), o.Fits(5), o.Fits(4))
	}
}

func TestRanges(t *testing.T) {
	var b []byte
	b = AppendRange(b, 0, 8, 100) // file 0: [8, 108)
	b = AppendRange(b, 0, 4, 50)  // file 0: [112, 162)
	b = AppendRange(b, 2, 0, 7)   // file 2: [0, 7); file 1 has none
	r, err := parseRanges(b, 4)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.first, []uint64{0, 2, 2, 3, 3}) || !slices.Equal(r.off, []int64{8, 112, 0}) || !slices.Equal(r.len, []uint32{100, 50, 7}) {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][]byte{b[:len(b)-1], {4, 0, 1}, {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1}, AppendRange(nil, 0, 0, 1<<32)} {
		if _, err := parseRanges(bad, 4); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func FuzzRanges(f *testing.F) {
	f.Add(AppendRange(AppendRange(nil, 0, 8, 100), 2, 0, 7), 4)
	f.Add([]byte{1, 0, 1}, 1)
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		files &= 0xff
		r, err := parseRanges(b, files)
		if err != nil {
			return
		}
		if len(r.first) != files+1 || r.first[files] != uint64(len(r.off)) || !slices.IsSorted(r.first) {
			t.Fatalf("first %v of %d samples in %d files", r.first, len(r.off), files)
		}
		for i := range files {
			for s := r.first[i] + 1; s < r.first[i+1]; s++ {
				if r.off[s] < r.off[s-1]+int64(r.len[s-1]) {
					t.Fatalf("samples %d and %d overlap", s-1, s)
				}
			}
		}
	})
}

func TestManifestDigest(t *testing.T) {
	seen := map[[32]byte]string{}
	for name, m := range map[string]Manifest{
		"listing":   {},
		"below":     {Root: "a"},
		"suffix":    {Suffixes: []string{"a"}},
		"file":      {Files: []string{"a"}},
		"two files": {Files: []string{"a", "b"}},
		"run on":    {Files: []string{"ab"}},
		"counts":    {Counts: []uint32{1}},
		"ranges":    {Ranges: []byte{1}},
		"format":    {Format: "a"},
	} {
		d := m.Digest("s3://b")
		if seen[d] != "" {
			t.Errorf("%s and %s have one digest", name, seen[d])
		}
		seen[d] = name
		if m.Digest("s3://c") == d || m.Digest("s3://b") != d {
			t.Errorf("%s: the digest does not depend on the source, or on more", name)
		}
	}
}
