package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/fetch"
)

// What the rooms above ask of a network.
var (
	_ dht.Members    = (*Network)(nil)
	_ dht.Caller     = (*Network)(nil)
	_ fetch.Exchange = (*Network)(nil)
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// node is a network under test that runs until the test ends.
type node struct {
	*Network
	log  *logLines
	stop func()
}

// logLines collects log messages.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// newNode makes a network on loopback, closed when the test ends.
func newNode(t testing.TB, o NetworkOptions) *node {
	t.Helper()
	lines := &logLines{}
	o.Log = slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	n, err := NewNetwork(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s: %s", n.id, lines.all())
		}
	})
	return &node{Network: n, log: lines, stop: func() {}}
}

// run runs the network; stop ends it with a goodbye.
func (n *node) run(t testing.TB) *node {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// startMesh starts members that all join through the first.
func startMesh(t testing.TB, count int, change func(i int, o *NetworkOptions)) []*node {
	key := NewClusterKey()
	var nodes []*node
	for i := range count {
		o := NetworkOptions{Key: &key}
		if i > 0 {
			o.Join = nodes[0].ListenAddrs()
		}
		if change != nil {
			change(i, &o)
		}
		nodes = append(nodes, newNode(t, o).run(t))
	}
	waitLive(t, nodes, count)
	return nodes
}

// waitLive waits until each node sees the given number of live members.
func waitLive(t testing.TB, nodes []*node, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d live members everywhere", want), func() bool {
		for _, n := range nodes {
			if live, _ := n.Live(); len(live) != want {
				return false
			}
		}
		return true
	})
}

// eventually polls a condition that no channel tells of.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestTwoNetworks(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	a, b := nodes[0], nodes[1]
	a.SetServer(&fakeServer{reply: func(from covey.PeerID, req []byte) []byte {
		if from != b.Self() {
			t.Errorf("request from %q, want %q", from, b.Self())
		}
		return append([]byte("re: "), req...)
	}})
	reply, err := b.Call(testContext(t), a.Self(), []byte("hello"))
	if err != nil || string(reply) != "re: hello" {
		t.Fatalf("Call = %q, %v", reply, err)
	}
	peers := b.Peers()
	if len(peers) != 2 {
		t.Fatalf("%d peers, want 2", len(peers))
	}
	for _, p := range peers {
		if !p.Connected || !p.Live || len(p.Addrs) != 1 || p.LastSeen.IsZero() {
			t.Errorf("peer %+v", p)
		}
		if !p.Self && p.RTT <= 0 {
			t.Errorf("no round trip measured: %+v", p)
		}
	}
}

// TestFourJoin starts four at once, in every position of the bootstraps, and
// wants all of them to know all soon.
func TestFourJoin(t *testing.T) {
	for _, test := range []struct {
		name  string
		boots []int // whose addresses everybody is given
		order []int // the order of starting
	}{
		{"first", []int{0}, []int{0, 1, 2, 3}},
		{"last", []int{3}, []int{0, 1, 2, 3}},
		{"two", []int{0, 1}, []int{3, 2, 1, 0}},
		{"two apart", []int{1, 3}, []int{2, 0, 3, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := NewClusterKey()
			addrs := freeAddrs(t, 4)
			var join []string
			for _, b := range test.boots {
				join = append(join, addrs[b])
			}
			var nodes []*node
			started := time.Now()
			for _, i := range test.order {
				nodes = append(nodes, newNode(t, NetworkOptions{Key: &key, Listen: addrs[i], Join: join}).run(t))
			}
			waitLive(t, nodes, 4)
			t.Logf("converged in %s", time.Since(started))
			if took := time.Since(started); took > 3*time.Second {
				t.Errorf("convergence took %s", took)
			}
		})
	}
}

// freeAddrs returns loopback addresses nobody listens on now.
func freeAddrs(t *testing.T, count int) []string {
	var addrs []string
	for range count {
		n := newNode(t, NetworkOptions{})
		addrs = append(addrs, n.ListenAddrs()...)
		defer func() { _ = n.Close() }() // told by newNode
	}
	return addrs
}

