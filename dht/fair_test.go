package dht

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// TestWhoReadsAllSendsLittle: one peer that is granted a whole extent, and a
// crowd that always asks in the same order, share the sending: nobody has much
// more to send than was received by each.
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
		// In turns four to a peer, the reader would send 256.
		if sends[ids[0]] > 2*slots || most > 2*slots {
			t.Errorf("%d peers: the reader sends %d blocks, the busiest %d, all get %d", peers, sends[ids[0]], most, slots)
		}
	}
}

// TestFewHoldersAreNotToldToAll: what a peer did not ask for is named to it when
// few ask, and to nobody when many do and few hold it: each would go to the same
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
		if got, want := told(id), i < maxChildren; got != want {
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

// TestAskersAreForgotten: five that ask within two seconds are many, and not
// those that ask one after the other.
func TestAskersAreForgotten(t *testing.T) {
	var k askers
	second := stamp(time.Second / (time.Second / 10))
	for i := range 30 {
		if k.count(peerNum(i), stamp(i)*second); k.many {
			t.Fatalf("%d peers, one a second, are many", i+1)
		}
	}
	for i := range 30 {
		k.count(7, 40*second)
		if k.many {
			t.Fatalf("one peer that asks %d times is many", i+1)
		}
	}
	for i := range maxChildren {
		k.count(peerNum(100+i), 40*second)
	}
	if !k.many {
		t.Error("five peers at once are not many")
	}
}
