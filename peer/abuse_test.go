package peer

import (
	"context"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// A member that opens 10,000 streams and leaves a large frame unfinished on each
// gets two of them at a time, costs no memory to speak of, and keeps nobody else
// from being served.
func TestTenThousandStreams(t *testing.T) {
	nodes := startMesh(t, 3, nil)
	victim, abuser, other := nodes[0], nodes[1], nodes[2]
	victim.SetServer(&fakeServer{reply: func(_ covey.PeerID, req []byte) []byte { return req }})
	if _, err := other.Call(testContext(t), victim.Self(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	front := wire.AppendFrame(nil, wire.TypeRequest, 1, make([]byte, wire.MaxBody))[:wire.HeaderLen+100]
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var open []network.Stream
	opened := 0
	for range 10_000 {
		s, err := abuser.Host().NewStream(network.WithNoDial(ctx, "connected"), victim.id, wantProtocol)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			continue // libp2p's own limit
		}
		opened++
		_, _ = s.Write(front) // it may have been reset
		if open = append(open, s); len(open) == 100 {
			for _, s := range open {
				_ = s.Reset() // of no more use
			}
			open = open[:0]
		}
	}
	if opened < 5000 {
		t.Fatalf("only %d streams were opened: the test shows nothing", opened)
	}
	for range 10 {
		if reply, err := other.Call(testContext(t), victim.Self(), []byte("x")); err != nil || string(reply) != "x" {
			t.Errorf("another member's call: %q, %v", reply, err)
		}
	}
	for _, s := range open {
		_ = s.Reset() // of no more use
	}
	if got := counted(t, victim.metrics.violations.WithLabelValues(string(wantProtocol))); got < 1000 {
		t.Errorf("%v violations counted for %d streams", got, opened)
	}
	eventually(t, "its goroutines gone", func() bool { return runtime.NumGoroutine() < goroutines+50 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d MiB more memory for %d streams", grown>>20, opened)
	}
	if live, _ := victim.Live(); len(live) != 3 {
		t.Errorf("%d live members", len(live))
	}
}

// A request that comes again while it is worked on ends the stream.
func TestReplayedRequest(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	entered := make(chan struct{}, 2)
	release := make(chan struct{})
	nodes[0].SetServer(&fakeServer{reply: func(covey.PeerID, []byte) []byte {
		entered <- struct{}{}
		<-release
		return []byte("x")
	}})
	s, err := nodes[1].Host().NewStream(testContext(t), nodes[0].id, wantProtocol)
	if err != nil {
		t.Fatal(err)
	}
	frame := wire.AppendFrame(nil, wire.TypeRequest, 7, wire.Marshal(&wire.Request{Body: []byte("x")}))
	if _, err := s.Write(frame); err != nil {
		t.Fatal(err)
	}
	<-entered
	if _, err := s.Write(frame); err != nil {
		t.Fatal(err)
	}
	if err := s.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, s); err == nil || isDeadline(err) {
		t.Errorf("a replayed request was answered: %v", err)
	}
	close(release)
	eventually(t, "a violation counted", func() bool {
		return counted(t, nodes[0].metrics.violations.WithLabelValues(string(wantProtocol))) == 1
	})
}
