package mount

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// smallSet is an immutable data set of n small files in one directory.
func smallSet(n int) *fakeNames {
	names := newFakeNames()
	names.opts.Immutable = true
	for i := range n {
		names.file(smallPath(i), "v1", smallSize(i))
	}
	return names
}

func smallPath(i int) string { return fmt.Sprintf("d/f%05d", i) }

// smallSize has files of less than a page, of a whole number of pages, and others.
func smallSize(i int) int64 { return int64(1 + (i*7919)%40_000 + i%3*4096) }

// list has the kernel learn every name of the directory with its node.
func (m *mounted) list(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(m.path(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *mounted) wantFile(t testing.TB, name string) {
	t.Helper()
	e, _ := m.names.current(name)
	got, err := os.ReadFile(m.path(name))
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, wanted(name, e.Version, e.Size)) {
		t.Errorf("%s: wrong bytes", name)
	}
}

func TestSmallOpensWithoutAMessage(t *testing.T) {
	const files = 100
	m := start(t, smallSet(files), Options{Profile: Small, PushBudget: -1})
	for i := range files {
		m.wantFile(t, smallPath(i))
	}
	before := m.Status()
	if before.OpenDaemon+before.OpenPassthrough != 0 || before.Profile != Small {
		t.Errorf("status %+v: opens came to the daemon", before)
	}
	if before.Reads < files {
		t.Fatalf("%d reads for %d files: they were not read through the mount", before.Reads, files)
	}
	lookups := m.names.lookups.Load()
	for i := range files {
		m.wantFile(t, smallPath(i))
	}
	if after := m.Status(); after.Reads != before.Reads {
		t.Errorf("%d reads came to the daemon for files in the page cache", after.Reads-before.Reads)
	}
	if n := m.names.lookups.Load() - lookups; n != 0 {
		t.Errorf("%d look-ups for names that the kernel knows", n)
	}
}

func TestSmallReadsLargeFilesToo(t *testing.T) {
	names := smallSet(1)
	names.file("large", "v1", 5*testBlock+123)
	m := start(t, names, Options{Profile: Small})
	m.wantFile(t, "large")
	got := mapped(t, m.path("large"))
	if want := covey.Sum(wanted("large", "v1", 5*testBlock+123)).String(); got[0] != want {
		t.Error("mapped: wrong bytes")
	}
	f, err := os.Open(m.path("large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	for _, off := range []int64{testBlock - 500, 3*testBlock + 7, 0} {
		if _, err := f.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if want := wanted("large", "v1", 5*testBlock+123)[off : off+1000]; !bytes.Equal(p, want) {
			t.Errorf("wrong bytes at %d", off)
		}
	}
}

func TestPushedFilesAreReadWithoutAMessage(t *testing.T) {
	const files = 300
	m := start(t, smallSet(files), Options{Profile: Small, PushBudget: 1 << 30})
	for i := range files {
		m.blocks.fill(t, smallPath(i))
	}
	m.list(t, "d")
	done, err := m.Push(t.Context(), "d")
	if err != nil || done.Files != files {
		t.Fatalf("pushed %+v, %v", done, err)
	}
	var paths []string
	for i := range files {
		m.wantFile(t, smallPath(i))
		paths = append(paths, m.path(smallPath(i)))
	}
	if s := m.Status(); s.Reads != 0 || s.Pushed.Files != files || s.Pushed.Held != done.Bytes {
		t.Errorf("%d reads came to the daemon; %+v", s.Reads, s.Pushed)
	}
	for i, got := range mapped(t, paths...) {
		if want := covey.Sum(wanted(smallPath(i), "v1", smallSize(i))).String(); got != want {
			t.Errorf("%s: wrong bytes in a mapping", smallPath(i))
		}
	}
	if again, err := m.Push(t.Context(), ""); err != nil || again.Files != 0 {
		t.Errorf("pushed %+v again, %v", again, err)
	}
}

func TestPushKeepsItsBudget(t *testing.T) {
	const files, budget = 200, 256 << 10
	m := start(t, smallSet(files), Options{Profile: Small, PushBudget: budget})
	m.list(t, "d")
	done, err := m.Push(t.Context(), "")
	if err != nil || done.Files != files || done.Bytes <= budget {
		t.Fatalf("pushed %+v, %v", done, err)
	}
	if held := m.Status().Pushed.Held; held > budget {
		t.Errorf("%d bytes held, budget %d", held, budget)
	}
	for i := range files {
		m.wantFile(t, smallPath(i))
	}
	if s := m.Status(); s.Reads == 0 || s.Reads >= files {
		t.Errorf("%d reads for %d files, of which some had been pushed and taken back", s.Reads, files)
	}
}

// TestPushRunsAheadOfAReader reads in the listing's order, slowly enough for the
// pusher: what comes to the daemon are the first two files and probes, until a second
// sweep pushes what is left of those.
func TestPushRunsAheadOfAReader(t *testing.T) {
	const files = 1000
	m := start(t, smallSet(files), Options{Profile: Small, PushBudget: 1 << 30})
	m.list(t, "d")
	for i := range files {
		m.wantFile(t, smallPath(i))
		for m.tree.pusher.busy() {
			time.Sleep(100 * time.Microsecond)
		}
	}
	s := m.Status()
	if s.Reads > 2+files/probeEvery || s.Reads < 4 {
		t.Errorf("%d reads for %d files in order, %d pushed ahead", s.Reads, files, s.Pushed.Files)
	}
	if int64(s.Reads)+s.Pushed.Files < files {
		t.Errorf("%d reads and %d pushes cannot make %d files", s.Reads, s.Pushed.Files, files)
	}
}

// TestPushEndsWhereNobodyReads reads two files and no more.
func TestPushEndsWhereNobodyReads(t *testing.T) {
	m := start(t, smallSet(500), Options{Profile: Small, PushBudget: 1 << 30})
	m.list(t, "d")
	m.wantFile(t, smallPath(0))
	m.wantFile(t, smallPath(1))
	for m.tree.pusher.busy() {
		time.Sleep(100 * time.Microsecond)
	}
	if n := m.Status().Pushed.Files; n != firstGrant-firstGrant/probeEvery {
		t.Errorf("%d files pushed on suspicion", n)
	}
}

func (p *pusher) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sweeps {
		if s.queued {
			return true
		}
	}
	return false
}

// TestPushUnderReadersAndForgets has the kernel read, forget and take pushes of the
// same files at once: no wrong byte, and nobody waits for anybody.
func TestPushUnderReadersAndForgets(t *testing.T) {
	const files = 200
	m := start(t, smallSet(files), Options{Profile: Small, PushBudget: 1 << 20, PushRate: 1 << 40})
	m.list(t, "d")
	ctx := t.Context()
	stop := make(chan struct{})
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			for {
				select {
				case <-stop:
					return
				default:
					m.wantFile(t, smallPath(rng.IntN(files)))
				}
			}
		})
	}
	all.Go(func() {
		rng := rand.New(rand.NewPCG(9, 9))
		for {
			select {
			case <-stop:
				return
			default:
			}
			if dir := m.tree.nodes.walk("d"); dir != nil {
				// The kernel drops the entry, and when nobody has it open, the node.
				m.server.EntryNotify(dir.id, fmt.Sprintf("f%05d", rng.IntN(files)))
			}
		}
	})
	pushes := 0
	for began := time.Now(); time.Since(began) < 2*time.Second; pushes++ {
		if _, err := m.Push(ctx, ""); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	all.Wait()
	if s := m.Status(); s.Pushed.Files == 0 || s.Pushed.Held > 1<<20+smallSize(2)*4 {
		t.Errorf("after %d pushes: %+v", pushes, s.Pushed)
	}
}

