package mount

import (
	"bytes"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

func TestMappedFormatsAreCompletedAtOpen(t *testing.T) {
	const size = 20*testBlock + 5
	names := newFakeNames()
	for _, name := range []string{"m.safetensors", "x.idx", "w.tar"} {
		names.file(name, "v1", size)
	}
	names.file("huge.bin", "v1", maxCompleteMapped+1)
	m := start(t, names, Options{CompleteAtOpen: testBlock})
	m.needPassthrough(t)
	for i, name := range []string{"m.safetensors", "x.idx"} {
		got := mapped(t, m.path(name))
		if want := covey.Sum(wanted(name, "v1", size)).String(); got[0] != want {
			t.Errorf("%s: wrong bytes", name)
		}
		if s := m.Status(); s.OpenPassthrough != uint64(i+1) || s.Reads != 0 {
			t.Errorf("%s: %+v: not completed at open", name, s)
		}
	}
	for _, name := range []string{"w.tar", "huge.bin"} {
		f, err := os.Open(m.path(name))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if s := m.Status(); s.OpenDaemon != 2 {
		t.Errorf("%+v: a file that is not mapped, or too large, was completed", s)
	}
}

// TestMappedFormatWithoutRoom opens a file that the cache does not take: it is
// served, and not fetched again by each open.
func TestMappedFormatWithoutRoom(t *testing.T) {
	const size = 20 * testBlock
	names := newFakeNames()
	names.file("m.npy", "v1", size)
	m := start(t, names, Options{CompleteAtOpen: testBlock})
	m.needPassthrough(t)
	m.blocks.admitNothing()
	m.wantFile(t, "m.npy")
	fetched, _ := m.blocks.counts()
	f, err := os.Open(m.path("m.npy"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if now, _ := m.blocks.counts(); now != fetched {
		t.Errorf("the second open fetched %d blocks in vain", now-fetched)
	}
	if s := m.Status(); s.OpenDaemon != 2 {
		t.Errorf("%+v", s)
	}
}

// TestServedReadAllocatesNothing is the steady state of the daemon's path.
func TestServedReadAllocatesNothing(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 2*testBlock)
	m := start(t, names, Options{CompleteAtOpen: -1})
	m.blocks.fill(t, "f")
	m.tree.passthrough.disable("the test measures the daemon")
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fh uint64
	for i := range m.tree.handles.parts {
		p := &m.tree.handles.parts[i]
		p.mu.RLock()
		for id := range p.m {
			fh = id
		}
		p.mu.RUnlock()
	}
	buf := make([]byte, 64<<10)
	in := fuse.ReadIn{Fh: fh, Size: uint32(len(buf))}
	cancel := make(chan struct{})
	allocs := testing.AllocsPerRun(200, func() {
		in.Offset = (in.Offset + uint64(len(buf))) % uint64(testBlock)
		res, status := m.tree.Read(cancel, &in, buf)
		if status != fuse.OK {
			t.Fatal(status)
		}
		res.Done()
	})
	if allocs != 0 {
		t.Errorf("a read of a held block makes %v allocations", allocs)
	}
}

// TestRandomReadsOfWhatDoesNotFit reads a few bytes here and there: where the cache
// has no room, no block is fetched for them, and where the reads turn out to be in
// order, blocks are.
func TestRandomReadsOfWhatDoesNotFit(t *testing.T) {
	const blocks = 64
	names := newFakeNames()
	names.file("f", "v1", blocks*testBlock)
	want := wanted("f", "v1", blocks*testBlock)
	m := start(t, names, Options{CompleteAtOpen: -1})
	m.blocks.admitNothing()
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	read := func(off int64) {
		t.Helper()
		p := make([]byte, 4096)
		if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+4096]) {
			t.Errorf("at %d: wrong bytes, or %v", off, err)
		}
	}
	read(0) // the first read may be the begin of anything
	fetched, _ := m.blocks.counts()
	for i := range int64(40) {
		read((i*i*37 + 11) % blocks * testBlock)
	}
	now, exact := m.blocks.counts()
	if now != fetched || exact == 0 || exact > 40*4096 {
		t.Errorf("%d blocks fetched and %d bytes read exactly for 40 random reads", now-fetched, exact)
	}
	for off := 20*testBlock + 4096; off < 24*testBlock; off += 4096 {
		read(off)
	}
	if now, more := m.blocks.counts(); more > exact+2*4096 || now == fetched {
		t.Errorf("%d bytes of a stream were read one by one", more-exact)
	}
}

// counts returns the blocks that were fetched and the bytes of exact ranges.
func (f *fakeBlocks) counts() (fetched int, exact int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.fetched), f.exact
}
