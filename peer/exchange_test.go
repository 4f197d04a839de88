package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

func contains(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// memHandle is a block in memory.
type memHandle struct {
	*bytes.Reader
	open *atomic.Int64
}

func (h memHandle) Len() int             { return int(h.Size()) }
func (h memHandle) Digest() covey.Digest { return covey.Digest{} }
func (h memHandle) Release()             { h.open.Add(-1) }

// blocks serves random blocks of one object.
type blocks struct {
	data []byte
	open atomic.Int64
}

func newBlocks(size int) *blocks {
	b := &blocks{data: make([]byte, size)}
	_, _ = rand.Read(b.data)
	return b
}

func (b *blocks) object(blockSize int64) covey.Object {
	return covey.Object{Origin: "test://o", Key: "k", Version: "1", Size: int64(len(b.data)), BlockSize: blockSize}
}

func (b *blocks) bytes(l covey.Locator) []byte { return b.data[l.Range().Off:l.Range().End()] }

func (b *blocks) serve(_ context.Context, l covey.Locator, _ bool) (blockstore.Handle, error) {
	if l.Key != "k" {
		return nil, fmt.Errorf("look up %s: %w", l, covey.ErrNotFound)
	}
	b.open.Add(1)
	return memHandle{bytes.NewReader(b.bytes(l)), &b.open}, nil
}

func TestFetchConcurrently(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	held := newBlocks(20<<20 + 12345)
	nodes[0].SetServer(&fakeServer{block: held.serve})
	o := held.object(covey.DefaultBlockSize)
	var wg sync.WaitGroup
	for range 3 {
		for i := range o.Blocks() {
			wg.Go(func() {
				l := o.Block(i)
				buf := make([]byte, l.Range().Len)
				if err := nodes[1].Fetch(testContext(t), nodes[0].Self(), l, buf, i%2 == 0); err != nil {
					t.Error(err)
				} else if !bytes.Equal(buf, held.bytes(l)) {
					t.Errorf("block %d differs", i)
				}
			})
		}
	}
	wg.Wait()
	if got := countStreams(nodes[1].Network, nodes[0].id, string(exchangeProtocol)); got != 1 {
		t.Errorf("%d exchange streams for %d fetches, want 1", got, 3*o.Blocks())
	}
	eventually(t, "all handles released", func() bool { return held.open.Load() == 0 })
	l := o.Block(0)
	l.Key = "other"
	err := nodes[1].Fetch(testContext(t), nodes[0].Self(), l, make([]byte, l.Range().Len), false)
	if !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("a block that is not there: %v", err)
	}
}

func countStreams(n *Network, p corepeer.ID, proto string) int {
	count := 0
	for _, c := range n.host.swarm.ConnsToPeer(p) {
		for _, s := range c.GetStreams() {
			if string(s.Protocol()) == proto && s.Stat().Direction == network.DirOutbound {
				count++
			}
		}
	}
	return count
}

// slowHandle serves its first bytes and then waits.
type slowHandle struct {
	memHandle
	reached chan struct{}
	goOn    chan struct{}
	once    *sync.Once
}

func (h slowHandle) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 {
		h.once.Do(func() { close(h.reached) })
		<-h.goOn
	}
	return h.memHandle.ReadAt(p, off)
}

