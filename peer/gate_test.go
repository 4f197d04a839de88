package peer

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// newStranger is a libp2p host without any of this package's manners: what an
// attacker would write.
func newStranger(t *testing.T) *meshHost {
	t.Helper()
	key, err := newIdentity()
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(false)
	g.member = func(corepeer.ID) bool { return true }
	h, err := newHost(key, NetworkOptions{}.withDefaults(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	listen, err := listenMultiaddr("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.listen(listen); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// dial connects the stranger to a node, without a hello.
func dial(t *testing.T, h *meshHost, n *node) network.Conn {
	t.Helper()
	h.Peerstore().AddAddrs(n.id, n.advertised(), peerstore.PermanentAddrTTL)
	c, err := h.swarm.DialPeer(testContext(t), n.id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// negotiated reports whether the node lets the stranger speak a protocol.
func negotiated(t *testing.T, c network.Conn, proto protocol.ID) bool {
	t.Helper()
	s, err := c.NewStream(testContext(t))
	if err != nil {
		return false
	}
	defer func() { _ = s.Reset() }() // of no more use
	if err := s.SetDeadline(time.Now().Add(2 * joinTimeout)); err != nil {
		return false
	}
	return multistream.SelectProtoOrFail(proto, s) == nil
}

// counted reads a counter.
func counted(t *testing.T, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// A peer that does not join gets nowhere with any protocol, not even libp2p's
// own, and is hung up on.
func TestStrangerSpeaksJoinOnly(t *testing.T) {
	key := NewClusterKey()
	n := newNode(t, NetworkOptions{Key: &key}).run(t)
	n.Host().SetStreamHandler("/covey/kad/1.0.0", func(s network.Stream) { s.Close() })
	h := newStranger(t)
	c := dial(t, h, n)
	protos := []protocol.ID{exchangeProtocol, wantProtocol, membersProtocol, "/covey/kad/1.0.0", "/ipfs/id/1.0.0"}
	results := make(chan protocol.ID, len(protos))
	for _, p := range protos {
		go func() {
			if negotiated(t, c, p) {
				t.Errorf("a stranger could speak %s", p)
			}
			results <- p
		}()
	}
	for range protos {
		<-results
	}
	eventually(t, "the stranger hung up on", func() bool { return len(n.host.swarm.ConnsToPeer(h.ID())) == 0 })
	if got := counted(t, n.metrics.refusedStreams); got < float64(len(protos)) {
		t.Errorf("%v refused streams counted, want at least %d", got, len(protos))
	}
}

// Neither a record signed with another key, nor one of another member, nor junk
// gets a stranger in.
func TestForgedHello(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	n, other := nodes[0], nodes[1]
	foreign := NewClusterKey()
	outsider := newNode(t, NetworkOptions{Key: &foreign})
	for _, test := range []struct {
		name  string
		hello *wire.Hello
	}{
		{"another cluster's record", &wire.Hello{Record: outsider.ownRecord()}},
		{"another member's record", &wire.Hello{Record: other.ownRecord()}},
		{"no record", &wire.Hello{}},
		{"record without a signature", &wire.Hello{Record: &wire.SignedRecord{Record: other.ownRecord().Record}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newStranger(t)
			s, err := dial(t, h, n).NewStream(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Reset() }() // of no more use
			if err := multistream.SelectProtoOrFail(joinProtocol, s); err != nil {
				t.Fatal(err)
			}
			if err := wire.WriteHello(s, test.hello); err != nil {
				t.Fatal(err)
			}
			if reply, err := wire.ReadHello(s); err != nil || reply.GetRefusal() == "" || reply.GetRecord() != nil {
				t.Errorf("answer %v, %v: want a refusal", reply, err)
			}
			if n.table.Has(h.ID()) {
				t.Error("admitted")
			}
		})
	}
}

// Two clusters with different keys refuse each other, both say so once a try,
// and neither writes a key into its log.
func TestWrongKeyBothWays(t *testing.T) {
	k1, k2 := NewClusterKey(), NewClusterKey()
	a := newNode(t, NetworkOptions{Key: &k1}).run(t)
	b := newNode(t, NetworkOptions{Key: &k2, Join: a.ListenAddrs()})
	if err := b.Join(testContext(t)); !errors.Is(err, covey.ErrDenied) {
		t.Fatalf("Join = %v", err)
	}
	eventually(t, "a line in both logs", func() bool {
		return contains(join(a.log.all()), `msg="join refused"`, b.id.String()) &&
			contains(join(b.log.all()), `msg="join refused by peer"`, a.id.String())
	})
	for _, n := range []*node{a, b} {
		if live, _ := n.Live(); len(live) != 1 {
			t.Errorf("live: %q", live)
		}
		for _, k := range []ClusterKey{k1, k2} {
			if contains(join(n.log.all()), k.String()) {
				t.Error("a cluster key in the log")
			}
		}
	}
	// After three failures the connection is not even negotiated.
	for range badAfter {
		if err := b.Join(testContext(t)); err == nil {
			t.Error("joined with another key")
		}
	}
	if err := b.Join(testContext(t)); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("Join after several refusals = %v", err)
	}
}

func join(lines []string) string {
	var all string
	for _, l := range lines {
		all += l
	}
	return all
}

// A bootstrap that has no key does not get a record's holder to accept it: the
// joiner checks as well.
func TestJoinerRefusesImpostor(t *testing.T) {
	h := newStranger(t)
	key, other := NewClusterKey(), NewClusterKey()
	foreign := newNode(t, NetworkOptions{Key: &other})
	h.SetStreamHandler(joinProtocol, func(s network.Stream) {
		defer s.Close()
		if _, err := wire.ReadHello(s); err == nil {
			_ = wire.WriteHello(s, &wire.Hello{Record: foreign.ownRecord()}) // the joiner's error is what is tested
		}
	})
	n := newNode(t, NetworkOptions{Key: &key, Join: hostPorts(h.swarm.ListenAddresses())})
	if err := n.Join(testContext(t)); !errors.Is(err, covey.ErrDenied) {
		t.Errorf("Join = %v", err)
	}
	if n.table.Has(h.ID()) {
		t.Error("the impostor is a member")
	}
}

func TestStandaloneAdmitsNobody(t *testing.T) {
	alone := newNode(t, NetworkOptions{}).run(t)
	key := NewClusterKey()
	n := newNode(t, NetworkOptions{Key: &key, Join: alone.ListenAddrs()})
	if err := n.Join(testContext(t)); err == nil {
		t.Error("joined a standalone node")
	}
	if live, _ := alone.Live(); len(live) != 1 || live[0] != alone.Self() {
		t.Errorf("live: %q", live)
	}
}

// Frames that break the protocol end the stream and are counted; the member
// stays.
func TestViolations(t *testing.T) {
	for _, test := range []struct {
		name  string
		bytes []byte
	}{
		{"unknown type", []byte{99, 0, 0, 0, 1, 0, 0, 0, 0}},
		{"length of 2^32-1", []byte{1, 0, 0, 0, 1, 255, 255, 255, 255}},
		{"frame of a server", wire.AppendFrame(nil, wire.TypeData, 1, []byte("x"))},
		{"request that is no protobuf", wire.AppendFrame(nil, wire.TypeRequest, 1, []byte{0xff})},
		{"request ID 0", wire.AppendFrame(nil, wire.TypeRequest, 0, nil)},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := startMesh(t, 2, nil)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			s, err := nodes[1].Host().NewStream(ctx, nodes[0].id, exchangeProtocol)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Reset() }() // of no more use
			if _, err := s.Write(test.bytes); err != nil {
				t.Fatal(err)
			}
			if err := s.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, s); err == nil || isDeadline(err) {
				t.Errorf("stream was not reset: %v", err)
			}
			eventually(t, "a violation counted", func() bool {
				return counted(t, nodes[0].metrics.violations.WithLabelValues(string(exchangeProtocol))) == 1
			})
			if live, _ := nodes[0].Live(); len(live) != 2 {
				t.Errorf("live: %d", len(live))
			}
		})
	}
}

func isDeadline(err error) bool {
	var to interface{ Timeout() bool }
	return errors.As(err, &to) && to.Timeout()
}
