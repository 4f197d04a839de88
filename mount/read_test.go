package mount

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

var testSizes = []int64{
	0, 1, 4095, 4096, 4097, testBlock - 1, testBlock, testBlock + 1,
	3*testBlock + 17, 70*testBlock + 5, 100 * testBlock,
}

// TestContent reads files of many sizes by every way a program has, served by
// the daemon, made whole at open, and whole from the start.
func TestContent(t *testing.T) {
	for _, mode := range []struct {
		name  string
		opts  Options
		whole bool
	}{
		{"daemon", Options{CompleteAtOpen: -1}, false},
		{"completed at open", Options{CompleteAtOpen: 1 << 30}, false},
		{"whole", Options{}, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			names := newFakeNames()
			for _, size := range testSizes {
				names.file(fmt.Sprintf("d/f%d", size), "v1", size)
			}
			m := start(t, names, mode.opts)
			var files, sums []string
			for _, size := range testSizes {
				name := fmt.Sprintf("d/f%d", size)
				if mode.whole {
					m.blocks.fill(t, name)
				}
				want := wanted(name, "v1", size)
				got, err := os.ReadFile(m.path(name))
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read of %s: %d bytes, %v", name, len(got), err)
				}
				checkPread(t, m.path(name), want)
				files, sums = append(files, m.path(name)), append(sums, covey.Sum(want).String())
			}
			if got := mapped(t, files...); !slices.Equal(got, sums) {
				t.Fatalf("mapped files have digests %v, want %v", got, sums)
			}
		})
	}
}

func checkPread(t *testing.T, name string, want []byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(len(want))
	for _, off := range []int64{0, 1, testBlock - 3, testBlock, size / 2, size - 1, size, size + 100} {
		if off < 0 {
			continue
		}
		p := make([]byte, 70000)
		n, err := f.ReadAt(p, off)
		expect := want[min(off, size):min(off+70000, size)]
		if err != nil && err != io.EOF || !bytes.Equal(p[:n], expect) {
			t.Fatalf("pread of %s at %d: %d bytes, %v; want %d", name, off, n, err, len(expect))
		}
	}
}

// TestPassthroughBypassesDaemon checks that no read of a whole file comes to the
// daemon, and that what is counted says so.
func TestPassthroughBypassesDaemon(t *testing.T) {
	names := newFakeNames()
	names.file("big", "v1", 40*testBlock)
	names.file("small", "v1", 100)
	m := start(t, names, Options{CompleteAtOpen: testBlock})
	m.needPassthrough(t)
	m.blocks.fill(t, "big")
	for _, name := range []string{"big", "small"} {
		if _, err := os.ReadFile(m.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	s := m.Status()
	if s.OpenPassthrough != 2 || s.OpenDaemon != 0 || s.Reads != 0 {
		t.Errorf("opens passed through %d, served %d, reads %d; want 2, 0, 0", s.OpenPassthrough, s.OpenDaemon, s.Reads)
	}
	// The small file was fetched for this open, so only the big one was local.
	if got := m.blocks.local.Load(); got != 40*testBlock {
		t.Errorf("counted %d bytes local, want %d", got, 40*testBlock)
	}
}

// TestReadOnPassthroughHandle makes the kernel send a READ for a handle that is
// passed through.
func TestReadOnPassthroughHandle(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 8*testBlock)
	m := start(t, names, Options{})
	m.needPassthrough(t)
	m.blocks.fill(t, "f")
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 8*testBlock, unix.FADV_WILLNEED); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, wanted("f", "v1", 8*testBlock)) {
		t.Fatalf("read after fadvise: %d bytes, %v", len(got), err)
	}
}

