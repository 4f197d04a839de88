package blockstore

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/covey-cache/covey"
)

// moveInSteps is a store of two tiers whose mover brings a pinned object from the slow
// one to the fast one. The hook is called while the first block of the copy is written.
func moveInSteps(t *testing.T, hook func(s *Store, o covey.Object)) (s *Store, o covey.Object, err error) {
	t.Helper()
	o = object("o", 3*testBlock)
	var on atomic.Bool
	mem := MemFS()
	opts := twoTiers(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt && strings.HasPrefix(op.Path, "/fast/data/") && on.Swap(false) {
			hook(s, o)
		}
		return nil
	})), 1<<20, 1<<20)
	opts.still = true
	s = mustOpenStore(t, opts)
	for i := range o.Blocks() {
		l := o.Block(i)
		if err := s.shelves[1].at.Load().Put(l, placeOf(l), covey.Sum(content(l)), content(l)); err != nil {
			t.Fatal(err)
		}
	}
	mustPin(t, s, o)
	on.Store(true)
	err = testMover(s).move(o, s.shelves[1].at.Load(), s.shelves[0].at.Load())
	if on.Load() {
		t.Fatal("nothing was moved: the test proves nothing")
	}
	return s, o, err
}

// What is dropped or evicted while it moves is gone from both tiers: the tier that it
// goes to was looked at before the block came there.
func TestDropWhileObjectMoves(t *testing.T) {
	for name, drop := range map[string]func(*Store, covey.Object) error{
		"block":  func(s *Store, o covey.Object) error { return s.shelves[1].at.Load().Drop(o.Block(0)) },
		"object": func(s *Store, o covey.Object) error { return s.shelves[1].at.Load().DropObject(o) },
	} {
		t.Run(name, func(t *testing.T) {
			// The first half of Store.Drop, up to the tier that the block is in: the
			// write of its copy is under way, so that the other tier has nothing.
			s, o, err := moveInSteps(t, func(s *Store, o covey.Object) {
				s.moving.disturb(o.ID())
				if got := s.Tiers()[0].Blocks; got != 0 {
					t.Errorf("the fast tier has %d blocks before the copy is written", got)
				}
				if err := drop(s, o); err != nil {
					t.Error(err)
				}
			})
			if !errors.Is(err, errDisturbed) {
				t.Errorf("the move ended with %v", err)
			}
			wantMissing(t, s, o.Block(0))
			if u := s.Tiers()[0]; u.Used != 0 {
				t.Errorf("the tier that it did not come to: %+v", u)
			}
		})
	}
	t.Run("hooks", func(t *testing.T) {
		s := mustOpenStore(t, twoTiers(MemFS(), 1<<20, 1<<20))
		o := object("o", testBlock)
		for name, call := range map[string]func() error{
			"Drop":       func() error { return s.Drop(o.Block(0)) },
			"DropObject": func() error { return s.DropObject(o) },
			"Evict":      func() error { _, err := s.Evict(o); return err },
		} {
			s.moving.begin(o.ID())
			if err := call(); err != nil || !s.moving.isDisturbed() {
				t.Errorf("%s: the mover does not hear of it (err %v)", name, err)
			}
			s.moving.end()
		}
	})
}

// A block that was damaged on the disk after it was checked gets no checksum of its own
// in the tier that it moves to: it is dropped and counted, and the others move.
func TestDamagedBlockDoesNotMove(t *testing.T) {
	mem := MemFS()
	opts := twoTiers(mem, 1<<20, 1<<20)
	opts.still = true
	corrupt := 0
	opts.OnCorrupt = func(covey.Locator) { corrupt++ }
	s := mustOpenStore(t, opts)
	o := object("o", 3*testBlock)
	putAll(t, s, o)
	fast, slow := s.shelves[0].at.Load(), s.shelves[1].at.Load()
	if err := fast.data.write(o.ID(), testBlock+10, []byte("rot")); err != nil {
		t.Fatal(err)
	}
	if err := testMover(s).move(o, fast, slow); err != nil {
		t.Fatal(err)
	}
	wantBlock(t, s, o.Block(0))
	wantMissing(t, s, o.Block(1))
	wantBlock(t, s, o.Block(2))
	if got := tierNames(s, o); got != "slow:0 slow:2" || corrupt != 1 {
		t.Errorf("in %q, %d blocks counted as damaged", got, corrupt)
	}
}

// An object that cannot move keeps the one pin that it had; one whose pin is ended
// while it moves has none in the end.
func TestPinWhileObjectMoves(t *testing.T) {
	fs, toggle := faultyFS(MemFS(), "/slow/data/", syscall.EIO, errorfs.OpFileWriteAt)
	opts := twoTiers(fs, 1<<20, 1<<20)
	opts.still = true
	s := mustOpenStore(t, opts)
	o := object("o", 3*testBlock)
	putAll(t, s, o)
	mustPin(t, s, o)
	toggle.On()
	fast, slow := s.shelves[0].at.Load(), s.shelves[1].at.Load()
	if err := testMover(s).move(o, fast, slow); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the move ended with %v", err)
	}
	toggle.Off()
	if u := s.Usage(); !fast.keeps(o.ID()) || u.Pinned != 1 || u.Reserved != 0 {
		t.Errorf("after the move failed: %+v", u)
	}

	ended := make(chan error, 1)
	s, o, err := moveInSteps(t, func(s *Store, o covey.Object) { go func() { ended <- s.Unpin(o) }() })
	if e := <-ended; err != nil || e != nil || s.Stat(o).Pinned {
		t.Errorf("move %v, unpin %v, pinned %v", err, e, s.Stat(o).Pinned)
	}
}
