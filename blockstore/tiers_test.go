package blockstore

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
)

// blocks is what tests need of a store and of a single tier alike.
type blocks interface {
	Get(l covey.Locator) (Handle, error)
	Put(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error
}

func mustOpenStore(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// twoTiers are options of a fast tier and a slow one, in memory.
func twoTiers(fs FS, fast, slow int64) Options {
	return Options{Dir: "/fast", Budget: fast, FS: fs, Slower: []TierOptions{{Dir: "/slow", Budget: slow, FS: fs}}}
}

// tierNames says which tiers have which blocks of an object.
func tierNames(s *Store, o covey.Object) string {
	var at []string
	for sh := range s.shelves {
		t := s.shelves[sh].at.Load()
		if t == nil {
			continue
		}
		for i := range o.Blocks() {
			if t.holds(blockKey{o.ID(), uint32(i)}) {
				at = append(at, fmt.Sprintf("%s:%d", filepath.Base(t.opts.Dir), i))
			}
		}
	}
	return strings.Join(at, " ")
}

// A new object goes to the first tier with room for all of it, its blocks stay
// together, and what is in either is served, counted and advertised once.
func TestTwoTiers(t *testing.T) {
	fs := MemFS()
	opts := twoTiers(fs, 4*testBlock, 8*testBlock)
	s := mustOpenStore(t, opts)
	a, b, c, d := object("a", 3*testBlock), object("b", 3*testBlock), object("c", testBlock), object("d", 6*testBlock)
	for _, o := range []covey.Object{a, b, c} {
		putAll(t, s, o)
	}
	for o, want := range map[covey.Object]string{
		a: "fast:0 fast:1 fast:2", b: "slow:0 slow:1 slow:2", c: "fast:0",
	} {
		if got := tierNames(s, o); got != want {
			t.Errorf("%s is in %q, want %q", o.Key, got, want)
		}
	}
	putUntilFull(t, s, d)
	if got := tierNames(s, d); got != "slow:0 slow:1 slow:2 slow:3 slow:4" {
		t.Errorf("d is in %q", got)
	}
	check := func(s *Store) {
		t.Helper()
		for _, o := range []covey.Object{a, b, c} {
			for i := range o.Blocks() {
				wantBlock(t, s, o.Block(i))
			}
		}
		wantMissing(t, s, d.Block(5))
		if got := s.Present(extentOf(b, 0)); got != covey.FirstBits(3) {
			t.Errorf("present %x", got)
		}
		if u := s.Usage(); u.Used != 12*testBlock || u.Budget != 12*testBlock || u.Blocks != 12 || u.Whole != 3 {
			t.Errorf("usage %+v", u)
		}
		if du, err := s.Du(nil); err != nil || du.Objects != 4 || du.Blocks != 12 || du.Used != 12*testBlock {
			t.Errorf("du %+v, %v", du, err)
		}
		if n := len(maps.Collect(extents(s))); n != 4 {
			t.Errorf("%d extents, want 4", n)
		}
	}
	check(s)
	mustClose(t, s)
	s = mustOpenStore(t, opts)
	check(s)
}

func extents(s *Store) func(func(covey.ExtentID, covey.Bitmap) bool) {
	return func(yield func(covey.ExtentID, covey.Bitmap) bool) {
		for h := range s.All() {
			if !yield(h.Extent, h.Have) {
				return
			}
		}
	}
}

// putUntilFull admits an object's blocks until there is no room for one.
func putUntilFull(t *testing.T, s *Store, o covey.Object) {
	t.Helper()
	for i := range o.Blocks() {
		b := content(o.Block(i))
		err := s.Put(o.Block(i), placeOf(o.Block(i)), covey.Sum(b), b)
		if errors.Is(err, covey.ErrFull) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// An object that is larger than the room of any tier is spread, and still served;
// what two tiers have of one extent is advertised as one.
func TestSplitObject(t *testing.T) {
	s := mustOpenStore(t, twoTiers(MemFS(), 2*testBlock, 3*testBlock))
	o := object("o", 6*testBlock)
	putUntilFull(t, s, o)
	if got := tierNames(s, o); got != "fast:0 fast:1 slow:2 slow:3 slow:4" {
		t.Errorf("it is in %q", got)
	}
	for i := range 5 {
		wantBlock(t, s, o.Block(i))
	}
	e := extentOf(o, 0)
	h, ok := s.Extent(e.ID)
	if !ok || h.Have != covey.FirstBits(5) || len(h.Digests) != 5 {
		t.Errorf("extent %+v, %v", h, ok)
	}
	for i, d := range h.Digests {
		if d != covey.Sum(content(o.Block(i))) {
			t.Errorf("digest of block %d is another's", i)
		}
	}
	if st := s.Stat(o); st.Blocks != 5 || st.Used != 5*testBlock || st.Whole {
		t.Errorf("%+v", st)
	}
	if n, err := s.Evict(o); n != 5*testBlock || err != nil {
		t.Errorf("evict: %d, %v", n, err)
	}
}

// Each kind of bad tier is one line that names the directories, and nothing is
// made or deleted.
func TestBadTiers(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/a", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/a", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	var many []TierOptions
	for i := range maxTiers {
		many = append(many, TierOptions{Dir: fmt.Sprintf("%s/t%d", dir, i)})
	}
	for _, tc := range []struct {
		name, says string
		opts       Options
	}{
		{"twice", dir + "/a is given twice", Options{Dir: dir + "/a", Slower: []TierOptions{{Dir: dir + "/a"}}}},
		{"by two names", dir + "/link are the same", Options{Dir: dir + "/a", Slower: []TierOptions{{Dir: dir + "/link"}}}},
		{"within", dir + "/link/x is within " + dir + "/a", Options{Dir: dir + "/a", Slower: []TierOptions{{Dir: dir + "/link/x"}}}},
		{"around", dir + "/a is within " + dir, Options{Dir: dir + "/a", Slower: []TierOptions{{Dir: dir}}}},
		{"missing", "is not set", Options{Dir: dir + "/a", Slower: []TierOptions{{}}}},
		{"too many", "more than 16", Options{Dir: dir + "/a", Slower: many}},
		{"above the disk", "is above the", Options{Dir: dir + "/a", Budget: 1 << 60}},
		{"negative", "budget of -1 bytes", Options{Dir: dir + "/a", Slower: []TierOptions{{Dir: dir + "/b", Budget: -1}}}},
	} {
		_, err := Open(tc.opts)
		if !errors.Is(err, covey.ErrInvalid) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", tc.name, err, tc.says)
		}
	}
	if names, err := os.ReadDir(dir + "/a"); err != nil || len(names) != 0 {
		t.Errorf("%v is left behind (%v)", names, err)
	}
	if _, size, ok := diskOf(dir); ok { // together above the disk that they share
		opts := Options{Dir: dir + "/a", Budget: size/2 + 1, Slower: []TierOptions{{Dir: dir + "/b", Budget: size / 2}}}
		if _, err := Open(opts); !errors.Is(err, covey.ErrInvalid) || !strings.Contains(err.Error(), "the disk that they share") {
			t.Errorf("together: %v", err)
		}
	}
}
