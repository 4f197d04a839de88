package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/peer/internal/member"
	"github.com/covey-cache/covey/peer/internal/mux"
	"github.com/covey-cache/covey/peer/internal/raw"
	"github.com/covey-cache/covey/peer/internal/wire"
)

const (
	// maxPlainSpare is how many idle connections to one member are kept, as many as
	// a window has blocks.
	maxPlainSpare = 8
	// maxPlainUse is how many connections to one member are in use; further
	// requests wait. Those that wait for a read of the member's have one each.
	maxPlainUse = 32
	// plainRetry is how long a member that has no plain data plane, or whose cannot
	// be reached, is asked over the secured one before that is looked at again.
	plainRetry = time.Minute
)

// plainConn is one connection to a member's plain data plane. Whoever took it has
// it alone.
type plainConn struct {
	net.Conn
	since time.Time // when it was put aside
	head  [raw.HeadLen]byte
}

// errNoPlain says that a request is to go over the secured data plane.
var errNoPlain = fmt.Errorf("no plain data plane: %w", covey.ErrUnavailable)

// fetch reads a block, or the end of one, from a member. It fails with errNoPlain
// when the member cannot be reached that way; nothing has been read then.
func (p *plainPlane) fetch(ctx context.Context, to peer.ID, m *wire.BlockRequest, buf []byte, told *fetch.Progress) error {
	l := p.n.link(to)
	switch {
	case l == nil:
		return fmt.Errorf("peer %s is not a member: %w", to, covey.ErrUnavailable)
	case l.pausing(time.Now()):
		return fmt.Errorf("peer %s failed a moment ago: %w", to, covey.ErrUnavailable)
	}
	if err := l.plain.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("peer %s: %w", to, err)
	}
	defer l.plain.Release(1)
	for {
		c, spare, err := p.take(ctx, l)
		if err != nil {
			return err
		}
		begun, err := p.ask(ctx, l, c, m, buf, told)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("peer %s: %w", to, ctx.Err())
		case begun || !errors.Is(err, io.EOF):
			return fmt.Errorf("peer %s: %w", to, callerError(ctx, err))
		case !spare:
			return errNoPlain // it was refused, or the member is dying
		}
		// It was closed while it was put aside.
	}
}

// take returns a connection that was put aside, or opens one.
func (p *plainPlane) take(ctx context.Context, l *link) (c *plainConn, spare bool, err error) {
	l.mu.Lock()
	for len(l.spare) > 0 {
		c := l.spare[len(l.spare)-1]
		l.spare = l.spare[:len(l.spare)-1]
		if time.Since(c.since) < plainIdleSoon {
			l.mu.Unlock()
			return c, true, nil
		}
		c.Close()
	}
	not := time.Now().Before(l.noPlain)
	l.mu.Unlock()
	if not {
		return nil, false, errNoPlain
	}
	if c, err = p.dial(ctx, l); err == nil {
		return c, false, nil
	}
	if ctx.Err() != nil {
		return nil, false, ctx.Err()
	}
	l.mu.Lock()
	l.noPlain = time.Now().Add(plainRetry)
	l.mu.Unlock()
	if !errors.Is(err, covey.ErrNotFound) { // it has one
		p.n.log.Warn("plain data plane of a member cannot be reached; reading over the secured one",
			"peer", l.peer.String(), "error", err)
	}
	return nil, false, errNoPlain
}

// put keeps a connection for the next request.
func (l *link) put(c *plainConn) {
	c.since = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped || len(l.spare) >= maxPlainSpare {
		c.Close()
		return
	}
	l.spare = append(l.spare, c)
}

// drop closes what was put aside and keeps nothing from now on.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped = true
	for _, c := range l.spare {
		c.Close()
	}
	l.spare = nil
}

// dial asks the member for a token over its secured connection, and opens a
// connection to the same address with it. A member can name a port, never a place.
func (p *plainPlane) dial(ctx context.Context, l *link) (*plainConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	t, err := p.ticket(ctx, l)
	if err != nil {
		return nil, err
	}
	ip, err := p.n.addrOf(l.peer)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(ip.String(), strconv.Itoa(int(t.GetPort())))
	c, err := p.n.opts.Sockets.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %s: %w", address, err.Error(), covey.ErrUnavailable)
	}
	opening := raw.Opening{Client: string(p.n.id), Token: raw.Token(t.GetToken())}
	if err := p.write(c, opening.Append(nil)); err != nil {
		c.Close()
		return nil, fmt.Errorf("open %s: %s: %w", address, err.Error(), covey.ErrUnavailable)
	}
	return &plainConn{Conn: c}, nil
}

