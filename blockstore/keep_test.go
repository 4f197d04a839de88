package blockstore

import (
	"context"
	"errors"
	"testing"

	"github.com/covey-cache/covey"
)

// A pin makes room by evicting what gives way to a primary, no more of it than it
// needs, and nothing at all when it would not fit all the same.
func TestPinMakesRoom(t *testing.T) {
	fill := func(t *testing.T, policy Policy) *Store {
		opts := twoTiers(MemFS(), 4*testBlock, 8*testBlock)
		opts.Policy, opts.still = policy, true
		s := mustOpenStore(t, opts)
		putAll(t, s, object("kept", 4*testBlock))
		for _, key := range []string{"a", "b"} {
			for l := range blocksOf(object(key, 4*testBlock)) {
				if err := s.PutReplica(l, placeOf(l), covey.Sum(content(l)), content(l), 1); err != nil {
					t.Fatal(err)
				}
			}
		}
		return s
	}
	blocks := func(s *Store, key string) int { return s.Stat(object(key, 4*testBlock)).Blocks }

	t.Run("replicas", func(t *testing.T) {
		s := fill(t, PolicyEpoch)
		o := object("o", 4*testBlock)
		mustPin(t, s, o)
		if blocks(s, "kept") != 4 || blocks(s, "a")+blocks(s, "b") != 4 {
			t.Errorf("kept has %d blocks, a %d, b %d", blocks(s, "kept"), blocks(s, "a"), blocks(s, "b"))
		}
		putAll(t, s, o)
		if st := s.Stat(o); !st.Pinned || !st.Whole {
			t.Errorf("%+v", st)
		}
		var none *NoRoomError
		if err := s.Pin(object("big", 6*testBlock)); !errors.As(err, &none) || none.Missing != 2*testBlock {
			t.Errorf("pin of what does not fit: %v", err)
		}
		if blocks(s, "a")+blocks(s, "b") != 4 {
			t.Error("a pin that was refused evicted something")
		}
	})
	t.Run("primaries", func(t *testing.T) {
		s := fill(t, PolicyLRU)
		mustPin(t, s, object("o", 8*testBlock))
		if blocks(s, "kept") != 4 || blocks(s, "a")+blocks(s, "b") != 0 {
			t.Errorf("kept has %d blocks, a %d, b %d", blocks(s, "kept"), blocks(s, "a"), blocks(s, "b"))
		}
	})
	t.Run("several", func(t *testing.T) {
		s := fill(t, PolicyEpoch)
		list := []covey.Object{object("a", 4*testBlock), object("o", 4*testBlock), object("p", testBlock)}
		n, err := s.PinAll(context.Background(), list)
		var none *NoRoomError
		if n != 0 || !errors.As(err, &none) || none.Missing != testBlock || blocks(s, "a") != 4 || blocks(s, "b") != 4 {
			t.Errorf("%d pinned: %v; a has %d blocks, b %d", n, err, blocks(s, "a"), blocks(s, "b"))
		}
		if n, err = s.PinAll(context.Background(), list[:2]); n != 2 || err != nil || blocks(s, "a") != 4 || blocks(s, "b") != 0 {
			t.Errorf("%d pinned: %v; a has %d blocks, b %d", n, err, blocks(s, "a"), blocks(s, "b"))
		}
	})
}

// An object that is pinned where none of it is gets there what another tier has of it,
// and would evict.
func TestPinGathers(t *testing.T) {
	opts := twoTiers(MemFS(), 4*testBlock, 8*testBlock)
	opts.still = true
	s := mustOpenStore(t, opts)
	o := object("o", 6*testBlock)
	l := o.Block(5)
	if err := s.shelves[0].at.Load().Put(l, placeOf(l), covey.Sum(content(l)), content(l)); err != nil {
		t.Fatal(err)
	}
	mustPin(t, s, o)
	if got := tierNames(s, o); got != "fast:5" || !s.shelves[1].at.Load().keeps(o.ID()) {
		t.Fatalf("in %q: the test proves nothing", got)
	}
	m := testMover(s)
	for m.gather(m.usable()) {
	}
	if got := tierNames(s, o); got != "slow:5" {
		t.Errorf("in %q", got)
	}
	wantBlock(t, s, l)
	if u := s.Usage(); u.Pinned != 1 || u.Reserved != 5*testBlock {
		t.Errorf("%+v", u)
	}
}

func blocksOf(o covey.Object) func(func(covey.Locator) bool) {
	return func(yield func(covey.Locator) bool) {
		for i := range o.Blocks() {
			if !yield(o.Block(i)) {
				return
			}
		}
	}
}

// Replicas that are about to be evicted stay when a pin comes first, and where a reader
// does, because of whom all of the object would go.
func TestReplicasStay(t *testing.T) {
	for name, come := range map[string]func(*testing.T, *Store, covey.Object){
		"pin": func(t *testing.T, s *Store, o covey.Object) { mustPin(t, s, o) },
		"reader": func(t *testing.T, s *Store, o covey.Object) {
			h, err := s.Get(o.Block(1))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Release)
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts := twoTiers(MemFS(), 4*testBlock, 8*testBlock)
			opts.still = true
			s := mustOpenStore(t, opts)
			o := object("o", 3*testBlock)
			put(t, s, o.Block(0))
			for i := 1; i < 3; i++ {
				l := o.Block(i)
				if err := s.PutReplica(l, placeOf(l), covey.Sum(content(l)), content(l), 1); err != nil {
					t.Fatal(err)
				}
			}
			come(t, s, o)
			s.shelves[0].at.Load().dropReplicas(o, o.ID())
			if got := s.Stat(o).Blocks; got != 3 {
				t.Errorf("%d blocks are left", got)
			}
		})
	}
}
