package mount

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// TestStreams feeds the detector reads and checks what it asks for.
func TestStreams(t *testing.T) {
	const size, blocks = int64(4 << 20), 100
	read := func(s *streams, off, n int64) []int {
		w := s.note(off, int(n), size, blocks)
		return slices.Clone(w.blocks[:w.n])
	}
	// each checks that every block is asked for once, in order, before it is read
	// and no further ahead than the largest window.
	each := func(t *testing.T, s *streams, reads []int64, n int64, want []int) {
		t.Helper()
		var got []int
		for _, off := range reads {
			for _, i := range read(s, off, n) {
				if ahead := i - int(off/size); ahead == 0 || ahead > 33*20 || ahead < -33*20 {
					t.Errorf("at block %d asked for %d", off/size, i)
				}
				got = append(got, i)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("asked for %v, want %v", got, want)
		}
	}
	upto := func(from, to, step int) (all []int) {
		for i := from; i != to; i += step {
			all = append(all, i)
		}
		return all
	}
	offsets := func(from, to, step int64) (all []int64) {
		for off := from; off != to; off += step {
			all = append(all, off)
		}
		return all
	}
	t.Run("forwards", func(t *testing.T) {
		each(t, &streams{}, offsets(0, blocks*size, 1<<20), 1<<20, upto(1, blocks, 1))
	})
	t.Run("backwards", func(t *testing.T) {
		each(t, &streams{}, offsets((blocks-1)*size, -size, -size), size, upto(blocks-4, -1, -1))
	})
	t.Run("by steps", func(t *testing.T) {
		each(t, &streams{}, offsets(0, 100*size, 5*size), 4096, upto(15, 100, 5))
	})
	t.Run("by steps backwards", func(t *testing.T) {
		each(t, &streams{}, offsets(99*size, -3*size, -3*size), 4096, upto(90, -3, -3))
	})
	t.Run("by steps within blocks", func(t *testing.T) {
		each(t, &streams{}, offsets(0, blocks*size, 1<<20), 4096, upto(1, blocks, 1))
	})
	t.Run("random", func(t *testing.T) {
		var s streams
		for _, off := range []int64{90, 3, 140, 77, 12, 19, 120, 41, 66, 8, 301} {
			if asked := read(&s, off<<20, 4096); len(asked) != 0 {
				t.Errorf("a random read at %d MiB asked for %v", off, asked)
			}
		}
	})
	t.Run("header then elsewhere", func(t *testing.T) {
		var s streams
		read(&s, 0, 4096)
		read(&s, 4096, 4096)
		if asked := read(&s, 100<<20, 128<<10); len(asked) != 0 {
			t.Errorf("asked for %v", asked)
		}
	})
	t.Run("two readers", func(t *testing.T) {
		var s streams
		var got []int
		for i := range int64(20) {
			got = append(got, read(&s, i*size, size)...)
			got = append(got, read(&s, (i+50)*size, size)...)
		}
		slices.Sort(got)
		if want := append(upto(3, 28, 1), upto(53, 78, 1)...); !slices.Equal(got, want) {
			t.Errorf("asked for %v, want %v", got, want)
		}
	})
	t.Run("a reader who left", func(t *testing.T) {
		var s streams
		for i := range int64(10) {
			read(&s, i*size, size)
		}
		var left [][2]int
		for i := range int64(maxStreams) { // elsewhere, in no order
			w := s.note((17+i*i*7)%90*size, 4096, size, blocks)
			if w.from < w.to {
				left = append(left, [2]int{w.from, w.to})
			}
		}
		if want := [][2]int{{10, 18}}; !slices.Equal(left, want) {
			t.Errorf("given up %v, want %v", left, want)
		}
	})
	t.Run("late blocks widen the window", func(t *testing.T) {
		var s streams
		for i := range int64(10) {
			read(&s, i*size, size)
		}
		if s.late(10, time.Microsecond); s.target != firstTarget {
			t.Errorf("target %d after a block in time", s.target)
		}
		if s.late(50, time.Second); s.target != firstTarget {
			t.Errorf("target %d after a block that nobody had asked for", s.target)
		}
		for i := range int64(5) {
			s.late(int(10+i), time.Second)
			read(&s, (10+i)*size, size)
		}
		if s.target != maxAhead {
			t.Errorf("target %d, want %d", s.target, maxAhead)
		}
		var left [][2]int
		s.end(func(from, to int) { left = append(left, [2]int{from, to}) })
		if len(left) != 1 || left[0][0] != 15 || left[0][1] <= 15+firstTarget {
			t.Errorf("at the end %v were left", left)
		}
	})
	t.Run("reordered readahead", func(t *testing.T) {
		var s streams
		var got []int
		for base := int64(0); base < 32; base += 4 {
			for _, i := range []int64{0, 1, 3, 2} {
				got = append(got, read(&s, (base+i)<<20, 1<<20)...)
			}
		}
		if !slices.IsSorted(got) || len(got) < 8 {
			t.Errorf("asked for %v", got)
		}
	})
}

// TestSequentialReadPrefetches reads a large file through a mount: every block
// behind the first few is asked for before it is read, and none when the reads
// are random.
func TestSequentialReadPrefetches(t *testing.T) {
	names := newFakeNames()
	const blocks = 100
	names.file("seq", "v1", blocks*testBlock)
	names.file("rand", "v1", blocks*testBlock)
	m := start(t, names, Options{CompleteAtOpen: -1})
	// O_DIRECT, so that the reads come one by one and not as readahead.
	fd, err := unix.Open(m.path("seq"), unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, testBlock)
	for i := range int64(blocks) {
		if n, err := unix.Pread(fd, buf, i*testBlock); n != len(buf) || err != nil {
			t.Fatalf("read of block %d: %d, %v", i, n, err)
		}
	}
	_ = unix.Close(fd)
	next := 3 // two reads make no stream, the third does
	for _, l := range m.blocks.takeAsked() {
		if l.Index != next {
			t.Fatalf("asked for block %d, want %d", l.Index, next)
		}
		next++
	}
	if next != blocks {
		t.Errorf("asked for blocks up to %d, want %d", next, blocks)
	}

	f, err := os.Open(m.path("rand"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, b := range []int64{50, 3, 88, 20, 61, 9, 97, 33} {
		if _, err := f.ReadAt(make([]byte, 4096), b*testBlock+8192); err != nil {
			t.Fatal(err)
		}
	}
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("random reads asked for %v", asked)
	}
}

// TestSequentialReadGetsBlocksOnce reads a file of default blocks: the handle
// holds what the kernel's readahead touches, so no block is got over and over.
func TestSequentialReadGetsBlocksOnce(t *testing.T) {
	names := newFakeNames()
	names.opts.BlockSize = covey.DefaultBlockSize
	const blocks = 16
	names.file("f", "v1", blocks*covey.DefaultBlockSize)
	m := start(t, names, Options{CompleteAtOpen: -1})
	if _, err := os.ReadFile(m.path("f")); err != nil {
		t.Fatal(err)
	}
	// A request that comes late, when the kernel has gone on by a window, may
	// find its block gone.
	if n := m.blocks.gets.Load(); n > blocks+blocks/4 {
		t.Errorf("%d gets of %d blocks in %d reads", n, blocks, m.Status().Reads)
	}
}

// TestFollower opens small files in the order of the listing and at random.
func TestFollower(t *testing.T) {
	names := newFakeNames()
	const files = 150
	for i := range files {
		names.file(fmt.Sprintf("in/f%04d", i), "v1", 100)
		names.file(fmt.Sprintf("out/f%04d", i), "v1", 100)
	}
	m := start(t, names, Options{})
	open := func(dir string, i int) {
		f, err := os.Open(m.path(fmt.Sprintf("%s/f%04d", dir, i)))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	open("in", 0)
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("one open asked for %v", asked)
	}
	open("in", 1)
	if asked := m.blocks.takeAsked(); len(asked) != files-2 || asked[0].Key != "in/f0002" || asked[files-3].Key != "in/f0149" {
		t.Errorf("two neighbours asked for %d blocks, want the %d behind them and the next two extents", len(asked), files-2)
	}
	open("in", 2)
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("a third open asked again: %v", asked)
	}
	// The next extent goes on where this one ended.
	open("in", covey.MaxExtentBlocks)
	if asked := m.blocks.takeAsked(); len(asked) != files-1-covey.MaxExtentBlocks {
		t.Errorf("the next extent: asked for %d blocks, want %d", len(asked), files-1-covey.MaxExtentBlocks)
	}
	open("in", 63) // a straggler
	open("in", 65)
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("a straggler and the next: asked again for %d", len(asked))
	}
	for _, i := range []int{40, 3, 120, 77, 20, 60} {
		open("out", i)
	}
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("random opens asked for %v", asked)
	}
}

