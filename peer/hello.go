package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// joinProtocol is what two peers speak first on every connection: each shows its
// member record to the other.
const joinProtocol protocol.ID = "/covey/join/1"

// What a refused peer is told; it reads it in its own log.
const (
	refusalWrongKey = "wrong cluster key"
	refusalExpired  = "membership has expired"
	refusalRevoked  = "membership was revoked"
)

// errRefused says that one of two peers does not accept the other.
var errRefused = fmt.Errorf("refused: %w", covey.ErrDenied)

// refusal is what a peer is told of why it was not accepted.
func refusal(err error) string {
	switch {
	case errors.Is(err, member.ErrExpired):
		return refusalExpired
	case errors.Is(err, member.ErrRevoked):
		return refusalRevoked
	default:
		return refusalWrongKey
	}
}

// refused is the error of a join that a peer refused. What it says is a stranger's
// text, and only believed where it is one of those that are known.
func refused(reason string) error {
	switch reason {
	case refusalExpired, refusalRevoked:
	default:
		reason = refusalWrongKey
	}
	return fmt.Errorf("%s: %w", reason, errRefused)
}

// greeting is the hello on one outbound connection, shared by all who wait.
type greeting struct {
	done chan struct{}
	err  error
}

// greet introduces this node on a connection, once, and returns when the other
// has answered. It fails with errRefused when either side does not accept the
// other; the connection is then closed.
func (n *Network) greet(ctx context.Context, c network.Conn) error {
	g := n.greeting(c)
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// greeting returns the hello of a connection, and starts it the first time.
func (n *Network) greeting(c network.Conn) *greeting {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.greetings[c]
	if g != nil {
		return g
	}
	g = &greeting{done: make(chan struct{})}
	n.greetings[c] = g
	started := n.spawnLocked(func() {
		ctx, cancel := context.WithTimeout(n.ctx, joinTimeout)
		defer cancel()
		if g.err = n.hello(ctx, c); g.err != nil {
			_ = c.Close() // the error to tell is the hello's
			n.forgetGreeting(c)
		}
		close(g.done)
	})
	if !started {
		g.err = errClosed
		close(g.done)
	}
	return g
}

// forgetGreeting drops what is kept of a connection that is closed. Who had it in
// hand when it ended may greet it after disconnected was told of its end.
func (n *Network) forgetGreeting(c network.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.greetings, c)
}

// hello sends this node's record and checks the one that comes back.
func (n *Network) hello(ctx context.Context, c network.Conn) error {
	own := n.ownRecord()
	if own == nil {
		return fmt.Errorf("no cluster key: %w", covey.ErrDenied)
	}
	s, err := c.NewStream(ctx)
	if err != nil {
		return fmt.Errorf("open join stream: %s: %w", err.Error(), covey.ErrUnavailable)
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	reply, rtt, err := n.exchangeHello(s, own)
	if err != nil {
		return n.helloFailed(ctx, err)
	}
	if reply.GetRefusal() != "" {
		// Whoever wanted the connection tells of the error.
		n.log.Debug("join refused by peer", "peer", c.RemotePeer().String(), "addr", c.RemoteMultiaddr().String(), "reason", clip(reply.GetRefusal()))
		n.metrics.refusedJoins.Inc()
		return refused(reply.GetRefusal())
	}
	if err := n.accept(c, reply.GetRecord()); err != nil {
		n.log.Debug("join abandoned: peer did not prove membership", "peer", c.RemotePeer().String(), "addr", c.RemoteMultiaddr().String(), "reason", err.Error())
		n.metrics.refusedJoins.Inc()
		return refused(refusal(err))
	}
	if l := n.link(c.RemotePeer()); l != nil {
		l.measured(rtt)
	}
	return nil
}

// exchangeHello returns the answer, and how long the negotiation took: one round
// trip in which the other side has nothing to check.
func (n *Network) exchangeHello(s network.Stream, own *wire.SignedRecord) (reply *wire.Hello, rtt time.Duration, err error) {
	if err := s.SetProtocol(joinProtocol); err != nil {
		return nil, 0, err
	}
	began := time.Now()
	if err := s.SetDeadline(began.Add(joinTimeout)); err != nil {
		return nil, 0, err
	}
	if err := multistream.SelectProtoOrFail(joinProtocol, s); err != nil {
		return nil, 0, err
	}
	rtt = time.Since(began)
	if err := wire.WriteHello(s, &wire.Hello{Record: own}); err != nil {
		return nil, 0, err
	}
	reply, err = wire.ReadHello(s)
	return reply, rtt, err
}

// helloFailed says what a connection that broke during the hello means. A peer
// that has refused this one before hangs up without a word.
func (n *Network) helloFailed(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, covey.ErrInvalid):
		n.metrics.violation(joinProtocol)
		return fmt.Errorf("join: %w", err)
	case ctx.Err() != nil:
		return fmt.Errorf("join: no answer in time: %w", covey.ErrUnavailable)
	default:
		return fmt.Errorf("join: peer hung up (it may have refused this node a moment ago): %s: %w", err.Error(), covey.ErrUnavailable)
	}
}

