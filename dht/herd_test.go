package dht

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// TestHerdWaitsForSlowReads: a read of three seconds outlives its lease of one,
// because it reports; nobody reads the block again. fault 3
func TestHerdWaitsForSlowReads(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHerd(t, seed, 6)
				h.delay, h.crawling = 4*time.Millisecond, 0.2
				ids := h.startAll(10)
				places := h.places(12)
				h.everybodyReads(t, ids, places, seed)
				if n, most := h.total(); n != len(places) || most != 1 {
					t.Errorf("%d reads of %d blocks, one of them %d times", n, len(places), most)
				}
				h.close()
			})
		})
	}
}

// TestHerdPartition: the mesh falls into two halves while all read, and heals.
// Each half reads what only the other has; what both had begun may be read once
// more; every read ends; afterwards a newcomer reads nothing. fault 29
func TestHerdPartition(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHerd(t, seed, 6)
				h.delay = 4 * time.Millisecond
				ids := h.startAll(10)
				places := h.places(40)
				var faults sync.WaitGroup
				faults.Go(func() {
					time.Sleep(300 * time.Millisecond)
					h.part(ids[:5], ids[5:])
					time.Sleep(3 * time.Second)
					h.part(ids)
				})
				h.everybodyReads(t, ids, places, seed)
				faults.Wait()
				time.Sleep(2 * time.Second)
				n, most := h.total()
				t.Logf("%d reads of %d blocks, at most %d of one, %d needless, %d without a home", n, len(places), most, h.needless, h.override)
				// Ten peers with eight reads each: what was under way at the two changes
				// may be read again, everything else once on each side.
				if n > 2*len(places)+160 || h.needless > 160 {
					t.Errorf("%d reads of %d blocks, %d needless", n, len(places), h.needless)
				}
				h.listed(t)
				h.newcomerReadsNothing(t, places)
				h.close()
			})
		})
	}
}

// part cuts the links between the groups; the members of each see it at random
// times within half a second.
func (h *herd) part(groups ...[]covey.PeerID) {
	side := map[covey.PeerID]int{}
	for i, g := range groups {
		for _, id := range g {
			side[id] = i
		}
	}
	h.cluster.mu.Lock()
	h.side = side
	h.cluster.mu.Unlock()
	for _, g := range groups {
		for _, n := range h.running() {
			if slices.Contains(g, n.id) {
				late := time.Duration(h.chance() * float64(500*time.Millisecond))
				time.AfterFunc(late, func() { n.setLive(g) })
			}
		}
	}
}

// TestHerdIsThrottledTogether: an origin that serves 40 requests a second is not
// refused to ever more often by ten peers that want hundreds: the homes slow
// down together, and every block is read once. fault 19
func TestHerdIsThrottledTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHerd(t, 1, 6)
		h.delay, h.perSecond = 4*time.Millisecond, 40
		ids := h.startAll(10)
		places := h.places(80)
		began := time.Now().Unix()
		h.everybodyReads(t, ids, places, 1)
		took := time.Now().Unix() - began
		if n, most := h.total(); n != len(places) || most != 1 {
			t.Errorf("%d reads of %d blocks, one of them %d times", n, len(places), most)
		}
		var all, late int
		for at, n := range h.refused {
			if all += n; at > began+2 {
				late += n
			}
		}
		ideal := int64(len(places) / h.perSecond)
		t.Logf("%d blocks in %d s at 40 a second (%d s ideal); refused %d, of them %d after the first two seconds", len(places), took, ideal, all, late)
		if took > 4*ideal || late > len(places)/2 {
			t.Errorf("took %d s, refused %d times after the first seconds", took, late)
		}
		h.close()
	})
}
