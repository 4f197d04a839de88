package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey/peer/memnet"
)

// Two halves that were apart for some backing off are one mesh again soon after
// the network is: whom a member finds first tells it to look at the others.
// fault 29
func TestHealedHalvesFindEachOther(t *testing.T) {
	const nodes, apart, within = 12, 30 * time.Second, 12 * time.Second
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		all := make([]*node, nodes)
		hosts := make([]*memnet.Host, nodes)
		for i := range all {
			all[i], hosts[i] = simNode(t, mem, &key, i, "10.0.0.1:7171")
		}
		time.Sleep(10 * time.Second)
		across := func(do func(a, b *memnet.Host)) {
			for i := range nodes / 2 {
				for j := nodes / 2; j < nodes; j++ {
					do(hosts[i], hosts[j])
					do(hosts[j], hosts[i])
				}
			}
		}
		across(mem.Cut)
		for end := time.Now().Add(apart); time.Now().Before(end); time.Sleep(time.Second) {
			for i := range all { // reads meet every member sooner or later
				for j := range all {
					if i != j {
						go func() { _, _ = all[i].Call(t.Context(), all[j].Self(), []byte("x")) }()
					}
				}
			}
		}
		for i, n := range all {
			if live(n) != nodes/2 {
				t.Errorf("node %d sees %d live members of its half of %d", i, live(n), nodes/2)
			}
		}
		across(mem.Mend)
		healed := time.Now()
		for i, n := range all {
			for live(n) != nodes {
				if time.Since(healed) > time.Minute {
					t.Fatalf("node %d sees %d live members of %d a minute after the network healed", i, live(n), nodes)
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		took := time.Since(healed)
		t.Logf("%d members apart for %v found each other in %v", nodes, apart, took)
		if took > within {
			t.Errorf("the halves found each other only %v after the network healed, want %v at most", took, within)
		}
	})
}
