package plan

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/covey-cache/covey"
)

func mustOrder(t testing.TB, s Spec) *Order {
	t.Helper()
	o, err := NewOrder(s)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// readAll reads a rank's samples, so many at a time.
func readAll(t testing.TB, o *Order, rank uint32, at int) []uint32 {
	t.Helper()
	var all []uint32
	for buf := make([]uint32, at); ; {
		n, err := o.Read(context.Background(), rank, uint64(len(all)), buf)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, buf[:n]...)
		if n < at {
			break
		}
	}
	if per := o.Spec().PerRank(); uint64(len(all)) != per {
		t.Fatalf("rank %d of %+v reads %d samples, PerRank says %d", rank, o.Spec(), len(all), per)
	}
	return all
}

// dealt is what the ranks read, round by round.
func dealt(t testing.TB, s Spec, rounds uint64) []uint32 {
	t.Helper()
	o := mustOrder(t, s)
	ranks := make([][]uint32, s.World)
	for r := range ranks {
		ranks[r] = readAll(t, o, uint32(r), 7)
	}
	var all []uint32
	for i := range min(rounds, s.PerRank()) {
		for _, rank := range ranks {
			all = append(all, rank[i])
		}
	}
	return all
}

// TestChangedWorld stops a job after some rounds and goes on with another number
// of ranks, again and again: every sample is read, and only padding twice.
func TestChangedWorld(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := Spec{
			Samples:  rapid.Uint64Range(1, 200).Draw(rt, "samples"),
			Seed:     rapid.Uint64().Draw(rt, "seed"),
			Epoch:    rapid.Uint32().Draw(rt, "epoch"),
			DropLast: rapid.Bool().Draw(rt, "drop last"),
			Shuffle:  rapid.Bool().Draw(rt, "shuffle"),
		}
		var got []uint32
		for {
			s.World = rapid.Uint32Range(1, 20).Draw(rt, "world")
			rounds := s.PerRank()
			if rapid.Bool().Draw(rt, "stop early") {
				rounds = rapid.Uint64Range(0, rounds).Draw(rt, "rounds")
			}
			got = append(got, dealt(t, s, rounds)...)
			over := rounds == s.PerRank()
			s.Base += rounds * uint64(s.World)
			if over {
				break
			}
		}
		whole := s
		whole.World, whole.Base, whole.DropLast = 1, 0, false
		want := dealt(t, whole, s.Samples)
		n := min(len(got), len(want))
		if !slices.Equal(got[:n], want[:n]) {
			rt.Fatalf("order\n got %v\nwant %v", got, want)
		}
		if missing := len(want) - n; missing > 0 && (!s.DropLast || missing >= int(s.World)) {
			rt.Fatalf("%d samples of %d were not read by %d ranks", missing, len(want), s.World)
		}
		for i, x := range got[n:] {
			if x != want[i%len(want)] {
				rt.Fatalf("padding %v is not the order's beginning %v", got[n:], want)
			}
		}
	})
}

// TestDrawsOnlyWhatIsRead keeps the start of a long order cheap.
func TestDrawsOnlyWhatIsRead(t *testing.T) {
	o := mustOrder(t, Spec{Samples: 1e6, World: 4, Shuffle: true})
	buf := make([]uint32, 25)
	if n, err := o.Read(t.Context(), 3, 0, buf); n != len(buf) || err != nil {
		t.Fatal(n, err)
	}
	if o.mix.drawn != 100 {
		t.Errorf("drew %d to read the first 25 of 4 ranks, want 100", o.mix.drawn)
	}
}

func TestOrderReadsAnywhereAtOnce(t *testing.T) {
	spec := Spec{Samples: 300_000, World: 7, Seed: 3, Shuffle: true}
	want := make([][]uint32, spec.World)
	for r := range want {
		want[r] = readAll(t, mustOrder(t, spec), uint32(r), 1000)
	}
	o := mustOrder(t, spec)
	var wg sync.WaitGroup
	for r := range spec.World {
		wg.Go(func() {
			buf := make([]uint32, 100)
			for from := uint64(0); from < spec.PerRank(); from += 9973 {
				at := (from * uint64(r+1)) % spec.PerRank()
				n, err := o.Read(context.Background(), r, at, buf)
				if err != nil || !slices.Equal(buf[:n], want[r][at:at+uint64(n)]) {
					t.Errorf("rank %d from %d: %v, or another order", r, at, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOrderRefuses(t *testing.T) {
	o := mustOrder(t, Spec{Samples: 1e6, World: 2, Shuffle: true})
	buf := make([]uint32, 4)
	if _, err := o.Read(t.Context(), 2, 0, buf); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("rank out of the world: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := o.Read(ctx, 0, 0, buf); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if n, err := o.Read(t.Context(), 0, 1e6, buf); n != 0 || err != nil {
		t.Errorf("past the end: %d samples, %v", n, err)
	}
	for _, s := range []Spec{
		{},
		{Samples: 1},
		{Samples: MaxSamples + 1, World: 1},
		{Samples: 1, World: maxWorld + 1},
		{Samples: 1, World: 1, Base: 2 + maxWorld},
	} {
		if _, err := NewOrder(s); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestOrderBytes(t *testing.T) {
	if got := (Spec{Samples: 100e6, Shuffle: true}).OrderBytes(); got != 400e6 {
		t.Errorf("100 million shuffled samples need %d bytes, want 400 million", got)
	}
	if got := (Spec{Samples: 100e6}).OrderBytes(); got != 0 {
		t.Errorf("samples in order need %d bytes, want none", got)
	}
}
