package peer

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// distant is a network whose calls take a rack's round trip longer.
type distant struct {
	*Network
	rtt time.Duration
}

// Call spins through the round trip: a sleep is late by a good part of it.
func (d distant) Call(ctx context.Context, to covey.PeerID, request []byte) ([]byte, error) {
	for began := time.Now(); time.Since(began) < d.rtt; {
	}
	return d.Network.Call(ctx, to, request)
}

// benchServer answers with a directory.
type benchServer struct {
	fakeServer
	d *dht.Directory
}

func (s *benchServer) ServeDirectory(ctx context.Context, from covey.PeerID, request []byte) []byte {
	return s.d.Serve(ctx, from, request)
}

// BenchmarkResolve asks for all 64 blocks of an extent, each time another one, at
// a home over TCP and TLS on loopback with 0.2 ms of network on top.
func BenchmarkResolve(b *testing.B) {
	for _, state := range []string{"held", "granted"} {
		b.Run(state, func(b *testing.B) { benchmarkResolve(b, state == "held") })
	}
}

func benchmarkResolve(b *testing.B, held bool) {
	nodes := startMesh(b, 4, nil)
	var ds []*dht.Directory
	for _, n := range nodes {
		d := dht.NewDirectory(dht.DirectoryOptions{Members: n.Network, Caller: distant{n.Network, 200 * time.Microsecond}})
		n.SetServer(&benchServer{d: d})
		ds = append(ds, d)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, len(ds))
	for _, d := range ds {
		go func() { ended <- d.Run(ctx) }()
	}
	self := nodes[0].Self()
	digests := slices.Repeat([]covey.Digest{covey.Sum([]byte("x"))}, covey.MaxExtentBlocks)
	all := covey.FirstBits(covey.MaxExtentBlocks)
	var extents []covey.ExtentID
	for i := 0; len(extents) < b.N; i++ {
		e := covey.ExtentID(covey.Sum(fmt.Appendf(nil, "extent %d", i)))
		if slices.Contains(ds[0].Homes(e), self) { // it would know some by itself
			continue
		}
		extents = append(extents, e)
		if held {
			ds[1].Announce(dht.Have{Extent: e, Have: all, Digests: digests})
		}
		if i%8192 == 8191 {
			time.Sleep(2 * time.Second) // a batch has room for 16,384
		}
	}
	time.Sleep(3 * time.Second)
	took := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	for _, e := range extents {
		began := time.Now()
		p, err := ds[0].Resolve(ctx, dht.Want{Extent: e, Count: covey.MaxExtentBlocks, Need: all})
		took = append(took, time.Since(began))
		if err != nil || len(p.Blocks) != covey.MaxExtentBlocks || (p.Blocks[0].State == dht.Held) != held {
			b.Fatalf("plan %+v, %v", p, err)
		}
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)-1-len(took)/100].Microseconds())/1000, "p99-ms")
	cancel()
	for range ds {
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}
}
