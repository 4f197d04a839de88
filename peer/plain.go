package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/peer/internal/mux"
	"github.com/covey-cache/covey/peer/internal/raw"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// plainProtocol is the plain data plane's name in metrics and logs; libp2p does
// not know of it.
const plainProtocol protocol.ID = "/covey/plain/1"

// Bounds of the plain data plane.
const (
	// maxPlainEach is how many connections one member may have open: what a client
	// uses and puts aside, and some that are just being replaced.
	maxPlainEach = 2 * maxPlainUse
	// maxPlainOpening is how many connections may be without a proven token, as
	// many as strangers may be connected to the secured listener.
	maxPlainOpening = maxStrangers
	// openingTimeout is how long a connection may take to show its token, which
	// its client sends with the first packet.
	openingTimeout = 2 * time.Second
	// plainIdle is how long a server keeps a connection that nothing is asked
	// over; a client gives its own up sooner, so that it finds none that has just
	// been closed.
	plainIdle     = time.Minute
	plainIdleSoon = 45 * time.Second
	// plainProgress is how often a server that is working says so.
	plainProgress = 200 * time.Millisecond
	// plainWrite is how long a client may leave one piece unread.
	plainWrite = 10 * time.Second
	// plainPiece is how much is sent under one deadline.
	plainPiece = 1 << 20
)

// plainPlane carries blocks over bare TCP, for a fabric that is trusted with
// them. What opens a connection, a token, travels over the secured connection; the
// reader checks digests as always. So only secrecy is given up, and what an
// attacker on the wire can do to a connection once it is open: make it fail.
type plainPlane struct {
	n        *Network
	issuer   *raw.Issuer
	listener net.Listener
	port     uint16

	// mu is a leaf lock and guards what follows.
	mu      sync.Mutex
	closed  bool
	conns   map[net.Conn]peer.ID // of the serving side; "" while they open
	opening int
	each    map[peer.ID]int
}

// newPlainPlane listens; start serves.
func newPlainPlane(n *Network, address string) (*plainPlane, error) {
	l, err := n.opts.Sockets.Listen(n.ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for the plain data plane on %s: %w", address, err)
	}
	at, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("listen for the plain data plane on %s: %s is no TCP address: %w", address, l.Addr(), covey.ErrInvalid)
	}
	return &plainPlane{
		n: n, issuer: raw.NewIssuer(string(n.id)), listener: l, port: uint16(at.Port),
		conns: make(map[net.Conn]peer.ID), each: make(map[peer.ID]int),
	}, nil
}

// close ends the listener and every connection of the serving side.
func (p *plainPlane) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.listener.Close()
	for c := range p.conns {
		c.Close()
	}
}

// accept takes connections until the listener is closed.
func (p *plainPlane) accept() {
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) || p.n.ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil { // out of descriptors, as a rule
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if !p.admit(c) || !p.n.spawn(func() { p.serve(c) }) {
			p.n.metrics.refusedPlain.Inc()
			c.Close()
		}
	}
}

// admit counts a connection that has not shown its token.
func (p *plainPlane) admit(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.opening >= maxPlainOpening || len(p.conns) >= p.n.opts.MaxConnections*connHeadroom {
		return false
	}
	p.opening++
	p.conns[c] = ""
	return true
}

// opened counts the connection as its member's, which it is from now on.
func (p *plainPlane) opened(c net.Conn, from peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opening--
	if from == "" || p.each[from] >= maxPlainEach {
		return false
	}
	p.each[from]++
	p.conns[c] = from
	return true
}

func (p *plainPlane) ended(c net.Conn, from peer.ID) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if from == "" {
		return
	}
	if p.each[from]--; p.each[from] == 0 {
		delete(p.each, from)
	}
}

// serve answers one connection until it ends.
func (p *plainPlane) serve(c net.Conn) {
	r := bufio.NewReaderSize(c, 4096)
	from, err := p.open(c, r)
	if !p.opened(c, from) {
		p.n.metrics.refusedPlain.Inc()
		p.n.log.Debug("plain connection refused", "addr", c.RemoteAddr().String(), "error", err)
		p.ended(c, "")
		return
	}
	defer p.ended(c, from)
	for err == nil {
		// A member that is none any more is not answered.
		if !p.n.table.Has(from) {
			return
		}
		err = p.request(c, r, from)
	}
	if errors.Is(err, covey.ErrInvalid) {
		p.n.violated(from, plainProtocol, err)
	}
}

// open reads the opening and returns whose connection it is.
func (p *plainPlane) open(c net.Conn, r io.Reader) (peer.ID, error) {
	if err := c.SetDeadline(time.Now().Add(openingTimeout)); err != nil {
		return "", err
	}
	o, err := raw.ReadOpening(r)
	if err != nil {
		return "", err
	}
	if err := p.issuer.Redeem(o.Client, o.Token); err != nil {
		return "", err
	}
	return peer.ID(o.Client), c.SetDeadline(time.Time{})
}

