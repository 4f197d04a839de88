package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/time/rate"

	"github.com/covey-cache/covey"
)

// testMover moves at once when it is told to.
func testMover(s *Store) *mover {
	return &mover{s: s, ctx: context.Background(), limit: rate.NewLimiter(rate.Inf, 0)}
}

// fault 4, fault 5: power is lost at every single operation while an object moves to
// another tier, with its pin, and back. Each picture opens, has every block and the
// pin in one tier at least, serves no other bytes, and in the end has the object
// once.
func TestCrashWhileObjectMoves(t *testing.T) {
	for _, keep := range []int{0, 60} {
		t.Run(fmt.Sprintf("keep%d", keep), func(t *testing.T) {
			mem := MemFS()
			var pictures []*vfs.MemFS
			var on atomic.Bool
			point := errorfs.InjectorFunc(func(errorfs.Op) error {
				if on.Load() {
					pictures = append(pictures, CrashMemFS(mem, uint64(len(pictures)), keep))
				}
				return nil
			})
			opts := twoTiers(errorfs.Wrap(mem, serial(point)), 1<<30, 1<<30)
			opts.SyncEvery, opts.still = time.Hour, true
			s := mustOpenStore(t, opts)
			o, other := object("o", 5*testBlock), object("other", 2*testBlock)
			for _, x := range []covey.Object{o, other} {
				putAll(t, s, x)
			}
			mustPin(t, s, o)
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			fast, slow := s.shelves[0].at.Load(), s.shelves[1].at.Load()
			m := testMover(s)
			on.Store(true)
			if err := m.move(o, fast, slow); err != nil {
				t.Fatal(err)
			}
			if got := tierNames(s, o); got != "slow:0 slow:1 slow:2 slow:3 slow:4" {
				t.Errorf("moved to %q", got)
			}
			if err := m.move(o, slow, fast); err != nil {
				t.Fatal(err)
			}
			on.Store(false)
			mustClose(t, s)
			t.Logf("%d crash points", len(pictures))
			both := 0
			for i, fs := range pictures {
				opts := twoTiers(fs, 1<<30, 1<<30)
				opts.still = true
				s := mustOpenStore(t, opts)
				if len(strings.Fields(tierNames(s, o))) > o.Blocks() {
					both++
				}
				for _, x := range []covey.Object{o, other} {
					for j := range x.Blocks() {
						wantBlock(t, s, x.Block(j))
					}
				}
				if !s.Stat(o).Pinned || s.Stat(o).Blocks != 5 {
					t.Fatalf("crash point %d: %+v", i, s.Stat(o))
				}
				m := testMover(s)
				m.findSplit()
				for m.gather(m.usable()) {
				}
				if got := len(strings.Fields(tierNames(s, o))); got != o.Blocks() {
					t.Fatalf("crash point %d: in the end %d blocks are in %q", i, got, tierNames(s, o))
				}
				for j := range o.Blocks() {
					wantBlock(t, s, o.Block(j))
				}
				if u := s.Usage(); u.Used != 7*testBlock || !s.Stat(o).Pinned || u.Pinned != 1 || u.Reserved != 0 {
					t.Fatalf("crash point %d: usage %+v", i, u)
				}
				mustClose(t, s)
			}
			if both == 0 {
				t.Error("no crash left the object in both tiers: the test proves nothing")
			}
		})
	}
}