// TestArbiter opens one inode before it is whole and after: while the first
// handle lives, the later ones must not be passed through (the kernel would say
// EIO); when it is closed, they are.
func TestArbiter(t *testing.T) {
	names := newFakeNames()
	const size = 40 * testBlock
	names.file("f", "v1", size)
	m := start(t, names, Options{CompleteAtOpen: -1})
	m.needPassthrough(t)
	want := wanted("f", "v1", size)

	holder := command("hold", m.path("f"))
	stdin, _ := holder.StdinPipe()
	stderr, _ := holder.StderrPipe()
	var held bytes.Buffer
	holder.Stdout = &held
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stderr.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	m.blocks.fill(t, "f")
	if got := run(t, "cat", m.path("f")); !bytes.Equal(got, want) {
		t.Fatal("second handle, beside a cached one: bytes differ")
	}
	if s := m.Status(); s.OpenPassthrough != 0 || s.OpenDaemon != 2 {
		t.Fatalf("passed through %d, served %d; want 0, 2", s.OpenPassthrough, s.OpenDaemon)
	}
	stdin.Close()
	if err := holder.Wait(); err != nil || !bytes.Equal(held.Bytes(), want) {
		t.Fatalf("first handle: %v", err)
	}
	// The kernel sends releases when it likes, so the mode changes soon, not
	// at once.
	deadline := time.Now().Add(20 * time.Second)
	for m.Status().OpenPassthrough == 0 {
		if got := run(t, "cat", m.path("f")); !bytes.Equal(got, want) {
			t.Fatal("bytes differ after the change of mode")
		}
		if time.Now().After(deadline) {
			t.Fatal("never passed through after the cached handle was closed")
		}
	}
	// All passthrough handles of an inode share one registration, even when the
	// object has left the cache.
	a, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	e, _ := names.current("f")
	m.blocks.evict(names.Object("f", e))
	if got := mapped(t, m.path("f")); got[0] != covey.Sum(want).String() {
		t.Fatal("bytes differ after the eviction under an open handle")
	}
}

// TestConcurrentOpens races opens, reads and closes of a few files that become
// whole meanwhile: no mode mixture may ever surface as EIO.
func TestConcurrentOpens(t *testing.T) {
	names := newFakeNames()
	const files, size = 4, 6*testBlock + 99
	for i := range files {
		names.file(fmt.Sprint("f", i), "v1", size)
	}
	m := start(t, names, Options{CompleteAtOpen: -1})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 60 {
				name := fmt.Sprint("f", (w+i)%files)
				got, err := os.ReadFile(m.path(name))
				if err != nil || !bytes.Equal(got, wanted(name, "v1", size)) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestChangeBetweenOpenAndRead is P2: a handle reads its own version or fails,
// and a new open sees the new one. // fault 24
func TestChangeBetweenOpenAndRead(t *testing.T) {
	names := newFakeNames()
	const size = 64 * testBlock
	names.file("f", "v1", size)
	m := start(t, names, Options{CompleteAtOpen: -1})
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1000)
	if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, wanted("f", "v1", 1000)) {
		t.Fatalf("first read: %v", err)
	}
	names.file("f", "v2", size)
	if _, err := f.ReadAt(p, size-1000); !isErrno(err, unix.ESTALE) {
		t.Fatalf("read of the old version: %v, want ESTALE", err)
	}
	names.mu.Lock()
	if names.invalidated["f"] == 0 {
		t.Error("the changed object was not invalidated")
	}
	names.mu.Unlock()
	got, err := os.ReadFile(m.path("f"))
	if err != nil || !bytes.Equal(got, wanted("f", "v2", size)) {
		t.Fatalf("new open: %d bytes, %v; want version 2", len(got), err)
	}
	st1, _ := f.Stat()
	st2, _ := os.Stat(m.path("f"))
	if ino(st1) != ino(st2) {
		t.Errorf("st_ino changed with the version: %d, %d", ino(st1), ino(st2))
	}
}

