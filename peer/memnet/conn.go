package memnet

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes may be on their way in one direction: the size of a
// TCP socket buffer.
const window = 256 << 10

// pipe is one direction of a connection.
type pipe struct {
	net      *Network
	from, to netip.Addr

	// mu guards what follows.
	//
	// INVARIANT: size is the length of all segments, at most window.
	mu       sync.Mutex
	segments []segment
	size     int
	// ended: the writer closed; what is buffered can still be read. broken: a
	// reset, in either direction, and what was buffered is gone.
	ended, broken bool
	readBy        time.Time
	writeBy       time.Time
	// changed is closed, and replaced, at every change.
	changed chan struct{}
}

// segment is what one Write sent, and when it arrives.
type segment struct {
	data []byte
	at   time.Time
}

func (p *pipe) notifyLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait blocks until something changes, or t if that is set. The lock is held on
// entry and on return.
func (p *pipe) waitLocked(cut <-chan struct{}, t ...time.Time) {
	changed := p.changed
	var first time.Time
	for _, at := range t {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	p.mu.Unlock()
	defer p.mu.Lock()
	var timer <-chan time.Time
	if !first.IsZero() {
		tm := time.NewTimer(time.Until(first))
		defer tm.Stop()
		timer = tm.C
	}
	select {
	case <-changed:
	case <-cut:
	case <-timer:
	}
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) read(b []byte) (int, error) {
	for {
		cut, mended := p.net.isCut(p.from, p.to)
		p.mu.Lock()
		n, done, err := p.tryReadLocked(b, cut)
		if done {
			p.mu.Unlock()
			return n, err
		}
		var arrives time.Time
		if len(p.segments) > 0 && !cut {
			arrives = p.segments[0].at
		}
		p.waitLocked(mended, p.readBy, arrives)
		p.mu.Unlock()
	}
}

func (p *pipe) tryReadLocked(b []byte, cut bool) (n int, done bool, err error) {
	switch {
	case p.broken:
		return 0, true, syscall.ECONNRESET
	case past(p.readBy):
		return 0, true, os.ErrDeadlineExceeded
	case len(b) == 0:
		return 0, true, nil
	case cut:
		return 0, false, nil
	case len(p.segments) == 0:
		return 0, p.ended, io.EOF
	}
	now := time.Now()
	for n < len(b) && len(p.segments) > 0 && !p.segments[0].at.After(now) {
		k := copy(b[n:], p.segments[0].data)
		n += k
		if p.segments[0].data = p.segments[0].data[k:]; len(p.segments[0].data) == 0 {
			p.segments = p.segments[1:]
		}
	}
	if n == 0 {
		return 0, false, nil
	}
	p.size -= n
	p.notifyLocked()
	return n, true, nil
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.broken:
			return n, syscall.ECONNRESET
		case p.ended:
			return n, net.ErrClosed
		case past(p.writeBy):
			return n, os.ErrDeadlineExceeded
		case len(b) == 0:
			return n, nil
		}
		k := min(len(b), window-p.size)
		if k == 0 {
			p.waitLocked(nil, p.writeBy)
			continue
		}
		p.segments = append(p.segments, segment{append([]byte(nil), b[:k]...), time.Now().Add(p.net.Latency)})
		p.size += k
		n, b = n+k, b[k:]
		p.notifyLocked()
	}
}

// end is called by the writer, brk by either side.
func (p *pipe) end() { p.set(func() { p.ended = true }) }
func (p *pipe) brk() { p.set(func() { p.broken, p.segments, p.size = true, nil, 0 }) }

func (p *pipe) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.notifyLocked()
}

// conn is one end of a connection.
type conn struct {
	local, remote netip.AddrPort
	in, out       *pipe
	once          sync.Once
	mu            sync.Mutex
	closed        bool // guarded by mu
}

// pairLocked returns the two ends of a new connection.
func (n *Network) pairLocked(from, to netip.AddrPort) (ours, theirs *conn) {
	a := &pipe{net: n, from: from.Addr(), to: to.Addr(), changed: make(chan struct{})}
	b := &pipe{net: n, from: to.Addr(), to: from.Addr(), changed: make(chan struct{})}
	return &conn{local: from, remote: to, in: b, out: a}, &conn{local: to, remote: from, in: a, out: b}
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.wrap("read", err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	return n, c.wrap("write", err)
}

// wrap makes errors look like those of the net package. After Close they say so.
func (c *conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Close lets the other side read what was sent; its own writes fail from then
// on, as on a socket that is closed in both directions.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.once.Do(func() {
		c.out.end()
		c.in.brk()
		c.out.net.mu.Lock()
		delete(c.out.net.conns, c)
		c.out.net.mu.Unlock()
	})
	return nil
}

func (c *conn) reset() {
	c.out.brk()
	c.in.brk()
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // neither fails
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.set(func() { c.in.readBy = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.set(func() { c.out.writeBy = t })
	return nil
}
