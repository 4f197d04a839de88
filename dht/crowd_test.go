package dht

import (
	"fmt"
	"testing"

	"github.com/covey-cache/covey"
)

// TestTreeOfAThousand: a block that a thousand peers ask for while one reads it
// is five hops from the last, and nobody sends it to more than four; a parent that
// fails is replaced without a cycle.
func TestTreeOfAThousand(t *testing.T) {
	const peers = 1000
	ids := peersNamed(peers)
	d := loneDirectory(DirectoryOptions{}, ids...)
	e, r := testExtent(1), d.view()
	ask := func(id covey.PeerID, failed ...covey.PeerID) BlockPlan {
		v := d.table.answer(question{asker: id, ring: r, grant: true, want: Want{Extent: e, Count: 1, Need: 1, Failed: failed}})
		return v.plan.Blocks[0]
	}
	if b := ask(ids[0]); b.State != Granted {
		t.Fatalf("the first got %+v", b)
	}
	parent := map[covey.PeerID]covey.PeerID{}
	kids := map[covey.PeerID]int{}
	for _, id := range ids[1:] {
		b := ask(id)
		if b.State != Fetching {
			t.Fatalf("%s got %+v", id, b)
		}
		parent[id] = b.Peers[0]
		kids[b.Peers[0]]++
	}
	deepest := 0
	for _, id := range ids[1:] {
		hops := 0
		for at := id; at != ids[0]; at = parent[at] {
			if hops++; hops > peers {
				t.Fatal("a cycle")
			}
		}
		deepest = max(deepest, hops)
	}
	most := 0
	for _, n := range kids {
		most = max(most, n)
	}
	t.Logf("%d peers: %d hops, at most %d followers each", peers, deepest, most)
	if deepest > 5 || most > maxChildren {
		t.Errorf("%d hops, %d followers", deepest, most)
	}
	// A tenth of the peers die; their followers ask again, in any order.
	dead := map[covey.PeerID]bool{}
	for i := 7; i < peers; i += 10 {
		dead[ids[i]] = true
	}
	for i := peers - 1; i > 0; i-- {
		if id := ids[i]; !dead[id] && dead[parent[id]] {
			b := ask(id, parent[id])
			for range 20 {
				if b.State != Fetching || !dead[b.Peers[0]] {
					break
				}
				b = ask(id, append([]covey.PeerID{parent[id]}, b.Peers...)...)
			}
			if b.State != Fetching || dead[b.Peers[0]] {
				t.Fatalf("%d got %+v", i, b)
			}
			parent[id] = b.Peers[0]
		}
	}
	for _, id := range ids[1:] {
		hops := 0
		for at := id; !dead[id] && at != ids[0]; at = parent[at] {
			if hops++; hops > peers {
				t.Fatal(fmt.Sprint("a cycle at ", id))
			}
		}
	}
}
