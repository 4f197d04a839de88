package peer

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/memnet"
)

// simNode starts a member on its own host of an in-memory network.
func simNode(t *testing.T, mem *memnet.Network, key *ClusterKey, i int, join ...string) (*node, *memnet.Host) {
	ip := fmt.Sprintf("10.0.0.%d", i+1)
	h := mem.Host(ip)
	return newNode(t, NetworkOptions{Key: key, Listen: ip + ":7171", Join: join, Sockets: h}).run(t), h
}

func live(n *node) int {
	ids, _ := n.Live()
	return len(ids)
}

// A mesh in virtual time: it forms, serves, loses a member that is killed, and
// forgets it when its lease ends. Everything libp2p started ends with it.
func TestSimulatedMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		var nodes []*node
		var hosts []*memnet.Host
		for i := range 6 {
			n, h := simNode(t, mem, &key, i, "10.0.0.1:7171", "10.0.0.2:7171")
			nodes, hosts = append(nodes, n), append(hosts, h)
		}
		time.Sleep(time.Second)
		for i, n := range nodes {
			if live(n) != len(nodes) {
				t.Errorf("node %d sees %d live members", i, live(n))
			}
		}
		held := newBlocks(3 << 20)
		nodes[3].SetServer(&fakeServer{block: held.serve})
		l := held.object(covey.DefaultBlockSize).Block(0)
		buf := make([]byte, l.Range().Len)
		if err := nodes[5].Fetch(t.Context(), nodes[3].Self(), l, buf, false); err != nil || !bytes.Equal(buf, held.data) {
			t.Errorf("fetch: %v", err)
		}

		hosts[3].Kill()
		if err := nodes[3].Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		for _, i := range []int{0, 1, 2, 4, 5} {
			if live(nodes[i]) == len(nodes) && nodes[i].connectedTo(nodes[3]) {
				t.Errorf("node %d still counts on the dead one", i)
			}
		}
		if err := nodes[5].Fetch(t.Context(), nodes[3].Self(), l, buf, false); !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("fetch from the dead: %v", err)
		}
		time.Sleep(2 * time.Minute)
		for _, i := range []int{0, 1, 2, 4, 5} {
			if got := len(nodes[i].Peers()); got != 5 {
				t.Errorf("node %d has %d members after the lease, want 5", i, got)
			}
			if live(nodes[i]) != 5 {
				t.Errorf("node %d sees %d live members, want 5", i, live(nodes[i]))
			}
		}
	})
}

func (n *node) connectedTo(other *node) bool { return len(n.host.swarm.ConnsToPeer(other.id)) > 0 }

// fault 29
func TestSimulatedPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		var nodes []*node
		var hosts []*memnet.Host
		for i := range 4 {
			n, h := simNode(t, mem, &key, i, "10.0.0.1:7171")
			nodes, hosts = append(nodes, n), append(hosts, h)
		}
		time.Sleep(time.Second)
		each := func(f func(from, to *memnet.Host)) {
			for _, a := range hosts[:2] {
				for _, b := range hosts[2:] {
					f(a, b)
					f(b, a)
				}
			}
		}
		each(mem.Cut)
		time.Sleep(5 * time.Minute)
		for i, n := range nodes {
			if live(n) != 2 || len(n.Peers()) != 2 {
				t.Errorf("node %d: %d live of %d members in its half, want 2", i, live(n), len(n.Peers()))
			}
		}
		each(mem.Mend)
		time.Sleep(2 * time.Minute)
		for i, n := range nodes {
			if live(n) != 4 {
				t.Errorf("node %d sees %d live members after the heal, want 4", i, live(n))
			}
		}
	})
}

