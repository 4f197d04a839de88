package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/peer/internal/raw"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// plainMesh starts members with a plain data plane.
func plainMesh(t testing.TB, count int) []*node {
	return startMesh(t, count, func(_ int, o *NetworkOptions) { o.Plain = "127.0.0.1:0" })
}

// fileBlocks serves blocks from a file, as the store does.
type fileBlocks struct {
	*blocks
	file *os.File
}

func newFileBlocks(t testing.TB, size int) *fileBlocks {
	b := &fileBlocks{blocks: newBlocks(size)}
	name := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(name, b.data, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.file, err = os.Open(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.file.Close() })
	return b
}

type fileHandle struct {
	memHandle
	file *os.File
	off  int64
}

func (h fileHandle) File() (*os.File, int64, bool) { return h.file, h.off, true }

func (b *fileBlocks) serve(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error) {
	h, err := b.blocks.serve(ctx, l, wait)
	if err != nil {
		return nil, err
	}
	return fileHandle{h.(memHandle), b.file, l.Range().Off}, nil
}

func TestPlainFetch(t *testing.T) {
	for _, from := range []string{"memory", "file"} {
		t.Run(from, func(t *testing.T) {
			nodes := plainMesh(t, 2)
			files := newFileBlocks(t, 9<<20+12345)
			held, serve := files.blocks, files.serve
			if from == "memory" {
				serve = held.serve
			}
			nodes[0].SetServer(&fakeServer{block: serve})
			o := held.object(covey.DefaultBlockSize)
			var wg sync.WaitGroup
			for i := range 30 {
				wg.Go(func() {
					l := o.Block(i % o.Blocks())
					off := min(i*1000, int(l.Range().Len)-1)
					buf := make([]byte, l.Range().Len)
					var p fetch.Progress
					if err := nodes[1].FetchFrom(testContext(t), nodes[0].Self(), l, buf, off, &p); err != nil {
						t.Error(err)
					} else if !bytes.Equal(buf[off:], held.bytes(l)[off:]) || p.Filled() != len(buf) {
						t.Errorf("block %d from %d differs", l.Index, off)
					}
				})
			}
			wg.Wait()
			if got := countStreams(nodes[1].Network, nodes[0].id, string(exchangeProtocol)); got != 1 {
				t.Errorf("%d exchange streams, want one for the tickets", got)
			}
			if got := counted(t, nodes[0].metrics.sent); got < 5<<20 {
				t.Errorf("%v bytes counted as sent", got)
			}
			eventually(t, "all handles released", func() bool { return held.open.Load() == 0 })
			missing := o.Block(0)
			missing.Key = "other"
			if err := nodes[1].Fetch(testContext(t), nodes[0].Self(), missing, make([]byte, missing.Range().Len), false); !errors.Is(err, covey.ErrNotFound) {
				t.Errorf("a block that is not there: %v", err)
			}
			l := nodes[1].link(nodes[0].id)
			l.mu.Lock()
			spare := len(l.spare)
			l.mu.Unlock()
			if spare == 0 || spare > maxPlainSpare {
				t.Errorf("%d connections put aside", spare)
			}
		})
	}
}

// Members of either data plane read from each other.
func TestPlainMeetsTLS(t *testing.T) {
	nodes := startMesh(t, 2, func(i int, o *NetworkOptions) {
		if i == 0 {
			o.Plain = "127.0.0.1:0"
		}
	})
	held := newBlocks(1 << 20)
	l := held.object(covey.DefaultBlockSize).Block(0)
	for i, n := range nodes {
		n.SetServer(&fakeServer{block: held.serve})
		other := nodes[1-i]
		other.SetServer(&fakeServer{block: held.serve})
		buf := make([]byte, len(held.data))
		if err := n.Fetch(testContext(t), other.Self(), l, buf, false); err != nil || !bytes.Equal(buf, held.data) {
			t.Errorf("node %d: %v", i, err)
		}
	}
}