func TestJoinErrors(t *testing.T) {
	key, other := NewClusterKey(), NewClusterKey()
	stranger := newNode(t, NetworkOptions{Key: &other})
	dead := freeAddrs(t, 1)[0]
	for _, test := range []struct {
		name, addr, want string
		kind             error
	}{
		{"wrong key", stranger.ListenAddrs()[0], "wrong cluster key", covey.ErrDenied},
		{"nothing there", dead, "nothing listens there", covey.ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t, NetworkOptions{Key: &key, Join: []string{test.addr}})
			err := n.Join(testContext(t))
			if !errors.Is(err, test.kind) || !contains(err.Error(), test.addr, test.want) {
				t.Errorf("Join = %v, want %q of %s", err, test.want, test.addr)
			}
		})
	}
	t.Run("none configured", func(t *testing.T) {
		if err := newNode(t, NetworkOptions{}).Join(testContext(t)); err != nil {
			t.Errorf("Join = %v", err)
		}
	})
	t.Run("itself", func(t *testing.T) {
		n := newNode(t, NetworkOptions{Key: &key, Listen: dead, Join: []string{dead}})
		if err := n.Join(testContext(t)); err != nil {
			t.Errorf("Join = %v", err)
		}
	})
}

// A member that says goodbye is gone everywhere at once; one that is killed is
// out of Live as soon as its connection breaks.
func TestLeaveAndDie(t *testing.T) {
	nodes := startMesh(t, 4, nil)
	_, epoch := nodes[0].Live()
	started := time.Now()
	nodes[3].stop()
	waitLive(t, nodes[:3], 3)
	if took := time.Since(started); took > 2*time.Second {
		t.Errorf("goodbye took %s to be heard", took)
	}
	if _, now := nodes[0].Live(); now <= epoch {
		t.Errorf("epoch %d after a change, was %d", now, epoch)
	}
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	waitLive(t, nodes[:2], 2)
	if got := len(nodes[0].Peers()); got != 3 {
		t.Errorf("%d members after one died, want 3: its lease has not ended", got)
	}
}

// fault 37
func TestBootstrapDown(t *testing.T) {
	key := NewClusterKey()
	addr := freeAddrs(t, 1)[0]
	early := newNode(t, NetworkOptions{Key: &key, Join: []string{addr}}).run(t)
	eventually(t, "a failed attempt", func() bool { return contains(fmt.Sprint(early.log.all()), "join failed") })
	late := newNode(t, NetworkOptions{Key: &key, Listen: addr}).run(t)
	waitLive(t, []*node{early, late}, 2)
}

func TestIdentityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first := newNode(t, NetworkOptions{StateDir: dir})
	info, err := os.Stat(filepath.Join(dir, "identity.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("identity file: %v, %v", info, err)
	}
	second := newNode(t, NetworkOptions{StateDir: dir})
	if first.Self() != second.Self() {
		t.Error("identity changed over a restart")
	}
	if err := os.WriteFile(filepath.Join(dir, "identity.key"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewNetwork(NetworkOptions{StateDir: dir}); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("damaged identity: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "identity.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewNetwork(NetworkOptions{StateDir: dir}); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("readable identity: %v", err)
	}
}

func TestOptionsValidate(t *testing.T) {
	key := NewClusterKey()
	for _, test := range []struct {
		name string
		o    NetworkOptions
		ok   bool
	}{
		{"zero", NetworkOptions{}, true},
		{"open without key", NetworkOptions{Listen: "0.0.0.0:0"}, false},
		{"open with key", NetworkOptions{Listen: "0.0.0.0:0", Key: &key}, true},
		{"join without key", NetworkOptions{Join: []string{"127.0.0.1:7171"}}, false},
		{"malformed listen", NetworkOptions{Listen: "7171"}, false},
		{"malformed join", NetworkOptions{Key: &key, Join: []string{"host"}}, false},
		{"port 0 to join", NetworkOptions{Key: &key, Join: []string{"host:0"}}, false},
		{"long label", NetworkOptions{Zone: string(make([]byte, 200))}, false},
		{"negative", NetworkOptions{Capacity: -1}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.o.Validate()
			if test.ok != (err == nil) || (err != nil && !errors.Is(err, covey.ErrInvalid)) {
				t.Errorf("Validate = %v", err)
			}
		})
	}
}

// fakeServer answers with functions.
type fakeServer struct {
	reply func(from covey.PeerID, req []byte) []byte
	block func(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error)
}

func (s *fakeServer) ServeDirectory(_ context.Context, from covey.PeerID, req []byte) []byte {
	return s.reply(from, req)
}

func (s *fakeServer) ServeBlock(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error) {
	return s.block(ctx, l, wait)
}
