package mount

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// TestStream feeds the detector reads and checks what it asks for.
func TestStream(t *testing.T) {
	const size, blocks = int64(4 << 20), 40
	read := func(s *stream, off, n int64) (asked []int) {
		from, to := s.note(off, int(n), size, blocks)
		for i := from; i < to; i++ {
			asked = append(asked, i)
		}
		return asked
	}
	t.Run("sequential", func(t *testing.T) {
		var s stream
		var got []int
		for off := int64(0); off < blocks*size; off += 1 << 20 {
			asked := read(&s, off, 1<<20)
			for _, i := range asked {
				if ahead := i - int(off/size); ahead < 1 || ahead > maxAhead+1 {
					t.Errorf("at block %d asked for %d", off/size, i)
				}
			}
			got = append(got, asked...)
		}
		// Each block behind the first once, in order.
		for i, b := range got {
			if b != i+1 {
				t.Fatalf("asked for %v", got)
			}
		}
		if len(got) != blocks-1 {
			t.Errorf("asked for %d blocks, want %d", len(got), blocks-1)
		}
		if s.window != maxAhead {
			t.Errorf("window %d, want %d", s.window, maxAhead)
		}
	})
	t.Run("random", func(t *testing.T) {
		var s stream
		for _, off := range []int64{90, 3, 140, 77, 12, 13, 120} {
			if asked := read(&s, off<<20, 4096); asked != nil {
				t.Errorf("a random read at %d MiB asked for %v", off, asked)
			}
		}
	})
	t.Run("header then elsewhere", func(t *testing.T) {
		var s stream
		read(&s, 0, 4096)
		read(&s, 4096, 4096)
		if asked := read(&s, 100<<20, 128<<10); asked != nil {
			t.Errorf("asked for %v", asked)
		}
	})
	t.Run("reset on a miss", func(t *testing.T) {
		var s stream
		for off := range int64(20) {
			read(&s, off<<20, 1<<20)
		}
		read(&s, 100<<20, 4096)
		if s.window != 0 || s.hits != 0 {
			t.Errorf("window %d after a miss", s.window)
		}
	})
	t.Run("reordered readahead", func(t *testing.T) {
		var s stream
		var got []int
		for base := int64(0); base < 32; base += 4 {
			for _, i := range []int64{0, 1, 3, 2} {
				got = append(got, read(&s, (base+i)<<20, 1<<20)...)
			}
		}
		if s.hits < 30 || !slices.IsSorted(got) || len(got) < 8 {
			t.Errorf("%d reads in the stream, asked for %v", s.hits, got)
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
	if asked := m.blocks.takeAsked(); len(asked) != covey.MaxExtentBlocks-2 || asked[0].Key != "in/f0002" {
		t.Errorf("two neighbours asked for %d blocks, want the %d behind them", len(asked), covey.MaxExtentBlocks-2)
	}
	open("in", 2)
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("a third open asked again: %v", asked)
	}
	// The next extent goes on where this one ended.
	open("in", covey.MaxExtentBlocks)
	if asked := m.blocks.takeAsked(); len(asked) != covey.MaxExtentBlocks-1 {
		t.Errorf("the next extent: asked for %d blocks, want %d", len(asked), covey.MaxExtentBlocks-1)
	}
	for _, i := range []int{40, 3, 120, 77, 20, 60} {
		open("out", i)
	}
	if asked := m.blocks.takeAsked(); len(asked) != 0 {
		t.Errorf("random opens asked for %v", asked)
	}
}
