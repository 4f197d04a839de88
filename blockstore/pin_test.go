package blockstore

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/covey-cache/covey"
)

func mustPin(t testing.TB, s interface{ Pin(covey.Object) error }, o covey.Object) {
	t.Helper()
	if err := s.Pin(o); err != nil {
		t.Fatal(err)
	}
}

// A pin keeps room that nobody else gets, is refused with the bytes that are
// missing, and is given back block by block as they come and go.
func TestPin(t *testing.T) {
	s := mustOpen(t, Options{Dir: "/c", FS: MemFS(), Budget: 4*testBlock + unit})
	o, other := object("o", 3*testBlock), object("other", 3*testBlock)
	put(t, s, o.Block(1))
	mustPin(t, s, o)
	mustPin(t, s, o)
	if u := s.Usage(); u.Used != testBlock || u.Reserved != 2*testBlock || u.Pinned != 1 {
		t.Errorf("usage %+v", u)
	}
	put(t, s, other.Block(2))
	b := content(other.Block(0))
	if err := s.Put(other.Block(0), covey.Place{}, covey.Sum(b), b); !errors.Is(err, covey.ErrFull) {
		t.Errorf("put into kept room: %v", err)
	}
	err := s.Pin(other)
	var none *NoRoomError
	if !errors.As(err, &none) || none.Missing != 2*testBlock-unit || !errors.Is(err, covey.ErrFull) || strings.Contains(err.Error(), "\n") {
		t.Errorf("pin of what does not fit: %v, want %d bytes missing", err, 2*testBlock-unit)
	}
	t.Log(err)
	putAll(t, s, o)
	if n, err := s.Evict(o); n != 0 || !errors.Is(err, ErrPinned) {
		t.Errorf("evict what is pinned: %d, %v", n, err)
	}
	if err := s.Drop(o.Block(0)); err != nil { // its bytes were wrong
		t.Fatal(err)
	}
	put(t, s, object("small", 1).Block(0))
	if err := s.Put(other.Block(0), covey.Place{}, covey.Sum(b), b); !errors.Is(err, covey.ErrFull) {
		t.Errorf("put into the room of a dropped block: %v", err)
	}
	put(t, s, o.Block(0))
	if u := s.Usage(); u.Used != u.Budget || u.Reserved != 0 {
		t.Errorf("usage %+v, want a full tier", u)
	}
	if err := s.Unpin(o); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Evict(o); n != 3*testBlock || err != nil {
		t.Errorf("evict: %d, %v", n, err)
	}
	if n, err := s.Evict(o); n != 0 || err != nil {
		t.Errorf("evict again: %d, %v", n, err)
	}
	if err := s.Unpin(o); err != nil {
		t.Errorf("unpin what is not: %v", err)
	}
	if u := s.Usage(); u.Used != testBlock+unit || u.Pinned != 0 || u.Reserved != 0 {
		t.Errorf("usage %+v", u)
	}
}

// fault 4: a pin that was confirmed survives a power loss at once, and so does the
// end of one.
func TestPinSurvivesPowerLoss(t *testing.T) {
	mem := MemFS()
	s := mustOpen(t, Options{Dir: "/c", FS: mem, Budget: 1 << 20})
	o, done := object("o", 2*testBlock), object("done", testBlock)
	mustPin(t, s, done)
	mustPin(t, s, o)
	if err := s.Unpin(done); err != nil {
		t.Fatal(err)
	}
	after := CrashMemFS(mem, 1, 0)
	mustClose(t, s)
	for _, budget := range []int64{1 << 20, testBlock} { // as it was, and too small for the pin
		s = mustOpen(t, Options{Dir: "/c", FS: after, Budget: budget})
		if u := s.Usage(); u.Pinned != 1 || u.Reserved != 2*testBlock {
			t.Errorf("budget %d: usage %+v", budget, u)
		}
		if st := s.Stat(o); !st.Pinned || s.Stat(done).Pinned {
			t.Errorf("budget %d: %+v", budget, st)
		}
		put(t, s, o.Block(0))
		if err := s.Drop(o.Block(0)); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
	}
}

// fault 11: a pin that cannot be written is not a pin.
func TestPinOnFailingDisk(t *testing.T) {
	fs, toggle := faultyFS(MemFS(), "/index/", syscall.EIO, errorfs.OpFileWrite)
	s := mustOpen(t, Options{Dir: "/c", FS: fs, Budget: 1 << 20})
	kept := object("kept", testBlock)
	mustPin(t, s, kept)
	toggle.On()
	if err := s.Pin(object("o", testBlock)); err == nil {
		t.Error("pin was confirmed")
	}
	if err := s.Pin(object("o", testBlock)); !errors.Is(err, covey.ErrReadOnly) {
		t.Errorf("pin after the fault: %v, want ErrReadOnly", err)
	}
	if err := s.Unpin(kept); err == nil {
		t.Error("unpin was confirmed")
	}
	if u := s.Usage(); u.Pinned != 1 || u.Reserved != testBlock {
		t.Errorf("usage %+v", u)
	}
}