// A fast tier that fills up gives what is used least to the slow one, so that new
// objects still land in it; what is used often comes back, and nothing moves to and
// fro when everything is used alike.
func TestMovesDownAndUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := twoTiers(MemFS(), 40*testBlock, 200*testBlock)
		opts.MoveRate = 1 << 20
		s := mustOpenStore(t, opts)
		objects := make([]covey.Object, 60)
		for i := range objects {
			objects[i] = object(fmt.Sprint("o", i), testBlock)
			putAll(t, s, objects[i])
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		fast := s.shelves[0].at.Load()
		if u := fast.Usage(); u.Used < 30*testBlock || u.Used > 36*testBlock {
			t.Errorf("the fast tier has %d blocks, want 80 to 90 of 100", u.Used/testBlock)
		}
		if got := tierNames(s, objects[59]); got != "fast:0" {
			t.Errorf("the newest object is in %q", got)
		}
		if got := tierNames(s, objects[0]); got != "slow:0" {
			t.Errorf("the oldest object is in %q", got)
		}
		before := s.moved.Load()
		for range 3 {
			for _, o := range objects {
				wantBlock(t, s, o.Block(0))
			}
			time.Sleep(time.Minute)
		}
		if n := s.moved.Load() - before; n > 6 { // into what is free beyond the tenth
			t.Errorf("%d objects moved while all were used alike", n)
		}
		for range 20 {
			wantBlock(t, s, objects[0].Block(0))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if got := tierNames(s, objects[0]); got != "fast:0" {
			t.Errorf("the object that is used most is in %q", got)
		}
		for _, o := range objects {
			wantBlock(t, s, o.Block(0))
		}
		if u := s.Usage(); u.Used != 60*testBlock || u.Blocks != 60 {
			t.Errorf("usage %+v", u)
		}
		mustClose(t, s)
	})
}

// Moving takes no more of the disk than it may.
func TestMoveRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := twoTiers(MemFS(), 100*testBlock, 200*testBlock)
		opts.MoveRate = 2 * testBlock
		s := mustOpenStore(t, opts)
		for i := range 100 {
			putAll(t, s, object(fmt.Sprint("o", i), testBlock))
		}
		time.Sleep(5 * time.Second)
		if n := s.moved.Load(); n < 5 || n > 11 {
			t.Errorf("%d blocks moved in 5 s at 2 a second", n)
		}
		mustClose(t, s)
	})
}

// A tier whose budget was made smaller gives what is too much to the other tiers, or
// away; what is pinned stays. A tier that is left out is not touched, its blocks are
// not served, and are there when it is back.
func TestShrinkAndRemoveTier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := MemFS()
		s := mustOpenStore(t, twoTiers(fs, 20*testBlock, 20*testBlock))
		var objects []covey.Object
		for i := range 18 {
			objects = append(objects, object(fmt.Sprint("o", i), testBlock))
			putAll(t, s, objects[i])
		}
		mustPin(t, s, objects[0])
		mustClose(t, s)

		s = mustOpenStore(t, twoTiers(fs, 5*testBlock, 20*testBlock))
		time.Sleep(time.Minute)
		if u := s.Tiers()[0]; u.Used > u.Budget {
			t.Errorf("the fast tier has %d of %d bytes", u.Used, u.Budget)
		}
		for _, o := range objects {
			wantBlock(t, s, o.Block(0))
		}
		mustClose(t, s)

		s = mustOpenStore(t, twoTiers(fs, 5*testBlock, 4*testBlock))
		time.Sleep(time.Minute)
		for _, u := range s.Tiers() {
			if u.Used > u.Budget {
				t.Errorf("tier %s has %d of %d bytes", u.Dir, u.Used, u.Budget)
			}
		}
		wantBlock(t, s, objects[0].Block(0)) // pinned
		if u := s.Usage(); u.Blocks < 8 {
			t.Errorf("more went than had to: %+v", u)
		}
		want := s.Tiers()[1]
		mustClose(t, s)

		before := dirState(t, fs, "/slow")
		s = mustOpenStore(t, Options{Dir: "/fast", Budget: 5 * testBlock, FS: fs})
		if u := s.Usage(); u.Dir != "/fast" || u.Blocks == 0 {
			t.Errorf("usage %+v", u)
		}
		mustClose(t, s)
		if after := dirState(t, fs, "/slow"); after != before {
			t.Errorf("the tier that was left out changed:\n%s\nwas\n%s", after, before)
		}
		s = mustOpenStore(t, twoTiers(fs, 5*testBlock, 4*testBlock))
		if got := s.Tiers()[1]; got.Blocks != want.Blocks {
			t.Errorf("it is back with %+v, had %+v", got, want)
		}
		mustClose(t, s)
	})
}

// dirState lists all files of a directory with their sizes.
func dirState(t *testing.T, fs FS, dir string) string {
	t.Helper()
	var b strings.Builder
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, n := range names {
		path := fs.PathJoin(dir, n)
		info, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			b.WriteString(dirState(t, fs, path))
		} else {
			fmt.Fprintf(&b, "%s %d\n", path, info.Size())
		}
	}
	return b.String()
}