// TestNextShard reads shards one behind the other: the begin of the next is asked
// for once that has come true, and no more once it does not.
func TestNextShard(t *testing.T) {
	const blocks = 200
	names := newFakeNames()
	for i := range 8 {
		names.file(fmt.Sprintf("s/shard%d.tar", i), "v1", blocks*testBlock)
	}
	m := start(t, names, Options{CompleteAtOpen: -1})
	next := func(i int) (asked int) {
		if _, err := os.ReadFile(m.path(fmt.Sprintf("s/shard%d.tar", i))); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.blocks.takeAsked() {
			if l.Key == fmt.Sprintf("s/shard%d.tar", i+1) {
				asked++
			}
		}
		return asked
	}
	if n := next(0); n != 0 {
		t.Errorf("the first shard asked for %d blocks of the second", n)
	}
	asked := 0
	for i := 1; i < 4; i++ { // a machine short of cores may be late for one
		n := next(i)
		if asked += n; n > 2*firstTarget {
			t.Errorf("shard %d asked for %d blocks of the next", i, n)
		}
	}
	if asked == 0 {
		t.Error("no shard asked for blocks of the next")
	}
	next(7)
	next(5)
	if n := next(1); n != 0 {
		t.Errorf("in no order any more, and yet %d blocks of the next shard", n)
	}
}
