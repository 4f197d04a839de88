package blockstore

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/covey-cache/covey"
)

// benchBlocks is how large the store is for the benchmarks of presence and
// reopening; 2000000 is what a node of 8 TiB has.
var benchBlocks = flag.Int("bench-blocks", 100_000, "blocks in the store of BenchmarkReopen")

func benchObject(i int, size int64) covey.Object {
	o := object("train/"+strconv.Itoa(i), size)
	o.BlockSize = covey.DefaultBlockSize
	return o
}

// perOp is how long one round of a benchmark's loop took.
func perOp(b *testing.B) float64 { return float64(b.Elapsed()) / float64(b.N) }

// reportSpeed reports how fast the benchmark was as a share of a reference that ran
// before it in the same process: 1 is as fast, 0.5 takes twice as long.
func reportSpeed(b *testing.B, reference float64) {
	if reference > 0 { // it is 0 when -bench left the reference out
		b.ReportMetric(reference/perOp(b), "of-native")
	}
}

// admit measures admission of objects of one block, with all group commits. Each
// round also writes a plain file of the same bytes and hashes them, so that a
// machine that is slow for a while is slow for both: of-native is the share of the
// plain write, or of the slower of write and hash where the store has to find the
// digest itself.
func admit(b *testing.B, size int64) {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	digest := covey.Sum(data)
	b.Run("put", func(b *testing.B) {
		write, _, took := admitLoop(b, data, func(s *tier, l covey.Locator, p covey.Place) error { return s.Put(l, p, digest, data) })
		b.ReportMetric(write.Seconds()/took.Seconds(), "of-native")
	})
	b.Run("admit", func(b *testing.B) {
		write, hash, took := admitLoop(b, data, func(s *tier, l covey.Locator, p covey.Place) error { return s.Admit(l, p, data) })
		b.ReportMetric(max(write, hash).Seconds()/took.Seconds(), "of-native")
	})
}

func writeFile(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}

// admitKeep bounds the bytes on disk of each side of an admission benchmark. What
// was written before is deleted, outside of the measured time.
const admitKeep = 512 << 20

func admitLoop(b *testing.B, data []byte, put func(*tier, covey.Locator, covey.Place) error) (write, hash, took time.Duration) {
	size, dir := int64(len(data)), b.TempDir()
	s := mustOpen(b, Options{Dir: b.TempDir(), Budget: 1 << 40})
	timed := func(sum *time.Duration, f func() error) {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		*sum += time.Since(began)
	}
	n, keep := 0, int(admitKeep/size)
	for b.Loop() {
		o := benchObject(n, size)
		// Sixteen or so to an extent; which one does not matter here.
		p := covey.Place{Slot: uint8(n % 16)}
		p.Extent[0], p.Extent[1], p.Extent[2] = byte(n>>4), byte(n>>12), byte(n>>20)
		file := filepath.Join(dir, strconv.Itoa(n))
		timed(&write, func() error { return writeFile(file, data) })
		timed(&hash, func() error { covey.Sum(data); return nil })
		timed(&took, func() error { return put(s, o.Block(0), p) })
		if n++; n%keep == 0 {
			b.StopTimer()
			timed(&took, s.Sync) // the commits are part of it
			for i := n - keep; i < n; i++ {
				if err := errors.Join(s.DropObject(benchObject(i, size)), os.Remove(filepath.Join(dir, strconv.Itoa(i)))); err != nil {
					b.Fatal(err)
				}
			}
			b.StartTimer()
		}
	}
	timed(&took, s.Sync)
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	b.ReportMetric(per(write), "write-us")
	b.ReportMetric(per(hash), "blake3-us")
	b.ReportMetric(per(took), "store-us")
	b.ReportMetric(float64(n)/took.Seconds(), "objects/s")
	return write, hash, took
}

func BenchmarkAdmit4MiB(b *testing.B)   { admit(b, 4<<20) }
func BenchmarkAdmit100KiB(b *testing.B) { admit(b, 100<<10) }

