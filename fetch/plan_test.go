package fetch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

func TestQuestionsKeepFailedPeersApart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, noPeers(t))
		e := extentOf("a", 4)
		r.home.holds(e, []int{0, 1}, "a")
		var got [4]answer
		// While the question for slot 3 is under way, the others gather.
		for _, slot := range []int{3, 0, 1} {
			var failed []covey.PeerID
			if slot == 0 {
				failed = []covey.PeerID{"a"}
			}
			go func() {
				a, err := r.planner.resolve(t.Context(), e, slot, wish{failed: failed})
				if err != nil {
					t.Error(err)
				}
				r.home.mu.Lock()
				defer r.home.mu.Unlock()
				got[slot] = a
			}()
			synctest.Wait()
		}
		time.Sleep(10 * time.Millisecond)
		r.settle()
		r.home.mu.Lock()
		defer r.home.mu.Unlock()
		if len(got[0].Peers) != 0 || len(got[1].Peers) != 1 {
			t.Errorf("slot 0 from %q, slot 1 from %q, want only slot 1 from a", got[0].Peers, got[1].Peers)
		}
	})
}

func TestFreshQuestionIsPutAfterwards(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			r := newRoom(t, noPeers(t))
			e := extentOf("a", 4)
			r.home.holds(e, []int{0}, "a")
			for range 2 {
				go func() {
					if _, err := r.planner.resolve(t.Context(), e, 0, wish{fresh: fresh}); err != nil {
						t.Error(err)
					}
				}()
				synctest.Wait()
			}
			time.Sleep(10 * time.Millisecond)
			r.settle()
			if n := len(r.home.asked); n != 1 && !fresh || n != 2 && fresh {
				t.Errorf("fresh %v: %d questions", fresh, n)
			}
		})
	}
}

func TestPeerKey(t *testing.T) {
	if peerKey([]covey.PeerID{"a", "bc"}) != peerKey([]covey.PeerID{"bc", "a"}) {
		t.Error("order matters")
	}
	if peerKey([]covey.PeerID{"a", "bc"}) == peerKey([]covey.PeerID{"ab", "c"}) {
		t.Error("names run together")
	}
}

func TestLRU(t *testing.T) {
	c := newLRU[int, string](2)
	c.put(1, "a")
	c.put(2, "b")
	c.get(1)
	c.put(3, "c")
	c.put(1, "d")
	if _, ok := c.get(2); ok {
		t.Error("kept the one not used for longest")
	}
	if v, _ := c.get(1); v != "d" || c.order.Len() != 2 || len(c.at) != 2 {
		t.Errorf("got %q, %d entries", v, c.order.Len())
	}
}