// An object that was spread for want of room is gathered once there is room, and can
// be passed through then.
func TestGather(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenStore(t, Options{Dir: dir + "/fast", Budget: 4 * testBlock, Slower: []TierOptions{{Dir: dir + "/slow", Budget: 5 * testBlock}}, still: true})
	o, in := object("o", 5*testBlock), object("in", 2*testBlock)
	putAll(t, s, in)
	put(t, s, object("in2", testBlock).Block(0))
	putAll(t, s, object("in3", 2*testBlock)) // slow
	putUntilFull(t, s, o)
	if got := tierNames(s, o); got != "fast:0 slow:1 slow:2 slow:3" {
		t.Fatalf("it is in %q", got)
	}
	if _, err := s.OpenWhole(o); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("open whole: %v", err)
	}
	if _, err := s.Evict(object("in3", 2*testBlock)); err != nil {
		t.Fatal(err)
	}
	put(t, s, o.Block(4))
	m := testMover(s)
	s.noteSplit(o.ID(), s.shelves[0].at.Load())
	m.gather(m.usable())
	if got := tierNames(s, o); got != "slow:0 slow:1 slow:2 slow:3 slow:4" {
		t.Errorf("it is in %q", got)
	}
	wantWhole(t, s, o)
}

// Objects move to and fro under readers; each read finds its block, with its bytes,
// and files that were given away keep theirs.
func TestReadersWhileObjectsMove(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenStore(t, Options{Dir: dir + "/fast", Budget: 1 << 30, Slower: []TierOptions{{Dir: dir + "/slow", Budget: 1 << 30}}})
	var objects []covey.Object
	for i := range 4 {
		objects = append(objects, object(fmt.Sprint("o", i), 3*testBlock))
		putAll(t, s, objects[i])
	}
	var files []*os.File
	for _, o := range objects {
		files = append(files, wantWhole(t, s, o))
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	var reads atomic.Int64
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for !stop.Load() {
				o := objects[rng.IntN(len(objects))]
				l := o.Block(rng.IntN(3))
				h, err := s.Get(l)
				if err != nil {
					t.Errorf("get %s: %v", l, err)
					return
				}
				got, err := io.ReadAll(io.NewSectionReader(h, 0, int64(h.Len())))
				h.Release()
				if err != nil || !bytes.Equal(got, content(l)) {
					t.Errorf("read %s: wrong bytes (%v)", l, err)
					return
				}
				if s.Present(extentOf(o, 0)) != covey.FirstBits(3) {
					t.Errorf("%s is not present", o.Key)
				}
				reads.Add(1)
			}
		})
	}
	m := testMover(s)
	fast, slow := s.shelves[0].at.Load(), s.shelves[1].at.Load()
	moved := 0
	for range 10 {
		for _, pair := range [][2]*tier{{fast, slow}, {slow, fast}} {
			for _, o := range objects {
				if err := m.move(o, pair[0], pair[1]); err != nil {
					t.Error(err)
				}
				moved++
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d reads during %d moves", reads.Load(), moved)
	for i, f := range files {
		wantContent(t, f, objects[i])
	}
	if u := s.Usage(); u.Used != 12*testBlock || u.Blocks != 12 {
		t.Errorf("usage %+v", u)
	}
}

// The slow tier's disk fails while an object moves to it: the object stays where it
// was.
func TestMoveToFailingTier(t *testing.T) {
	fs, toggle := faultyFS(MemFS(), "/slow/", errors.New("disk on fire"), errorfs.OpFileWriteAt, errorfs.OpFileSync)
	s := mustOpenStore(t, twoTiers(fs, 1<<20, 1<<20))
	o := object("o", 3*testBlock)
	putAll(t, s, o)
	toggle.On()
	m := testMover(s)
	if err := m.move(o, s.shelves[0].at.Load(), s.shelves[1].at.Load()); err == nil {
		t.Error("it moved")
	}
	if got := tierNames(s, o); got != "fast:0 fast:1 fast:2" {
		t.Errorf("it is in %q", got)
	}
	for i := range o.Blocks() {
		wantBlock(t, s, o.Block(i))
	}
	toggle.Off()
}