func BenchmarkOpenWhole(b *testing.B) {
	dir := b.TempDir()
	s := mustOpen(b, Options{Dir: dir, Budget: 1 << 40})
	o := object("o", 2*testBlock)
	putAll(b, s, o)
	var native float64
	b.Run("native", func(b *testing.B) {
		for b.Loop() {
			f, err := os.Open(dataPath(dir, o))
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		native = perOp(b)
	})
	b.Run("store", func(b *testing.B) {
		for b.Loop() {
			f, err := s.OpenWhole(o)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		reportSpeed(b, native)
	})
}

// BenchmarkPresent64 looks 64 blocks up, of one object and of 64; beside it, 64
// look-ups in a Go map whose keys are at hand.
func BenchmarkPresent64(b *testing.B) {
	s := mustOpen(b, Options{Dir: "/c", FS: MemFS()})
	large := object("large", 64*testBlock)
	large.BlockSize = covey.MinBlockSize
	var ls []covey.Locator
	for i := range 64 {
		ls = append(ls, object("small"+strconv.Itoa(i), 1).Block(0))
	}
	for name, e := range map[string]*covey.Extent{"large": extentOf(large, 0), "small": covey.NewExtent(ls)} {
		for i, l := range e.Blocks {
			c := content(l)
			if err := s.Put(l, covey.Place{Extent: e.ID, Slot: uint8(i)}, covey.Sum(c), c); err != nil {
				b.Fatal(err)
			}
		}
		var native float64
		b.Run(name+"/native", func(b *testing.B) {
			native = benchMap(b, e)
		})
		b.Run(name+"/store", func(b *testing.B) {
			for b.Loop() {
				if s.Present(e) != covey.FirstBits(64) {
					b.Fatal("a block is missing")
				}
			}
			reportSpeed(b, native)
		})
	}
}

func benchMap(b *testing.B, e *covey.Extent) float64 {
	have := map[blockKey]struct{}{}
	var keys []blockKey
	for _, l := range e.Blocks {
		k := blockKey{l.Object.ID(), uint32(l.Index)}
		keys, have[k] = append(keys, k), struct{}{}
	}
	for b.Loop() {
		for _, k := range keys {
			if _, ok := have[k]; !ok {
				b.Fatal("a block is missing")
			}
		}
	}
	return perOp(b)
}

// BenchmarkReopen opens a store of objects of 64 blocks, and one of objects of a
// single block, whose index was written directly; beside it, reading the index's
// files once.
func BenchmarkReopen(b *testing.B) {
	for _, per := range []int{64, 1} {
		dir, native := b.TempDir(), 0.0
		fillIndex(b, dir, *benchBlocks/per, per)
		name := fmt.Sprintf("%d-block-objects", per)
		b.Run(name+"/native", func(b *testing.B) {
			for b.Loop() {
				readAll(b, filepath.Join(dir, nameIndex))
			}
			native = perOp(b)
		})
		b.Run(name+"/store", func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var heap uint64
			for b.Loop() {
				s := mustOpen(b, Options{Dir: dir, Budget: 1 << 50})
				if n := s.Usage().Blocks; n != *benchBlocks/per*per {
					b.Fatalf("%d blocks", n)
				}
				b.StopTimer()
				if heap == 0 {
					runtime.GC()
					runtime.ReadMemStats(&after)
					heap = after.HeapInuse - min(before.HeapInuse, after.HeapInuse)
				}
				mustClose(b, s)
				b.StartTimer()
			}
			b.ReportMetric(float64(heap)/float64(*benchBlocks), "heap-B/block")
			reportSpeed(b, native)
		})
	}
}

func readAll(b *testing.B, dir string) {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range names {
		if _, err := os.ReadFile(n); err != nil {
			b.Fatal(err)
		}
	}
}

func fillIndex(b *testing.B, dir string, objects, per int) {
	s := mustOpen(b, Options{Dir: dir, Budget: 1 << 50})
	const batch = 1000
	for i := 0; i < objects; i += batch {
		err := s.index.write(func(w *pebble.Batch) error {
			for j := i; j < min(i+batch, objects); j++ {
				if err := fillBench(s, w, j, per); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := s.index.db.Flush(); err != nil {
		b.Fatal(err)
	}
	mustClose(b, s)
}

func fillBench(s *tier, w *pebble.Batch, n, per int) error {
	o := benchObject(n, int64(per)*covey.DefaultBlockSize)
	id := o.ID()
	p := presence{group: 1, size: o.Size, blockSize: o.BlockSize, whole: true}
	err := fillObject(w, id, &objectChange{object: o, presence: p.encode()})
	for i := range per {
		r := record{digest: covey.Digest(id), place: covey.Place{Extent: covey.ExtentID(id), Slot: uint8(i)}}
		err = errors.Join(err, s.fillBlock(w, blockKey{id, uint32(i)}, change{record: r}))
	}
	return err
}