// request reads one request and answers it.
func (p *plainPlane) request(c net.Conn, r io.Reader, from peer.ID) error {
	if err := c.SetReadDeadline(time.Now().Add(plainIdle)); err != nil {
		return err
	}
	q, err := raw.ReadRequest(r)
	if err != nil {
		return err
	}
	l, err := covey.ParseLocator(q.Locator)
	if err != nil {
		return p.fail(c, err)
	}
	if !p.n.serving[exchangeProtocol].TryAcquire(1) {
		return p.fail(c, mux.ErrBusy)
	}
	defer p.n.serving[exchangeProtocol].Release(1)
	h, err := p.block(c, l, q)
	if err != nil {
		return p.fail(c, err)
	}
	defer h.Release()
	return p.send(c, from, h, int64(q.Offset))
}

// block gets what was asked for, and shows life while that takes time.
func (p *plainPlane) block(c net.Conn, l covey.Locator, q raw.Request) (blockstore.Handle, error) {
	timeout := time.Minute
	if q.TimeoutMs > 0 {
		timeout = min(timeout, time.Duration(q.TimeoutMs)*time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(p.n.ctx, timeout)
	defer cancel()
	stop := p.showLife(ctx, c, cancel)
	h, err := p.n.lookUp(ctx, l, q.Wait)
	stop()
	if err != nil {
		return nil, err
	}
	if q.Offset >= uint64(h.Len()) {
		h.Release()
		return nil, fmt.Errorf("block %s from byte %d: %w", l, q.Offset, covey.ErrInvalid)
	}
	return h, nil
}

// showLife writes progress every 200 ms until the function returned is called,
// which waits for a write under way. A client that has gone shows in the writing.
func (p *plainPlane) showLife(ctx context.Context, c net.Conn, gone func()) (stop func()) {
	var mu sync.Mutex // held for one write
	over := false
	var timer *time.Timer
	tick := func() {
		mu.Lock()
		defer mu.Unlock()
		if over || ctx.Err() != nil {
			return
		}
		if err := p.write(c, raw.Head{Kind: raw.KindProgress}.Append(nil)); err != nil {
			gone()
			return
		}
		timer.Reset(plainProgress)
	}
	mu.Lock()
	timer = time.AfterFunc(plainProgress, tick)
	mu.Unlock()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		timer.Stop()
	}
}

func (p *plainPlane) write(c net.Conn, b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(plainWrite)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// fail answers a request with the kind of an error. That the request was invalid
// is the client's fault, not the connection's.
func (p *plainPlane) fail(c net.Conn, err error) error {
	return p.write(c, raw.Head{Kind: raw.KindFail, Code: uint8(mux.FailureCode(err))}.Append(nil))
}

// filer is a handle whose bytes the kernel can send from a file.
type filer interface {
	File() (f *os.File, off int64, ok bool)
}

// send writes the block from an offset on. The client cannot tell a broken answer
// from the next one, so any error ends the connection.
func (p *plainPlane) send(c net.Conn, from peer.ID, h blockstore.Handle, off int64) error {
	size := int64(h.Len()) - off
	if err := p.write(c, raw.Head{Kind: raw.KindFound, Size: uint64(size)}.Append(nil)); err != nil {
		return err
	}
	count := p.n.serverCounters(from, exchangeProtocol)
	if f, ok := h.(filer); ok {
		if file, at, ok := f.File(); ok {
			if tcp, ok := c.(*net.TCPConn); ok {
				return sendFile(tcp, file, at+off, size, count)
			}
		}
	}
	return p.copy(c, h, off, size, count)
}

// copy is send through memory.
func (p *plainPlane) copy(c net.Conn, h io.ReaderAt, off, size int64, count mux.Counters) error {
	buf := plainBuffers.Get().(*[]byte)
	defer plainBuffers.Put(buf)
	for size > 0 {
		b := (*buf)[:min(size, int64(len(*buf)))]
		if n, err := h.ReadAt(b, off); n < len(b) {
			return fmt.Errorf("read block at %d: %w", off, err)
		}
		if err := p.write(c, b); err != nil {
			return err
		}
		off, size = off+int64(len(b)), size-int64(len(b))
		count.Sent(len(b))
	}
	return nil
}

var plainBuffers = sync.Pool{New: func() any { b := make([]byte, wire.MaxData); return &b }}

// ticket answers a member that wants to open a connection.
func (n *Network) ticket(from peer.ID) (mux.Answer, error) {
	if n.plain == nil {
		return mux.Answer{}, fmt.Errorf("no plain data plane here: %w", covey.ErrNotFound)
	}
	t, err := n.plain.issuer.Issue(string(from))
	if err != nil {
		return mux.Answer{}, err
	}
	return bytesAnswer(wire.Marshal(&wire.Ticket{Token: t[:], Port: uint32(n.plain.port)})), nil
}