func TestSmallReportsErrors(t *testing.T) {
	names := smallSet(4)
	m := start(t, names, Options{Profile: Small, PushBudget: -1, ReadTimeout: time.Second})
	m.list(t, "d")
	m.blocks.fail(covey.ErrUnavailable)
	if _, err := os.ReadFile(m.path(smallPath(0))); !isErrno(err, syscall.EIO) {
		t.Errorf("nobody has it: %v", err)
	}
	m.blocks.fail(covey.ErrStale) // the data set was not immutable after all
	if _, err := os.ReadFile(m.path(smallPath(1))); !isErrno(err, syscall.ESTALE) {
		t.Errorf("changed at the origin: %v", err)
	}
	m.blocks.fail(nil)
	m.wantFile(t, smallPath(0))
	if _, err := os.OpenFile(m.path(smallPath(0)), os.O_RDWR, 0); !isErrno(err, syscall.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
}

func TestSmallNeedsAnImmutableDataSet(t *testing.T) {
	needFuse(t)
	names := newFakeNames()
	_, err := New(names, newFakeBlocks(t, names), t.TempDir(), Options{Profile: Small})
	if !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("mounted, or %v", err)
	}
}

func TestAutoProfile(t *testing.T) {
	large := newFakeNames()
	large.opts.Immutable = true
	for i := range 70 {
		large.file(fmt.Sprintf("shard%02d", i), "v1", 5<<20)
	}
	mutable := smallSet(100)
	mutable.opts.Immutable = false
	for _, c := range []struct {
		name  string
		names *fakeNames
		want  Profile
	}{
		{"small and immutable", smallSet(100), Small},
		{"few", smallSet(10), Large},
		{"shards", large, Large},
		{"mutable", mutable, Large},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := start(t, c.names, Options{CompleteAtOpen: -1})
			if got := m.Status().Profile; got != Auto {
				t.Errorf("%v before the first open", got)
			}
			var some string
			for p, e := range c.names.entries {
				if e.Kind == dataset.File {
					some = p
				}
			}
			m.wantFile(t, some)
			s := m.Status()
			if s.Profile != c.want || (s.OpenDaemon+s.OpenPassthrough == 0) != (c.want == Small) {
				t.Errorf("profile %v, want %v; %+v", s.Profile, c.want, s)
			}
		})
	}
}

func TestParseProfile(t *testing.T) {
	for _, p := range []Profile{Auto, Large, Small} {
		if got, err := ParseProfile(p.String()); got != p || err != nil {
			t.Errorf("%v: %v, %v", p, got, err)
		}
	}
	if _, err := ParseProfile("tiny"); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("tiny: %v", err)
	}
}

// TestKernelKeepsSettledListings lists an immutable directory again: nothing comes
// to the daemon but the open. While the listing is not settled, it does.
func TestKernelKeepsSettledListings(t *testing.T) {
	names := smallSet(500)
	m := start(t, names, Options{})
	names.fail(covey.ErrUnavailable)
	if _, err := os.ReadDir(m.path("d")); !isErrno(err, syscall.EIO) {
		t.Fatalf("a listing that broke off: %v", err)
	}
	names.fail(nil)
	m.list(t, "d")
	lists := names.lists.Load()
	for range 3 {
		if got, err := os.ReadDir(m.path("d")); err != nil || len(got) != 500 {
			t.Fatalf("%d entries, %v", len(got), err)
		}
	}
	if n := names.lists.Load() - lists; n != 0 {
		t.Errorf("the daemon listed %d times more", n)
	}
}