// fault 1
func TestServerDiesMidFetch(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	held := newBlocks(4 << 20)
	h := slowHandle{memHandle{bytes.NewReader(held.data), &held.open}, make(chan struct{}), make(chan struct{}), new(sync.Once)}
	held.open.Add(1)
	nodes[0].SetServer(&fakeServer{block: func(context.Context, covey.Locator, bool) (blockstore.Handle, error) { return h, nil }})
	l := held.object(covey.DefaultBlockSize).Block(0)
	result := make(chan error, 1)
	go func() {
		result <- nodes[1].Fetch(testContext(t), nodes[0].Self(), l, make([]byte, l.Range().Len), false)
	}()
	<-h.reached
	died := time.Now()
	closed := make(chan error, 1)
	go func() { closed <- nodes[0].Close() }()
	err := <-result
	if !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("fetch from a peer that died: %v", err)
	}
	if took := time.Since(died); took > time.Second {
		t.Errorf("told after %s", took)
	}
	close(h.goOn)
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// A request that waits longer than the stall time is kept alive, and leaves its
// buffer alone once it was cancelled.
func TestWaitIsNotAStall(t *testing.T) {
	nodes := startMesh(t, 2, func(_ int, o *NetworkOptions) { o.StallAfter = 400 * time.Millisecond })
	held := newBlocks(1 << 20)
	waiting := make(chan struct{}, 2)
	nodes[0].SetServer(&fakeServer{block: func(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error) {
		waiting <- struct{}{}
		select {
		case <-time.After(900 * time.Millisecond):
			return held.serve(ctx, l, wait)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	l := held.object(covey.DefaultBlockSize).Block(0)
	buf := make([]byte, l.Range().Len)
	if err := nodes[1].Fetch(testContext(t), nodes[0].Self(), l, buf, true); err != nil || !bytes.Equal(buf, held.data) {
		t.Fatalf("fetch that waited: %v", err)
	}
	<-waiting
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { <-waiting; cancel() }()
	if err := nodes[1].Fetch(ctx, nodes[0].Self(), l, buf, true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled fetch: %v", err)
	}
}

func TestCallLimits(t *testing.T) {
	nodes := startMesh(t, 2, nil)
	nodes[0].SetServer(&fakeServer{reply: func(_ covey.PeerID, req []byte) []byte {
		if len(req) == 0 {
			return nil
		}
		return bytes.Repeat(req[:1], MaxMessage)
	}})
	ctx := testContext(t)
	reply, err := nodes[1].Call(ctx, nodes[0].Self(), make([]byte, MaxMessage))
	if err != nil || len(reply) != MaxMessage {
		t.Errorf("largest message: %d bytes, %v", len(reply), err)
	}
	if _, err := nodes[1].Call(ctx, nodes[0].Self(), make([]byte, MaxMessage+1)); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("too large a message: %v", err)
	}
	if _, err := nodes[1].Call(ctx, nodes[0].Self(), nil); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("no reply: %v", err)
	}
	if _, err := nodes[1].Call(ctx, "nobody", nil); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("call to nobody: %v", err)
	}
	if reply, err := nodes[0].Call(ctx, nodes[0].Self(), []byte("x")); err != nil || len(reply) != MaxMessage {
		t.Errorf("call to itself: %d bytes, %v", len(reply), err)
	}
}

// BenchmarkFetch reads 4 MiB blocks over loopback TLS; BenchmarkRawStream is the
// same bytes on a bare libp2p stream, the speed to compare with.
func BenchmarkFetch(b *testing.B) {
	nodes := startMesh(b, 2, nil)
	held := newBlocks(64 << 20)
	nodes[0].SetServer(&fakeServer{block: held.serve})
	o := held.object(covey.DefaultBlockSize)
	for _, parallel := range []int{1, 4} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			b.SetBytes(o.BlockSize)
			next := make(chan int)
			var wg sync.WaitGroup
			for range parallel {
				wg.Go(func() {
					buf := make([]byte, o.BlockSize)
					for i := range next {
						if err := nodes[1].Fetch(context.Background(), nodes[0].Self(), o.Block(i%o.Blocks()), buf, false); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for i := range b.N {
				next <- i
			}
			close(next)
			wg.Wait()
		})
	}
}

func BenchmarkRawStream(b *testing.B) {
	nodes := startMesh(b, 2, nil)
	data := make([]byte, covey.DefaultBlockSize)
	nodes[0].Host().SetStreamHandler("/raw", func(s network.Stream) {
		defer s.Close()
		var one [1]byte
		for {
			if _, err := io.ReadFull(s, one[:]); err != nil {
				return
			}
			if _, err := s.Write(data); err != nil {
				return
			}
		}
	})
	s, err := nodes[1].Host().NewStream(context.Background(), nodes[0].id, "/raw")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	buf := make([]byte, covey.DefaultBlockSize)
	b.SetBytes(covey.DefaultBlockSize)
	for b.Loop() {
		if _, err := s.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, buf); err != nil {
			b.Fatal(err)
		}
	}
}
