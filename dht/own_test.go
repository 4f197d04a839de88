package dht

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// extentWithHomes returns an extent whose homes are these, in this order.
func extentWithHomes(t *testing.T, d *Directory, homes ...covey.PeerID) covey.ExtentID {
	t.Helper()
	for i := range 1000 {
		if e := covey.ExtentID(covey.Sum([]byte{byte(i), byte(i >> 8)})); slices.Equal(d.Homes(e), homes) {
			return e
		}
	}
	t.Fatalf("no extent of a thousand has the homes %v", homes)
	return covey.ExtentID{}
}

// A home grants nothing that its own store, or a fellow home's, has, although
// neither has announced it: what a mesh meets that restarts as a whole.
func TestHomesAskTheirStores(t *testing.T) {
	x := testDigest("x")
	slot0 := covey.Bitmap(0).With(0)
	for _, tc := range []struct {
		name   string
		holder covey.PeerID
		held   Have
		want   State // of slot 0
	}{
		{name: "the home itself", holder: "a", held: Have{Have: slot0, Digests: []covey.Digest{x}}, want: Held},
		{name: "a fellow home", holder: "b", held: Have{Have: slot0, Digests: []covey.Digest{x}}, want: Held},
		{name: "the last home", holder: "c", held: Have{Have: slot0, Digests: []covey.Digest{x}}, want: Held},
		{name: "a store with other blocks of it", holder: "a", held: Have{Have: slot0 << 5, Digests: []covey.Digest{x}}, want: Granted},
		{name: "an answer that makes no sense", holder: "a", held: Have{Have: slot0}, want: Granted},
		{name: "nobody", want: Granted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				for _, id := range []covey.PeerID{"a", "b", "c", "d"} {
					n := c.start(id, "a", "b", "c", "d")
					n.d.own = func(e covey.ExtentID) (Have, bool) {
						h := tc.held
						h.Extent = e
						return h, id == tc.holder
					}
				}
				// d asks, which has no part in the extent.
				e := extentWithHomes(t, c.nodes["d"].d, "a", "b", "c")
				began := time.Now()
				plan, err := c.nodes["d"].d.Resolve(t.Context(), Want{Extent: e, Count: 2, Need: covey.FirstBits(2)})
				if err != nil || plan.Home != "a" || len(plan.Blocks) != 2 {
					t.Fatalf("plan %+v, %v", plan, err)
				}
				if took := time.Since(began); took > 0 {
					t.Errorf("took %v", took)
				}
				b := plan.Blocks[0]
				if b.State != tc.want {
					t.Errorf("slot 0 is %v, want %v", b.State, tc.want)
				}
				if tc.want == Held && (!slices.Equal(b.Peers, []covey.PeerID{tc.holder}) || b.Digest != x) {
					t.Errorf("held by %v with digest %v", b.Peers, b.Digest)
				}
				if got := plan.Blocks[1].State; got != Granted {
					t.Errorf("slot 1, which nobody has, is %v", got)
				}
				c.close()
			})
		})
	}
}

// A home that is asked for what its own store has gives nothing away about
// extents that it has nothing of: no entry is made for them.
func TestAskingMakesNoEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		a := c.start("a", "a", "b")
		asked := 0
		a.d.own = func(e covey.ExtentID) (Have, bool) {
			asked++
			return Have{Extent: e}, false
		}
		b := c.start("b", "a", "b")
		for i := range 100 {
			if _, err := b.d.askKnown(t.Context(), "a", covey.ExtentID(covey.Sum([]byte{byte(i)}))); err != nil {
				t.Fatal(err)
			}
		}
		if n := value(t, a.d.m.entries); n != 0 || asked != 100 {
			t.Errorf("%v entries after %d questions to the store", n, asked)
		}
		c.close()
	})
}
