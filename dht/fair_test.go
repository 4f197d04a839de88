package dht

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// TestWhoReadsAllSendsLittle: one peer that is granted a whole extent, and a
// crowd that asks in the same order for every block, share the sending.
func TestWhoReadsAllSendsLittle(t *testing.T) {
	// In a bubble the processor takes no time, in which lines would become free.
	synctest.Test(t, whoReadsAllSendsLittle)
}

func whoReadsAllSendsLittle(t *testing.T) {
	const slots = 64
	for _, peers := range []int{8, 48, 256} {
		ids := peersNamed(peers)
		d := loneDirectory(DirectoryOptions{}, ids...)
		e, r := testExtent(1), d.view()
		want := Want{Extent: e, Count: slots, Need: covey.FirstBits(slots)}
		sends := map[covey.PeerID]int{}
		for _, id := range ids {
			v := d.table.answer(question{asker: id, ring: r, grant: true, want: want})
			for _, b := range v.plan.Blocks {
				switch {
				case id == ids[0] && b.State != Granted, id != ids[0] && b.State != Fetching:
					t.Fatalf("%s got %+v", id, b)
				case b.State == Fetching:
					sends[b.Peers[0]]++
				}
			}
		}
		most := 0
		for _, n := range sends {
			most = max(most, n)
		}
		t.Logf("%d peers: the reader sends %d of %d blocks, the busiest %d", peers, sends[ids[0]], slots, most)
		// In the order of asking, four to a peer, the reader sends each four times, and
		// so does every peer inside. The last that ask have nobody to send to.
		if sends[ids[0]] > 2*slots || most > 3*slots {
			t.Errorf("%d peers: the reader sends %d blocks, the busiest %d, all get %d", peers, sends[ids[0]], most, slots)
		}
	}
}

// TestFewHoldersAreNotToldToAll: what a peer did not ask for is named to it when
// it asks alone, and to nobody when more ask and few hold it: each would go to the same
// holder.
func TestFewHoldersAreNotToldToAll(t *testing.T) {
	ids := peersNamed(40)
	d := loneDirectory(DirectoryOptions{}, ids...)
	e, r := testExtent(1), d.view()
	hold := func(id covey.PeerID) {
		d.table.have(id, Have{Extent: e, Have: 0b11, Digests: []covey.Digest{{1}, {2}}}, false, r)
	}
	told := func(id covey.PeerID) bool {
		v := d.table.answer(question{asker: id, ring: r, grant: true, want: Want{Extent: e, Count: 2, Need: 1}})
		for _, b := range v.plan.Blocks {
			if b.Slot == 1 {
				return true
			}
		}
		return false
	}
	hold(ids[0])
	for i, id := range ids[1:20] {
		if got, want := told(id), i == 0; got != want {
			t.Errorf("asker %d was told of the other block: %v", i, got)
		}
	}
	for _, id := range ids[20 : 20+enoughCopies] {
		hold(id)
	}
	if !told(ids[39]) {
		t.Error("nobody is told of what many hold")
	}
}

// TestAskersAreForgotten: two that ask within two seconds are many, and not those
// that ask one after the other, or one that asks again.
func TestAskersAreForgotten(t *testing.T) {
	var k askers
	second := stamp(time.Second / (time.Second / 10))
	for i := range 10 {
		if k.count(peerNum(i), stamp(i)*3*second); k.many {
			t.Fatalf("%d peers, one in three seconds, are many", i+1)
		}
	}
	for i := range 30 {
		k.count(7, 40*second)
		if k.many {
			t.Fatalf("one peer that asks %d times is many", i+1)
		}
	}
	if k.count(8, 41*second); !k.many {
		t.Error("two peers at once are not many")
	}
}