// A peer that stops answering with its connection up (a stopped process) is
// given up after the stall time, and taken back once it answers.
//
// fault 3
func TestSimulatedStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{}
		key := NewClusterKey()
		a, ha := simNode(t, mem, &key, 0)
		b, hb := simNode(t, mem, &key, 1, "10.0.0.1:7171")
		time.Sleep(time.Second)
		a.SetServer(&fakeServer{reply: func(_ covey.PeerID, req []byte) []byte { return req }})
		if _, err := b.Call(t.Context(), a.Self(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		mem.Cut(ha, hb)
		started := time.Now()
		_, err := b.Call(t.Context(), a.Self(), []byte("x"))
		if !errors.Is(err, covey.ErrUnavailable) || time.Since(started) > 2*time.Second {
			t.Errorf("call to a stalled peer: %v after %s", err, time.Since(started))
		}
		synctest.Wait()
		if live(b) != 1 {
			t.Errorf("%d live members with one stalled, want 1", live(b))
		}
		mem.Mend(ha, hb)
		time.Sleep(30 * time.Second)
		if live(b) != 2 {
			t.Errorf("%d live members after it answers again, want 2", live(b))
		}
	})
}

// Many members that start at once through two of them know each other within
// seconds, although only a few hear of each at first hand.
func TestSimulatedCrowd(t *testing.T) {
	const crowd = 24 // above floodWidth, so that news must be passed on
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		var nodes []*node
		for i := range crowd {
			n, _ := simNode(t, mem, &key, i, "10.0.0.1:7171", "10.0.0.2:7171")
			nodes = append(nodes, n)
		}
		time.Sleep(10 * time.Second)
		for i, n := range nodes {
			if live(n) != crowd {
				t.Errorf("node %d sees %d live members of %d", i, live(n), crowd)
			}
		}
		time.Sleep(2 * time.Minute) // two leases
		for i, n := range nodes {
			if live(n) != crowd {
				t.Errorf("node %d sees %d live members of %d after a while", i, live(n), crowd)
			}
		}
	})
}

// What Peers says of round trips is the network's time, on both sides of a
// connection, and neither the making of a connection nor anybody's work.
func TestSimulatedRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const oneWay = 5 * time.Millisecond
		mem := &memnet.Network{Latency: oneWay}
		key := NewClusterKey()
		var nodes []*node
		for i := range 4 {
			n, _ := simNode(t, mem, &key, i, "10.0.0.1:7171")
			nodes = append(nodes, n)
		}
		time.Sleep(time.Minute)
		for i, n := range nodes {
			for _, p := range n.Peers() {
				if p.Self {
					continue
				}
				if !p.Connected || p.RTT < 2*oneWay || p.RTT > 3*oneWay {
					t.Errorf("node %d: round trip to %s is %v, want about %v (connected %v)", i, p.Name, p.RTT, 2*oneWay, p.Connected)
				}
			}
		}
	})
}

// A connection that is greeted after it has ended leaves nothing behind.
func TestGreetingOfAnEndedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		a, _ := simNode(t, mem, &key, 0)
		b, _ := simNode(t, mem, &key, 1, "10.0.0.1:7171")
		time.Sleep(time.Second)
		conns := b.host.swarm.ConnsToPeer(a.id)
		if len(conns) == 0 {
			t.Fatal("not connected")
		}
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for _, c := range conns {
			if err := b.greet(t.Context(), c); err == nil {
				t.Error("greeted over a connection that has ended")
			}
		}
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range conns {
			if b.greetings[c] != nil {
				t.Error("the greeting of an ended connection is kept")
			}
		}
	})
}

// A connection that merely drops costs nobody a request, and no member its place
// in Live: the stream that went with it does not stand for the member.
func TestDroppedConnectionIsNotAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		a, _ := simNode(t, mem, &key, 0)
		b, _ := simNode(t, mem, &key, 1, "10.0.0.1:7171")
		a.SetServer(&fakeServer{reply: func(_ covey.PeerID, request []byte) []byte { return request }})
		time.Sleep(time.Second)
		_, before := b.Live()
		for range 20 {
			for _, c := range b.host.swarm.ConnsToPeer(a.id) {
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.Call(t.Context(), a.Self(), []byte("x")); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
		}
		if _, now := b.Live(); now != before || live(b) != 2 || live(a) != 2 {
			t.Errorf("%d and %d live members, after %d changes", live(a), live(b), now-before)
		}
	})
}