// ticket asks a member for a token.
func (p *plainPlane) ticket(ctx context.Context, l *link) (*wire.Ticket, error) {
	var reply []byte
	err := p.n.ask(ctx, l, &ask{
		proto: exchangeProtocol,
		body: func(spoken protocol.ID) ([]byte, error) {
			if spoken == exchangeFirst {
				return nil, fmt.Errorf("member speaks %s: %w", spoken, covey.ErrNotFound)
			}
			return wire.Marshal(&wire.BlockRequest{Ticket: true}), nil
		},
		dst: func(size uint64) ([]byte, error) {
			if size > maxTicket {
				return nil, fmt.Errorf("ticket of %d bytes: %w", size, covey.ErrInvalid)
			}
			reply = make([]byte, size)
			return reply, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return parseTicket(reply)
}

// maxTicket is the longest ticket, a token and a port with some room for fields to
// come.
const maxTicket = 256

func parseTicket(b []byte) (*wire.Ticket, error) {
	t := new(wire.Ticket)
	if err := wire.Unmarshal(b, t); err != nil {
		return nil, err
	}
	if len(t.GetToken()) != raw.TokenLen || t.GetPort() == 0 || t.GetPort() > 65535 {
		return nil, fmt.Errorf("ticket with a token of %d bytes for port %d: %w", len(t.GetToken()), t.GetPort(), covey.ErrInvalid)
	}
	return t, nil
}

// addrOf is the address at the other end of a connection to a member. It passed
// the gate, and is held against the same rule once more.
func (n *Network) addrOf(p peer.ID) (netip.Addr, error) {
	for _, c := range n.host.swarm.ConnsToPeer(p) {
		ip, err := manet.ToIP(c.RemoteMultiaddr())
		if err != nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip); ok && member.AllowedIP(a) {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("not connected to %s: %w", p, covey.ErrUnavailable)
}

// ask puts one request and reads its answer. begun says that the member has
// answered. The connection is put aside, or closed after an error.
func (p *plainPlane) ask(ctx context.Context, l *link, c *plainConn, m *wire.BlockRequest, buf []byte, told *fetch.Progress) (begun bool, err error) {
	off := int(m.GetOffset())
	// What is blocked on the connection returns when the caller has enough.
	stop := closeAfter(c, ctx, p.n.ctx)
	h, err := p.answer(ctx, c, m)
	begun = err == nil
	switch {
	case err != nil:
	case h.Kind == raw.KindFail:
		err = mux.CodeError(wire.Code(h.Code))
		if stop() {
			l.put(c)
			return true, err
		}
	case h.Size != uint64(len(buf)-off):
		err = fmt.Errorf("%d bytes of a block of %d from byte %d: %w", h.Size, len(buf), off, covey.ErrInvalid)
	default:
		err = p.fill(c, buf, off, l, told)
	}
	if err == nil && stop() {
		l.seen.Store(time.Now().UnixNano())
		l.put(c)
		return true, nil
	}
	stop()
	c.Close()
	switch {
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, covey.ErrInvalid):
		p.n.violated(l.peer, plainProtocol, err)
	case errors.Is(err, mux.ErrStalled):
		p.n.unreachable(l, err)
	}
	return begun, err
}

// closeAfter closes a connection when any of the contexts ends. stop prevents
// that, and reports whether it was in time.
func closeAfter(c net.Conn, all ...context.Context) (stop func() bool) {
	stops := make([]func() bool, 0, len(all))
	for _, ctx := range all {
		stops = append(stops, context.AfterFunc(ctx, func() { c.Close() }))
	}
	return func() bool {
		intact := true
		for _, s := range stops {
			intact = s() && intact
		}
		return intact
	}
}

// answer writes the request and reads the front of the answer.
func (p *plainPlane) answer(ctx context.Context, c *plainConn, m *wire.BlockRequest) (raw.Head, error) {
	q := raw.Request{Wait: m.GetWait(), Offset: m.GetOffset(), Locator: m.GetLocator()}
	if t, ok := ctx.Deadline(); ok {
		q.TimeoutMs = uint32(min(max(time.Until(t).Milliseconds(), 1), 1<<31))
	}
	if err := p.write(c, q.Append(nil)); err != nil {
		return raw.Head{}, fmt.Errorf("send request: %s: %w", err.Error(), io.EOF)
	}
	for {
		if err := c.SetReadDeadline(time.Now().Add(p.n.opts.StallAfter)); err != nil {
			return raw.Head{}, err
		}
		if _, err := io.ReadFull(c, c.head[:]); err != nil {
			return raw.Head{}, plainError(err)
		}
		h, err := raw.ParseHead(c.head)
		if err != nil || h.Kind != raw.KindProgress {
			return h, err
		}
	}
}

// fill reads the answer's bytes to their end.
func (p *plainPlane) fill(c *plainConn, buf []byte, at int, l *link, told *fetch.Progress) error {
	extended := time.Now()
	for at < len(buf) {
		n, err := c.Read(buf[at:])
		at += n
		if n > 0 {
			l.received.Add(uint64(n))
			p.n.metrics.received.Add(float64(n))
			told.Reached(at)
		}
		if err != nil && at < len(buf) {
			return plainError(err)
		}
		if now := time.Now(); now.Sub(extended) > p.n.opts.StallAfter/4 {
			extended = now
			if err := c.SetReadDeadline(now.Add(p.n.opts.StallAfter)); err != nil {
				return err
			}
		}
	}
	return nil
}

// plainError tells silence from an end.
func plainError(err error) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return mux.ErrStalled
	case errors.Is(err, io.EOF):
		return err
	default:
		return fmt.Errorf("connection broke: %s: %w", err.Error(), covey.ErrUnavailable)
	}
}
