package plan

import (
	"context"
	"strconv"
	"testing"
)

// BenchmarkOrder reads one rank's order of eight from beginning to end, which
// draws all of it.
func BenchmarkOrder(b *testing.B) {
	for _, n := range []uint64{1_281_167, 14_000_000} {
		b.Run(strconv.FormatUint(n, 10), func(b *testing.B) {
			buf := make([]uint32, 4096)
			for b.Loop() {
				o := mustOrder(b, Spec{Samples: n, World: 8, Shuffle: true})
				for from, got := uint64(0), len(buf); got == len(buf); from += uint64(got) {
					var err error
					if got, err = o.Read(context.Background(), 5, from, buf); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/sample")
			b.ReportMetric(float64(4*n), "order-bytes")
		})
	}
}

// BenchmarkFirstBatch is how long a job waits for its first 256 samples of a
// rank, in an order of 100 million.
func BenchmarkFirstBatch(b *testing.B) {
	buf := make([]uint32, 256)
	for b.Loop() {
		o := mustOrder(b, Spec{Samples: 100_000_000, World: 8, Shuffle: true})
		if _, err := o.Read(context.Background(), 7, 0, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWide shuffles as many samples as torch takes its other algorithm for,
// one fewer and exactly, and compares with torch's order. It needs 1 GiB.
func BenchmarkWide(b *testing.B) {
	var v struct{ Randperm []permutationCase }
	readGolden(b, "wide.json", &v)
	for _, c := range v.Randperm {
		b.Run(strconv.FormatUint(c.N, 10), func(b *testing.B) {
			for b.Loop() {
				order, err := Permutation(context.Background(), c.N, c.Seed)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				c.check(b, order)
				b.StartTimer()
			}
		})
	}
}