// clip bounds what a stranger can put into the log.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most]
	}
	return s
}

// accept takes in the record that a peer presented on its own connection. The
// record must be that peer's: knowing somebody else's is no use.
func (n *Network) accept(c network.Conn, m *wire.SignedRecord) error {
	r, err := n.signer.Open(m, time.Now())
	if err != nil {
		return err
	}
	if r.Peer != c.RemotePeer() {
		return fmt.Errorf("record of another peer %s: %w", r.Peer, covey.ErrDenied)
	}
	if err := n.merge([]*wire.SignedRecord{m}, c.RemotePeer()); err != nil {
		return err
	}
	if !n.table.Has(r.Peer) {
		return fmt.Errorf("record is not current: %w", covey.ErrDenied)
	}
	n.gate.forgive(r.Peer)
	n.gate.settle(r.Peer)
	n.reachable(r.Peer)
	return nil
}

// serveJoin answers a hello. It is reached by strangers through the gate and by
// members through the host.
func (n *Network) serveJoin(s network.Stream) {
	if !n.enter() {
		_ = s.Reset() // shutting down
		return
	}
	defer n.wg.Done()
	defer context.AfterFunc(n.ctx, func() { _ = s.Reset() })()
	c := s.Conn()
	err := n.answerHello(s)
	if err == nil {
		_ = s.Close() // the answer has been written
		return
	}
	n.log.Warn("join refused", "peer", c.RemotePeer().String(), "addr", c.RemoteMultiaddr().String(), "reason", err.Error())
	n.metrics.refusedJoins.Inc()
	n.gate.failed(c.RemotePeer())
	if errors.Is(err, covey.ErrInvalid) {
		n.metrics.violation(joinProtocol)
		_ = s.Reset()
	} else {
		_ = wire.WriteHello(s, &wire.Hello{Refusal: refusal(err)})
		_ = s.CloseWrite()
		// The peer closes when it has read the refusal; closing now could
		// overtake it.
		_, _ = io.CopyN(io.Discard, s, 1)
	}
	_ = c.Close()
}

func (n *Network) answerHello(s network.Stream) error {
	if err := s.SetDeadline(time.Now().Add(joinTimeout)); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	m, err := wire.ReadHello(s)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	own := n.ownRecord()
	if own == nil {
		return fmt.Errorf("no cluster key: %w", covey.ErrDenied)
	}
	// Admitted before the answer goes out: the peer may open streams as soon as
	// it has it.
	if err := n.accept(s.Conn(), m.GetRecord()); err != nil {
		return err
	}
	if err := wire.WriteHello(s, &wire.Hello{Record: own}); err != nil {
		n.log.Debug("hello not delivered", "peer", s.Conn().RemotePeer().String(), "error", err)
	}
	return nil
}

// ownRecord returns this node's signed record, made anew when it is due, or nil
// for a node without a cluster key.
func (n *Network) ownRecord() *wire.SignedRecord {
	if n.signer == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if n.own == nil || now.Sub(n.ownMade) >= member.Renew {
		n.renewLocked(now, 0)
	}
	age := uint64(max(now.Sub(n.ownMade).Milliseconds(), 0))
	return &wire.SignedRecord{Record: n.own.Record, Signature: n.own.Signature, Grant: n.own.Grant, AgeMs: age}
}

// renewLocked makes a new record of this node, newer than any before and than
// the given sequence number. The clock makes it newer than those of an earlier
// life.
func (n *Network) renewLocked(now time.Time, above uint64) {
	n.seq = max(n.seq+1, above+1, uint64(max(now.UnixMilli(), 0)))
	r := n.record(now)
	n.own, n.ownMade = n.signer.Sign(r), now
	n.table.SetSelf(r, n.own, now)
}

// record describes this node as it is now.
func (n *Network) record(now time.Time) member.Record {
	return member.Record{
		Peer: n.id, Addrs: n.advertised(), Zone: n.opts.Zone, Rack: n.opts.Rack, Host: n.opts.Host,
		NICBits: n.opts.NICBits, Capacity: n.opts.Capacity, Issued: now, Expires: now.Add(member.Lease), Seq: n.seq,
	}
}