// fault 1, fault 3, on the plain data plane: a server that dies, and one that stops
// in the middle of a block.
func TestPlainServerFails(t *testing.T) {
	nodes := startMesh(t, 2, func(_ int, o *NetworkOptions) {
		o.Plain, o.StallAfter = "127.0.0.1:0", 300*time.Millisecond
	})
	held := newBlocks(4 << 20)
	h := slowHandle{memHandle{bytes.NewReader(held.data), &held.open}, make(chan struct{}), make(chan struct{}), new(sync.Once)}
	held.open.Add(1)
	nodes[0].SetServer(&fakeServer{block: func(context.Context, covey.Locator, bool) (blockstore.Handle, error) { return h, nil }})
	l := held.object(covey.DefaultBlockSize).Block(0)
	var p fetch.Progress
	began := time.Now()
	err := nodes[1].FetchFrom(testContext(t), nodes[0].Self(), l, make([]byte, l.Range().Len), 0, &p)
	if !errors.Is(err, covey.ErrUnavailable) || time.Since(began) > 3*time.Second {
		t.Errorf("fetch from a stopped peer: %v after %s", err, time.Since(began))
	}
	if p.Filled() == 0 {
		t.Error("nothing arrived before it stopped: the test shows nothing")
	}
	if live, _ := nodes[1].Live(); len(live) != 1 {
		t.Errorf("%d live members after a stall, want 1", len(live))
	}
	close(h.goOn)
}

// A request that is cancelled leaves its buffer alone and its server soon.
func TestPlainCancel(t *testing.T) {
	nodes := plainMesh(t, 2)
	held := newBlocks(1 << 20)
	waiting, gone := make(chan struct{}), make(chan struct{})
	nodes[0].SetServer(&fakeServer{block: func(ctx context.Context, _ covey.Locator, _ bool) (blockstore.Handle, error) {
		close(waiting)
		<-ctx.Done()
		close(gone)
		return nil, ctx.Err()
	}})
	l := held.object(covey.DefaultBlockSize).Block(0)
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { <-waiting; cancel() }()
	if err := nodes[1].Fetch(ctx, nodes[0].Self(), l, make([]byte, len(held.data)), true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled fetch: %v", err)
	}
	select {
	case <-gone:
	case <-time.After(3 * time.Second):
		t.Error("the server works on for a client that has left")
	}
}

// dialPlain connects to a node's plain data plane.
func dialPlain(t *testing.T, n *node) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.plain.port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// closed reports whether the other side closes the connection without an answer.
func closed(t *testing.T, c net.Conn) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(2 * openingTimeout)); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, c)
	return n == 0 && !isDeadline(err)
}

// Nobody gets a byte without a token that was issued to them and not used, whatever
// they know of others; and what is not a request ends a connection.
func TestPlainRefuses(t *testing.T) {
	nodes := plainMesh(t, 2)
	server, client := nodes[0], nodes[1]
	held := newBlocks(1 << 20)
	server.SetServer(&fakeServer{block: held.serve})
	l := held.object(covey.DefaultBlockSize).Block(0)
	get := raw.Request{Locator: l.AppendCanonical(nil)}.Append(nil)
	ticket := func(to *node) raw.Token {
		t.Helper()
		tok, err := server.plain.issuer.Issue(string(to.id))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	used := ticket(client)
	if err := server.plain.issuer.Redeem(string(client.id), used); err != nil {
		t.Fatal(err)
	}
	good := func() []byte { return raw.Opening{Client: string(client.id), Token: ticket(client)}.Append(nil) }
	for _, tc := range []struct {
		name     string
		says     []byte
		violates bool // it came from a member
	}{
		{"no token", append(raw.Opening{Client: string(client.id)}.Append(nil), get...), false},
		{"another's token", append(raw.Opening{Client: string(client.id), Token: ticket(server)}.Append(nil), get...), false},
		{"its own ID with another's token", append(raw.Opening{Client: "thief", Token: ticket(client)}.Append(nil), get...), false},
		{"a used token", append(raw.Opening{Client: string(client.id), Token: used}.Append(nil), get...), false},
		{"another issuer's token", append(raw.Opening{Client: string(client.id), Token: tokenOf(t, client)}.Append(nil), get...), false},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: covey\r\n\r\n"), false},
		{"nothing", nil, false},
		{"a kind that is no request", append(good(), raw.Head{Kind: raw.KindFound, Size: 5}.Append(make([]byte, 0, 64))...), true},
		{"a locator of 64 KiB", append(good(), 1, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := counted(t, server.metrics.refusedPlain)
			violations := counted(t, server.metrics.violations.WithLabelValues(string(plainProtocol)))
			c := dialPlain(t, server)
			says := tc.says
			if tc.violates {
				says = append(bytes.Clone(says), make([]byte, 64)...)
			}
			if _, err := c.Write(says); err != nil {
				t.Fatal(err)
			}
			if !closed(t, c) {
				t.Error("answered, or left open")
			}
			eventually(t, "counted", func() bool {
				if tc.violates {
					return counted(t, server.metrics.violations.WithLabelValues(string(plainProtocol))) == violations+1
				}
				return counted(t, server.metrics.refusedPlain) == before+1
			})
		})
	}
	t.Run("a locator that is none", func(t *testing.T) {
		c := dialPlain(t, server)
		if _, err := c.Write(append(good(), raw.Request{Locator: []byte("junk")}.Append(nil)...)); err != nil {
			t.Fatal(err)
		}
		var head [raw.HeadLen]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			t.Fatal(err)
		}
		if h, err := raw.ParseHead(head); err != nil || h.Kind != raw.KindFail || h.Code != uint8(wire.Code_INVALID) {
			t.Errorf("answer %+v, %v", h, err)
		}
	})
}

