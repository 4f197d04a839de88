package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
)

const (
	// joinAttempt bounds one attempt at one address: two connections and the
	// tables.
	joinAttempt = 10 * time.Second
	// rejoinFirst is the pause after the first failed attempt, when agents are
	// likely to be starting together. It doubles up to rejoinAlone for a node
	// that knows nobody, and to rejoinLast for one that has other members.
	rejoinFirst = 50 * time.Millisecond
	rejoinAlone = 5 * time.Second
	rejoinLast  = 30 * time.Second
	// rejoinIdle is how often a node that lacks nobody looks whether it still
	// does.
	rejoinIdle = time.Second
)

// errSelf says that an address is this node's own.
var errSelf = errors.New("address of this node")

// Join makes one attempt at the configured addresses, all at once, and returns
// when the member table was exchanged with the first that answers; attempts at
// the others go on behind it. It returns nil when none is configured or all are
// this node's own. Otherwise the error names each address and says why: the
// other side has another cluster key (wraps [covey.ErrDenied]), nothing listens
// there, or no answer in time (both wrap [covey.ErrUnavailable]). [Network.Run]
// tries again by itself.
func (n *Network) Join(ctx context.Context) error {
	return n.joinAny(ctx, n.opts.Join)
}

// Joined waits for the first attempt to join that [Network.Run] makes, and returns
// what came of it, as [Network.Join] would. Run has logged an error by then, and
// goes on trying.
func (n *Network) Joined(ctx context.Context) error {
	select {
	case <-n.first:
		return n.firstErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// joinAny joins through whichever address answers first.
func (n *Network) joinAny(ctx context.Context, addrs []string) error {
	results := make(chan error, len(addrs))
	for _, a := range addrs {
		if !n.spawn(func() { results <- n.joinOne(a) }) {
			return errClosed
		}
	}
	var errs []error
	for range addrs {
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			if !errors.Is(err, errSelf) {
				errs = append(errs, err)
			}
		case <-ctx.Done():
			return errors.Join(append(errs, ctx.Err())...)
		}
	}
	return errors.Join(errs...)
}

// joinOne joins through one address.
func (n *Network) joinOne(addr string) error {
	ctx, cancel := context.WithTimeout(n.ctx, joinAttempt)
	defer cancel()
	id, at, err := n.whoIs(ctx, addr)
	if err != nil {
		return fmt.Errorf("join %s: %w", addr, err)
	}
	n.mu.Lock()
	n.joined[addr] = id
	n.mu.Unlock()
	if id == n.id {
		return errSelf
	}
	if err := n.meet(ctx, id, []ma.Multiaddr{at}); err != nil {
		return fmt.Errorf("join %s: %w", addr, err)
	}
	n.log.Info("joined through peer", "peer", id.String(), "addr", addr)
	return nil
}

// meet connects to somebody who need not be a member yet and exchanges tables.
func (n *Network) meet(ctx context.Context, id peer.ID, addrs []ma.Multiaddr) error {
	done := n.gate.expect(id)
	defer done()
	n.host.Peerstore().AddAddrs(id, addrs, peerstore.TempAddrTTL)
	if err := n.connect(ctx, id); err != nil {
		return err
	}
	return n.sync(ctx, id)
}

// whoIs learns the peer ID at an address: the TLS handshake yields it. The
// connection is closed again, for libp2p only dials whom it can name; what is
// learned here is checked by that second connection.
func (n *Network) whoIs(ctx context.Context, addr string) (peer.ID, ma.Multiaddr, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := n.opts.Sockets.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", nil, dialError(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := multistream.SelectProtoOrFail(libp2ptls.ID, conn); err != nil {
		return "", nil, handshakeError(ctx, err)
	}
	secured, err := n.host.tls.SecureOutbound(ctx, conn, "")
	if err != nil {
		return "", nil, handshakeError(ctx, err)
	}
	at, err := multiaddrOf(conn.RemoteAddr())
	if err != nil {
		return "", nil, err
	}
	if !member.AllowedAddr(at) {
		return "", nil, fmt.Errorf("address %s is not allowed (link-local or reserved): %w", at, covey.ErrInvalid)
	}
	return secured.RemotePeer(), at, nil
}

func dialError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens there: %w", covey.ErrUnavailable)
	case ctx.Err() != nil:
		return fmt.Errorf("no answer in time: %w", covey.ErrUnavailable)
	default:
		return fmt.Errorf("%s: %w", err.Error(), covey.ErrUnavailable)
	}
}

func handshakeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no answer in time: %w", covey.ErrUnavailable)
	}
	return fmt.Errorf("what listens there is not a covey agent, or hung up: %s: %w", err.Error(), covey.ErrUnavailable)
}

// missing returns the configured addresses at which no live member is known.
func (n *Network) missing() []string {
	live, _ := n.table.Live()
	here := make(map[peer.ID]bool, len(live))
	for _, id := range live {
		here[peer.ID(id)] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var addrs []string
	for _, a := range n.opts.Join {
		if !here[n.joined[a]] {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// rejoin keeps the node in the mesh until ctx ends: it tries the configured
// addresses that have nobody behind them, and now and then a member that was
// lost without having left, which is how the halves of a partition find each
// other.
func (n *Network) rejoin(ctx context.Context) {
	delay := rejoinFirst
	for first := true; ; first = false {
		pause := rejoinIdle
		addrs := n.missing()
		if len(addrs) > 0 {
			var err error
			if pause, err = n.tryJoin(ctx, addrs, &delay); first {
				n.firstErr = err
			}
		}
		if first {
			close(n.first)
		}
		if len(addrs) == 0 {
			delay = rejoinFirst
			n.seek(ctx)
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return
		}
	}
}

// tryJoin makes one attempt and returns how long to wait until the next. The first
// of several that fail is told loudly.
func (n *Network) tryJoin(ctx context.Context, addrs []string, delay *time.Duration) (pause time.Duration, err error) {
	err = n.joinAny(ctx, addrs)
	if err == nil {
		return rejoinIdle, nil
	}
	if ctx.Err() == nil {
		if *delay == rejoinFirst {
			n.log.Warn("join failed; trying again", "error", err)
		} else {
			n.log.Debug("join failed; trying again", "error", err)
		}
	}
	most := rejoinAlone
	if live, _ := n.table.Live(); len(live) > 1 {
		most = rejoinLast
	}
	pause = *delay
	*delay = min(*delay*2, most)
	return pause, err
}

// seek tries one lost member, about every rejoinLast.
func (n *Network) seek(ctx context.Context) {
	lost := n.table.Lost()
	if len(lost) == 0 || rand.N(rejoinLast) > rejoinIdle {
		return
	}
	r := lost[rand.N(len(lost))]
	sctx, cancel := context.WithTimeout(ctx, joinAttempt)
	defer cancel()
	if err := n.meet(sctx, r.Peer, r.Addrs); err != nil {
		n.log.Debug("lost member still away", "peer", r.Peer.String(), "error", err)
	}
}
