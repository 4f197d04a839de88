package peer

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/memnet"
)

// raceEnabled says that the race detector slows everything down tenfold.
var raceEnabled bool

// settled is when an idle connection that is one too many has been closed: its
// grace, and the 10 s between two looks.
const settled = connGrace + 10*time.Second

// sparse is a mesh whose members keep fewer connections than there are members.
type sparse struct {
	nodes []*node
	hosts []*memnet.Host
	bound int
}

// startSparse starts one member after the other; each joins through an earlier one,
// and those through whom others join are many.
func startSparse(t *testing.T, members, bound int, pause time.Duration) *sparse {
	mem := &memnet.Network{Latency: time.Millisecond}
	key := NewClusterKey()
	m := &sparse{bound: bound}
	ip := func(i int) string { return fmt.Sprintf("10.0.%d.%d", i/250, i%250+1) }
	for i := range members {
		h := mem.Host(ip(i))
		o := NetworkOptions{Key: &key, Listen: ip(i) + ":7171", Sockets: h, MaxConnections: bound, Join: []string{ip(i/8) + ":7171"}}
		m.nodes, m.hosts = append(m.nodes, newNode(t, o).run(t)), append(m.hosts, h)
		time.Sleep(pause)
	}
	return m
}

// conns counts the connections of a node: all, and those that had their grace.
func conns(n *node) (all, old int) {
	for _, c := range n.host.swarm.Conns() {
		if all++; time.Since(c.Stat().Opened) > settled {
			old++
		}
	}
	return all, old
}

// holds asserts for a while that every member keeps to the bound and knows all
// others to be live. It returns the mean and the most connections seen of a member.
func (m *sparse) holds(t *testing.T, during time.Duration) (mean float64, most int) {
	t.Helper()
	var sum, looks int
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(3700 * time.Millisecond) {
		for i, n := range m.nodes {
			all, old := conns(n)
			sum, looks, most = sum+all, looks+1, max(most, all)
			// Those that are new cannot be counted against the bound yet.
			if old > m.bound || all > 2*m.bound {
				t.Fatalf("node %d has %d connections, %d of them beyond their grace, with a bound of %d", i, all, old, m.bound)
			}
			if live(n) != len(m.nodes) {
				t.Fatalf("node %d sees %d live members of %d", i, live(n), len(m.nodes))
			}
		}
	}
	return float64(sum) / float64(looks), most
}

// crowd has every member ask the next ones in turn, so that all have connections to
// twice as many, more than they keep and fewer than the limit of four times that.
func (m *sparse) crowd(t *testing.T) {
	t.Helper()
	for i, n := range m.nodes {
		for k := range m.bound {
			to := m.nodes[(i+1+k)%len(m.nodes)]
			if reply, err := n.Call(t.Context(), to.Self(), []byte("x")); err != nil || string(reply) != "x" {
				t.Fatalf("node %d: %q, %v", i, reply, err)
			}
		}
	}
	for i, n := range m.nodes {
		if all, _ := conns(n); all < 2*m.bound {
			t.Fatalf("node %d has %d connections, fewer than it was to have", i, all)
		}
	}
}

func (m *sparse) answer() {
	for _, n := range m.nodes {
		n.SetServer(&fakeServer{reply: func(_ covey.PeerID, request []byte) []byte { return request }})
	}
}

// dialOnDemand has every member ask one that it has no connection to.
func (m *sparse) dialOnDemand(t *testing.T) {
	t.Helper()
	asked := 0
	for i, n := range m.nodes {
		for k := range m.nodes {
			to := m.nodes[(i+1+k)%len(m.nodes)]
			if to == n || n.connectedTo(to) {
				continue
			}
			asked++
			began := time.Now()
			if _, err := n.Call(t.Context(), to.Self(), []byte("x")); err != nil {
				t.Errorf("node %d to a member whose connection was closed as idle: %v", i, err)
			}
			if took := time.Since(began); took > 50*time.Millisecond {
				t.Errorf("node %d waited %v for a member whose connection was closed as idle", i, took)
			}
			break
		}
	}
	if asked < len(m.nodes)/2 {
		t.Errorf("only %d of %d members had somebody to dial", asked, len(m.nodes))
	}
}

