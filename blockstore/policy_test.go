package blockstore

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/covey-cache/covey"
)

// In epochs of 3,000 equal blocks, each in an order of its own, the hit ratio of
// epoch is the share c that fits, and that of lru is c + (1-c) ln(1-c), both within
// a point, in one tier and across two. Each block is an object, as small as the disk
// allocates.
func TestHitRatio(t *testing.T) {
	const blocks = 3000
	objects := make([]covey.Object, blocks)
	for i := range objects {
		objects[i] = object(fmt.Sprintf("sample-%04d", i), 16)
	}
	for _, c := range []float64{.35, .5, .8, .9} {
		for policy, want := range map[Policy]float64{PolicyEpoch: c, PolicyLRU: c + (1-c)*math.Log(1-c)} {
			for tiers := range 2 {
				testHitRatio(t, policy, c, want, objects, tiers+1)
			}
		}
	}
}

func testHitRatio(t *testing.T, policy Policy, c, want float64, objects []covey.Object, tiers int) {
	const epochs = 4
	blocks := len(objects)
	t.Run(fmt.Sprintf("%s %v in %d", policy, c, tiers), func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, uint64(c*100)))
		budget := int64(math.Round(c*float64(blocks))) * unit
		opts := Options{Dir: "/c", FS: MemFS(), Budget: budget, Policy: policy}
		if tiers == 2 {
			opts.Budget = budget / 4 / unit * unit
			opts.Slower = []TierOptions{{Dir: "/d", FS: opts.FS, Budget: budget - opts.Budget}}
		}
		s := mustOpenStore(t, opts)
		hits := 0
		for epoch := range epochs + 2 {
			for _, i := range rng.Perm(blocks) {
				if readThrough(t, s, objects[i].Block(0)) && epoch >= 2 { // warm by then
					hits++
				}
			}
		}
		got := float64(hits) / float64(blocks*epochs)
		t.Logf("hit ratio %.4f, expected %.4f", got, want)
		if math.Abs(got-want) > .01 {
			t.Errorf("hit ratio %.4f, want %.4f within a point", got, want)
		}
		if u := s.Usage(); u.Used != budget || u.ReadOnly {
			t.Errorf("usage %+v", u)
		}
	})
}

// readThrough reads a block as a cache does, and reports whether it was a hit.
func readThrough(t *testing.T, s blocks, l covey.Locator) bool {
	h, err := s.Get(l)
	if err == nil {
		h.Release()
		return true
	}
	data := make([]byte, l.Range().Len)
	if err := s.Put(l, covey.Place{}, covey.Sum(data), data); err != nil && !errors.Is(err, covey.ErrFull) {
		t.Fatal(err)
	}
	return false
}

// lru evicts whole objects, the ones used longest ago first, never a pinned one nor
// the one that room is made for, and nothing when that would not help.
func TestLRU(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Budget: 6 * testBlock, Policy: PolicyLRU}
	s := mustOpenStore(t, opts)
	a, b, c, d := object("a", 2*testBlock), object("b", 2*testBlock), object("c", 2*testBlock), object("d", 3*testBlock)
	for _, o := range []covey.Object{a, b, c} {
		putAll(t, s, o)
	}
	mustPin(t, s, a)
	wantBlock(t, s, b.Block(0))
	wantWhole(t, s, b)
	put(t, s, d.Block(0))
	put(t, s, d.Block(1))
	for o, blocks := range map[covey.Object]int{a: 2, b: 2, c: 0, d: 2} {
		if st := s.Stat(o); st.Blocks != blocks {
			t.Errorf("%s has %d blocks, want %d", o.Key, st.Blocks, blocks)
		}
	}
	put(t, s, d.Block(2)) // b goes, though d was used before
	if s.Stat(b).Blocks != 0 || s.Stat(d).Blocks != 3 || s.Stat(a).Blocks != 2 {
		t.Errorf("a %+v, b %+v, d %+v", s.Stat(a), s.Stat(b), s.Stat(d))
	}
	if err := s.Pin(object("big", 5*testBlock)); !errors.Is(err, covey.ErrFull) {
		t.Errorf("pin of what does not fit: %v", err)
	}
	mustPin(t, s, object("e", testBlock))
	wide := object("wide", 6*testBlock)
	put(t, s, wide.Block(0)) // d goes
	put(t, s, wide.Block(1))
	put(t, s, wide.Block(2))
	data := content(wide.Block(3))
	if err := s.Put(wide.Block(3), covey.Place{}, covey.Sum(data), data); !errors.Is(err, covey.ErrFull) {
		t.Errorf("put beside pins: %v", err)
	}
	want := s.Usage()
	mustClose(t, s)
	s = mustOpenStore(t, opts)
	if got := s.Usage(); got != want {
		t.Errorf("after a restart %+v, want %+v", got, want)
	}
	wantBlock(t, s, wide.Block(2))
	put(t, s, b.Block(0)) // names come from the index now
	if s.Stat(wide).Blocks != 0 || s.Stat(a).Blocks != 2 {
		t.Errorf("wide %+v, a %+v", s.Stat(wide), s.Stat(a))
	}
}

// Many goroutines read through a small store; it never holds more than it may, and
// what it serves is right.
func TestConcurrentLRU(t *testing.T) {
	const budget = 8 * testBlock
	s := mustOpenStore(t, Options{Dir: t.TempDir(), Budget: budget, Policy: PolicyLRU})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(g)))
			for range 100 {
				o := object(fmt.Sprint("o", rng.IntN(8)), 3*testBlock)
				l := o.Block(rng.IntN(3))
				b := content(l)
				if err := s.Put(l, placeOf(l), covey.Sum(b), b); err != nil && !errors.Is(err, covey.ErrFull) {
					t.Error(err)
				}
				if h, err := s.Get(l); err == nil {
					got := make([]byte, h.Len())
					if _, err := h.ReadAt(got, 0); err != nil || covey.Sum(got) != covey.Sum(b) {
						t.Errorf("%s: wrong bytes (%v)", l, err)
					}
					h.Release()
				}
				if u := s.Usage(); u.Used > budget {
					t.Errorf("usage %+v", u)
				}
			}
		})
	}
	wg.Wait()
	u := s.Usage()
	if du, err := s.Du(nil); err != nil || du.Used != u.Used || du.Blocks != u.Blocks {
		t.Errorf("du %+v (%v), usage %+v", du, err, u)
	}
}

// The order of last use agrees with a list, through additions, uses and removals.
func TestTableOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	tab := newTable()
	var order []covey.ObjectID // oldest first
	for n := range 5000 {
		i := rng.IntN(len(order) + 1)
		switch {
		case i == len(order) || len(order) < 5:
			id := object(fmt.Sprint(n), 1).ID()
			tab.add(id, 1)
			order = append(order, id)
			continue
		case rng.IntN(4) == 0:
			tab.remove(tab.find(&order[i]))
			order = append(order[:i], order[i+1:]...)
		default:
			id := order[i]
			tab.touch(tab.find(&id))
			order = append(append(order[:i], order[i+1:]...), id)
		}
		back, at := 0, tab.ends(kindKept).oldest
		for _, id := range order {
			if e := tab.at(at - 1); e.id != id || int(e.older) != back {
				t.Fatalf("step %d: the order is broken", n)
			}
			back, at = int(at), tab.at(at-1).newer
		}
		if at != 0 || int(tab.ends(kindKept).newest) != back {
			t.Fatalf("step %d: the list ends wrong", n)
		}
	}
}