// TestChangeUnderKernelEntry has the kernel believe in an old name: open gets
// ESTALE from the daemon, and the kernel looks up anew by itself.
func TestChangeUnderKernelEntry(t *testing.T) {
	names := newFakeNames()
	names.opts.MaxAge = time.Hour
	names.file("d/f", "v1", 1000)
	names.file("d/g", "v1", 1000)
	m := start(t, names, Options{})
	for _, name := range []string{"d/f", "d/g"} {
		if _, err := os.Stat(m.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	names.file("d/f", "v2", 2000)
	got, err := os.ReadFile(m.path("d/f"))
	if err != nil || !bytes.Equal(got, wanted("d/f", "v2", 2000)) {
		t.Fatalf("open after a change: %d bytes, %v", len(got), err)
	}
	names.remove("d/g") // fault 25
	if _, err := os.ReadFile(m.path("d/g")); !isErrno(err, unix.ENOENT) {
		t.Fatalf("open after a delete: %v, want ENOENT", err)
	}
}

// TestPinnedBytesOutliveTheirObject reads a passed-through handle after the
// object changed, was deleted and evicted. // fault 25
func TestPinnedBytesOutliveTheirObject(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 5*testBlock)
	m := start(t, names, Options{})
	m.needPassthrough(t)
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, _ := names.current("f")
	names.remove("f")
	m.blocks.evict(names.Object("f", e))
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, wanted("f", "v1", 5*testBlock)) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// TestOriginDown gets EIO within the deadline and works again afterwards.
// fault 20
func TestOriginDown(t *testing.T) {
	names := newFakeNames()
	names.file("small", "v1", 100)
	names.file("big", "v1", 64*testBlock)
	m := start(t, names, Options{ReadTimeout: 300 * time.Millisecond, CompleteAtOpen: testBlock})
	hang := make(chan struct{})
	for _, fault := range []struct {
		name      string
		set, heal func()
	}{
		{"refused", func() { m.blocks.fail(covey.ErrUnavailable) }, func() { m.blocks.fail(nil) }},
		{"hung", func() { m.blocks.block(hang) }, func() { m.blocks.block(nil) }},
	} {
		fault.set()
		for _, name := range []string{"small", "big"} {
			began := time.Now()
			if _, err := os.ReadFile(m.path(name)); !isErrno(err, unix.EIO) {
				t.Errorf("%s, %s: %v, want EIO", fault.name, name, err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s, %s: took %v", fault.name, name, took)
			}
		}
		fault.heal()
	}
	for _, name := range []string{"small", "big"} {
		e, _ := names.current(name)
		got, err := os.ReadFile(m.path(name))
		if err != nil || !bytes.Equal(got, wanted(name, "v1", e.Size)) {
			t.Errorf("%s after the fault: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestFullCache reads files that the cache does not admit, and fetches the block
// that open brought only once.
func TestFullCache(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", testBlock)
	m := start(t, names, Options{})
	m.blocks.admitNothing()
	got, err := os.ReadFile(m.path("f"))
	if err != nil || !bytes.Equal(got, wanted("f", "v1", testBlock)) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	m.blocks.mu.Lock()
	defer m.blocks.mu.Unlock()
	if n := len(m.blocks.fetched); n != 1 {
		t.Errorf("fetched %d times, want once", n)
	}
}

// TestKilledReader kills a process that waits for a block: it must be gone long
// before the deadline. A signal that it handles must not disturb it.
func TestKilledReader(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 10*testBlock)
	m := start(t, names, Options{CompleteAtOpen: -1})
	hang := make(chan struct{})
	m.blocks.block(hang)
	c := command("cat", m.path("f"))
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return m.blocks.waits.Load() > 0 })
	began := time.Now()
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Fatal("the reader was not killed")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Fatalf("a killed reader took %v to end", took)
	}

	c = command("cat", m.path("f"))
	out.Reset()
	c.Stdout, c.Stderr = &out, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return m.blocks.waits.Load() > 0 })
	for range 20 {
		if err := c.Process.Signal(unix.SIGURG); err != nil {
			t.Fatal(err)
		}
	}
	close(hang)
	if err := c.Wait(); err != nil || !bytes.Equal(out.Bytes(), wanted("f", "v1", 10*testBlock)) {
		t.Fatalf("a reader that got harmless signals: %d bytes, %v", out.Len(), err)
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited 5 s in vain")
		}
	}
}