// Members keep few connections although each has had many:
// what one side closes as idle the other does not open again, all stay live to
// all, and whoever is needed is dialled.
func TestConnectionsStayWithinTheirBound(t *testing.T) {
	const bound = 8
	members, during := 32, 2*time.Minute
	if raceEnabled {
		members, during = 18, 20*time.Second
	}
	synctest.Test(t, func(t *testing.T) {
		m := startSparse(t, members, bound, 2*time.Second)
		m.answer()
		time.Sleep(settled) // starting has its own crowd
		m.crowd(t)
		time.Sleep(settled)
		mean, most := m.holds(t, during)
		t.Logf("%d members of bound %d: %.1f connections each on average over %v, %d at most", members, bound, mean, during, most)
		if mean > bound {
			t.Errorf("%.1f connections each on average, with a bound of %d", mean, bound)
		}
		var trims float64
		for _, n := range m.nodes {
			trims += n.trims(t)
			if failures := n.failures(); failures > 0 {
				t.Errorf("%s took %d closed connections for failures", n.id, failures)
			}
		}
		if trims < float64(members*bound) {
			t.Errorf("only %.0f ends of connections were known as trimmed", trims)
		}
		m.dialOnDemand(t)
		m.holds(t, during/4)
	})
}

// trims counts the connections that this node knows to have been trimmed.
func (n *node) trims(t *testing.T) float64 {
	t.Helper()
	var m dto.Metric
	if err := n.metrics.trimmed.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// failures counts what this node holds against members.
func (n *node) failures() (sum uint64) {
	for _, p := range n.Peers() {
		sum += p.Errors
	}
	return sum
}

// A member that dies is found out at once by those connected to it and by those
// that dial it, and by all others when its lease ends.
func TestSparseMeshLosesTheDead(t *testing.T) {
	members, bound := 24, 8
	if raceEnabled { // which makes each of them ten times as slow
		members, bound = 10, 4
	}
	synctest.Test(t, func(t *testing.T) {
		m := startSparse(t, members, bound, 2*time.Second)
		time.Sleep(settled)
		m.holds(t, 10*time.Second)
		dead, left := m.nodes[members-1], m.nodes[:members-1]
		var connected []*node
		for _, n := range left {
			if n.connectedTo(dead) {
				connected = append(connected, n)
			}
		}
		m.hosts[members-1].Kill()
		if err := dead.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if len(connected) == 0 || len(connected) > 2*bound {
			t.Errorf("%d were connected to the member that died", len(connected))
		}
		for _, n := range connected {
			if live(n) != members-1 {
				t.Errorf("%d live members after one died, at a node connected to it", live(n))
			}
		}
		time.Sleep(90 * time.Second)
		for i, n := range left {
			if live(n) != members-1 || len(n.Peers()) != members-1 {
				t.Errorf("node %d sees %d live of %d members after a lease", i, live(n), len(n.Peers()))
			}
		}
	})
}

// Many members on libp2p, each of which keeps connections to a few of them.
// COVEY_MEMBERS says how many: 256 take minutes.
func TestManyMembers(t *testing.T) {
	members, bound := 64, 16
	if raceEnabled {
		members, bound = 16, 6
	}
	if s := os.Getenv("COVEY_MEMBERS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 2 {
			t.Fatalf("COVEY_MEMBERS is %q, no number of members", s)
		}
		members, bound = n, max(n/8, 6)
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		m := startSparse(t, members, bound, 20*time.Millisecond)
		m.answer()
		for _, n := range m.nodes {
			for live(n) != members {
				if time.Since(began) > time.Minute {
					t.Fatalf("%d live members of %d after a minute", live(n), members)
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		t.Logf("%d members knew each other %v after the first began to start", members, time.Since(began))
		time.Sleep(settled + 30*time.Second)
		mean, most := m.holds(t, time.Minute)
		t.Logf("%.1f connections each on average, %d at most, with a bound of %d", mean, most, bound)
		m.dialOnDemand(t)
	})
}