func tokenOf(t *testing.T, n *node) raw.Token {
	t.Helper()
	tok, err := n.plain.issuer.Issue(string(n.id))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// A replayed opening opens nothing: a token is good for one connection.
func TestPlainReplay(t *testing.T) {
	nodes := plainMesh(t, 2)
	server, client := nodes[0], nodes[1]
	held := newBlocks(1000)
	server.SetServer(&fakeServer{block: held.serve})
	tok, err := server.plain.issuer.Issue(string(client.id))
	if err != nil {
		t.Fatal(err)
	}
	l := held.object(covey.DefaultBlockSize).Block(0)
	said := raw.Request{Locator: l.AppendCanonical(nil)}.Append(raw.Opening{Client: string(client.id), Token: tok}.Append(nil))
	first := dialPlain(t, server)
	if _, err := first.Write(said); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, raw.HeadLen+len(held.data))
	if _, err := io.ReadFull(first, answer); err != nil || !bytes.Equal(answer[raw.HeadLen:], held.data) {
		t.Fatalf("the first use: %v", err)
	}
	again := dialPlain(t, server)
	if _, err := again.Write(said); err != nil {
		t.Fatal(err)
	}
	if !closed(t, again) {
		t.Error("a recorded opening was accepted")
	}
}

// Connections without a token are few, take little memory, and do not last; those
// of a member are bounded too.
func TestPlainCrowd(t *testing.T) {
	nodes := plainMesh(t, 2)
	server := nodes[0]
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var conns []net.Conn
	for range 4 * maxPlainOpening {
		conns = append(conns, dialPlain(t, server))
	}
	eventually(t, "most refused at once", func() bool {
		return counted(t, server.metrics.refusedPlain) >= 3*maxPlainOpening
	})
	server.plain.mu.Lock()
	opening := server.plain.opening
	server.plain.mu.Unlock()
	if opening > maxPlainOpening {
		t.Errorf("%d connections are opening", opening)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d KiB for %d connections", grown>>10, len(conns))
	}
	eventually(t, "all closed for want of a token", func() bool {
		server.plain.mu.Lock()
		defer server.plain.mu.Unlock()
		return len(server.plain.conns) == 0 && server.plain.opening == 0
	})
}

// A member can name the port of its plain data plane, never another host.
func TestTicketsNameNoPlace(t *testing.T) {
	for _, tc := range []struct {
		name   string
		ticket *wire.Ticket
		ok     bool
	}{
		{"good", &wire.Ticket{Token: make([]byte, raw.TokenLen), Port: 7173}, true},
		{"no token", &wire.Ticket{Port: 7173}, false},
		{"no port", &wire.Ticket{Token: make([]byte, raw.TokenLen)}, false},
		{"a port too large", &wire.Ticket{Token: make([]byte, raw.TokenLen), Port: 70000}, false},
	} {
		if _, err := parseTicket(wire.Marshal(tc.ticket)); (err == nil) != tc.ok || err != nil && !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
