package peer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch"
)

var _ fetch.RangeExchange = (*Network)(nil)

func TestFetchFromTheMiddle(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	held := newBlocks(3<<20 + 5)
	nodes[0].SetServer(&fakeServer{block: held.serve})
	l := held.object(covey.DefaultBlockSize).Block(0)
	for _, off := range []int{0, 1, 1<<20 + 3, len(held.data) - 1} {
		buf := make([]byte, len(held.data))
		var p fetch.Progress
		if err := nodes[1].FetchFrom(testContext(t), nodes[0].Self(), l, buf, off, &p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf[off:], held.data[off:]) || !bytes.Equal(buf[:off], make([]byte, off)) {
			t.Errorf("from byte %d: wrong bytes", off)
		}
		if p.Filled() != len(buf) {
			t.Errorf("from byte %d: told of %d bytes of %d", off, p.Filled(), len(buf))
		}
	}
	for _, off := range []int{-1, len(held.data)} {
		if err := nodes[1].FetchFrom(testContext(t), nodes[0].Self(), l, held.data, off, nil); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("from byte %d: %v", off, err)
		}
	}
	eventually(t, "all handles released", func() bool { return held.open.Load() == 0 })
}

// fault 40: members of three generations in one mesh. The older and the newer
// that have a version in common use it; who has none is told so, is not asked
// again for a while, and stays a member for everything else.
func TestMixedVersions(t *testing.T) {
	generations := [][]protocol.ID{{exchangeFirst}, nil, {"/covey/exchange/9"}}
	nodes := startMesh(t, 3, func(i int, o *NetworkOptions) { o.exchanges = generations[i] })
	older, present, newer := nodes[0], nodes[1], nodes[2]
	held := newBlocks(1 << 20)
	l := held.object(covey.DefaultBlockSize).Block(0)
	for _, n := range nodes {
		n.SetServer(&fakeServer{block: held.serve, reply: func(_ covey.PeerID, req []byte) []byte { return req }})
	}
	for _, pair := range [][2]*node{{present, older}, {older, present}} {
		buf := make([]byte, len(held.data))
		if err := pair[0].Fetch(testContext(t), pair[1].Self(), l, buf, false); err != nil || !bytes.Equal(buf, held.data) {
			t.Errorf("fetch between versions: %v", err)
		}
	}
	buf := make([]byte, len(held.data))
	if err := present.FetchFrom(testContext(t), older.Self(), l, buf, 100, nil); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("an offset that the older one does not know: %v", err)
	}
	if got := counted(t, present.metrics.violations.WithLabelValues(string(exchangeProtocol))); got != 0 {
		t.Errorf("%v violations", got)
	}
	for range 5 {
		if err := present.Fetch(testContext(t), newer.Self(), l, buf, false); !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("fetch without a common version: %v", err)
		}
	}
	if got := counted(t, present.metrics.foreign.WithLabelValues(string(exchangeProtocol))); got != 1 {
		t.Errorf("negotiated %v times, want once a minute", got)
	}
	if reply, err := present.Call(testContext(t), newer.Self(), []byte("x")); err != nil || string(reply) != "x" {
		t.Errorf("another protocol with the same member: %q, %v", reply, err)
	}
	for i, n := range nodes {
		if live, _ := n.Live(); len(live) != len(nodes) {
			t.Errorf("node %d sees %d live members", i, len(live))
		}
	}
}

// How far members are follows from what their records share.
func TestNearness(t *testing.T) {
	places := []struct {
		zone, rack, host string
		want             fetch.Distance // from the first
	}{
		{"z1", "r1", "h1", fetch.SameHost},
		{"z1", "r1", "h1", fetch.SameHost},
		{"z1", "r1", "h2", fetch.SameRack},
		{"z1", "r2", "h3", fetch.SameZone},
		{"z1", "", "h4", fetch.SameZone},
		{"z2", "r1", "h1", fetch.Far},
		{"", "", "h5", fetch.Far},
	}
	nodes := startMesh(t, len(places), func(i int, o *NetworkOptions) {
		o.Zone, o.Rack, o.Host, o.NICBits = places[i].zone, places[i].rack, places[i].host, 8e9
	})
	for i, p := range places {
		got, rate := nodes[0].Nearness(nodes[i].Self())
		if got != p.want || rate != 1e9 {
			t.Errorf("node %d: %s with %v bytes a second, want %s", i, got, rate, p.want)
		}
	}
	if got, _ := nodes[0].Nearness("nobody"); got != fetch.Far {
		t.Errorf("nobody is %s", got)
	}
}