// An evicted object stays under who reads it.
func TestEvictUnderReaders(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), Budget: 1 << 30})
	o := object("o", 2*testBlock)
	putAll(t, s, o)
	f := wantWhole(t, s, o)
	h, err := s.Get(o.Block(1))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if n, err := s.Evict(o); n != 2*testBlock || err != nil {
		t.Errorf("evict: %d, %v", n, err)
	}
	wantMissing(t, s, o.Block(0))
	wantContent(t, f, o)
	b := make([]byte, testBlock)
	if n, err := h.ReadAt(b, 0); n != len(b) || err != nil || string(b) != string(content(o.Block(1))) {
		t.Errorf("read under a handle: %d, %v", n, err)
	}
	if _, err := os.Stat(dataPath(s.opts.Dir, o)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestDu(t *testing.T) {
	opts := Options{Dir: "/c", FS: MemFS(), Budget: 1 << 30}
	s := mustOpen(t, opts)
	part, whole, empty, absent := object("a/part", 3*testBlock), object("a/whole", 10), object("b/empty", 0), object("b/absent", testBlock)
	put(t, s, part.Block(2))
	putAll(t, s, whole)
	if err := s.PutEmpty(empty); err != nil {
		t.Fatal(err)
	}
	mustPin(t, s, part)
	mustPin(t, s, whole)
	mustPin(t, s, absent)
	check := func(when string) {
		t.Helper()
		for prefix, want := range map[string]Du{
			"a/":   {Objects: 2, Whole: 1, Blocks: 2, Used: testBlock + unit, Plain: testBlock + unit, Pinned: 2, PinnedUsed: testBlock + unit, Missing: 2 * testBlock},
			"b/":   {Objects: 1, Whole: 1, Pinned: 1, Missing: testBlock},
			"none": {},
		} {
			got, err := s.Du(func(o covey.Object) bool { return strings.HasPrefix(o.Key, prefix) })
			if err != nil || got != want {
				t.Errorf("%s: du of %s is %+v (%v), want %+v", when, prefix, got, err, want)
			}
		}
		if st := s.Stat(part); st != (Stat{Object: part, Blocks: 1, Used: testBlock, Plain: testBlock, Missing: 2 * testBlock, Pinned: true}) {
			t.Errorf("%s: %+v", when, st)
		}
		if st := s.Stat(empty); !st.Whole || st.Used != 0 {
			t.Errorf("%s: %+v", when, st)
		}
	}
	check("just put")
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	check("in the index")
	mustClose(t, s)
	if _, err := s.Du(nil); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("du of a closed store: %v", err)
	}
	s = mustOpen(t, opts)
	check("after a restart")
}

// Whatever many goroutines do to a few objects, what is used and what is kept add
// up, and never exceed the budget.
func TestConcurrentPins(t *testing.T) {
	const budget = 9 * testBlock
	s := mustOpen(t, Options{Dir: t.TempDir(), Budget: budget})
	var objects []covey.Object
	for i := range 5 {
		objects = append(objects, object(fmt.Sprint("o", i), int64(i+1)*testBlock))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 80 {
				o := objects[(i*3+g)%len(objects)]
				l := o.Block(i % o.Blocks())
				var err error
				switch (i + g) % 6 {
				case 0:
					err = s.Pin(o)
				case 1:
					err = s.Unpin(o)
				case 2:
					_, err = s.Evict(o)
				case 3:
					err = s.Drop(l)
				default:
					b := content(l)
					err = s.Put(l, placeOf(l), covey.Sum(b), b)
				}
				if err != nil && !errors.Is(err, covey.ErrFull) && !errors.Is(err, ErrPinned) {
					t.Error(err)
				}
				if u := s.Usage(); u.Used+u.Reserved > budget || u.Reserved < 0 {
					t.Errorf("usage %+v", u)
				}
			}
		})
	}
	wg.Wait()
	u := s.Usage()
	du, err := s.Du(nil)
	if err != nil || du.Used != u.Used || du.Missing != u.Reserved || du.Pinned != u.Pinned || du.Blocks != u.Blocks {
		t.Errorf("du %+v (%v), usage %+v", du, err, u)
	}
	for _, o := range objects {
		if s.Stat(o).Pinned {
			putAll(t, s, o)
		}
	}
}
