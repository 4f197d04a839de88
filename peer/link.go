package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/semaphore"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/mux"
)

// Backing off from a member that failed: the first pause, and the longest. A
// process that restarts is back within the first; a machine that is gone costs
// one dial a minute.
const (
	backOffFirst = 5 * time.Second
	backOffLast  = time.Minute
	// probeSoon is when a member whose stream stalled is looked at again: the
	// stall may have been a moment of no CPU, which is over by then.
	probeSoon = 250 * time.Millisecond
)

// errClosed says that this node is shutting down.
var errClosed = fmt.Errorf("network is closed: %w", covey.ErrUnavailable)

// link is what this node keeps for one member: its shared streams and how it has
// fared with it. It outlives connections and ends with the membership.
type link struct {
	peer peer.ID

	sent, received, errors atomic.Uint64
	sentRate, receivedRate throughput
	rtt                    atomic.Int64 // exponential average, ns
	seen                   atomic.Int64 // Unix ns of the last sign of life

	// mu guards what follows.
	//
	// INVARIANT: at most one client per protocol is being opened.
	mu      sync.Mutex
	clients map[protocol.ID]*openClient
	// strange has the protocols of which the member speaks no version that this
	// node does, and until when that is believed.
	strange map[protocol.ID]time.Time
	// failures in a row; until is when callers may try again, probe when Run
	// will (zero: not at all).
	failures     int
	until, probe time.Time
	probing      bool
	// spare are connections of the plain data plane that nobody uses; noPlain is
	// until when the member is taken to have none. After dropped none is kept.
	spare   []*plainConn
	noPlain time.Time
	dropped bool

	// plain bounds the connections in use.
	plain *semaphore.Weighted
}

// openClient is a client, or one on its way.
type openClient struct {
	ready  chan struct{} // closed when the next three are set
	client *mux.Client
	spoken protocol.ID // the version that was agreed on
	err    error
}

// measured takes in a round trip.
func (l *link) measured(rtt time.Duration) {
	for {
		old := l.rtt.Load()
		avg := int64(rtt)
		if old != 0 {
			avg = old + (avg-old)/8 // the weight TCP gives a sample
		}
		if l.rtt.CompareAndSwap(old, max(avg, 1)) {
			return
		}
	}
}

// pausing reports whether callers are to leave the member alone.
func (l *link) pausing(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.until)
}

// failed starts or lengthens the pause.
func (l *link) failed(now time.Time, stalled bool) {
	l.errors.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.until) {
		// One event, seen by many callers; or a probe after a stall that found
		// nothing better.
		if l.probe.IsZero() {
			l.probe = l.until
		}
		return
	}
	pause := min(backOffFirst<<min(l.failures, 8), backOffLast)
	pause += rand.N(pause/4) - pause/8 // so that not all come back at once
	l.failures++
	l.until = now.Add(pause)
	if l.probe = l.until; stalled {
		l.probe = now.Add(probeSoon)
	}
}

// recovered ends the pause.
func (l *link) recovered() {
	l.seen.Store(time.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures, l.until, l.probe = 0, time.Time{}, time.Time{}
}

// hurry brings the next probe forward, to a random moment of the coming second.
func (l *link) hurry(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	soon := now.Add(rand.N(time.Second))
	if !l.probe.IsZero() && soon.Before(l.probe) {
		l.probe = soon
	}
}

// doubted reports whether the member failed and has shown no life since.
func (l *link) doubted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failures > 0
}

// dueProbe reports whether the member is to be looked at now, and if so takes
// that on: the caller ends it with probed.
func (l *link) dueProbe(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.probing || l.probe.IsZero() || now.Before(l.probe) {
		return false
	}
	l.probing, l.probe = true, time.Time{}
	return true
}

func (l *link) probed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probing = false
}

func (l *link) probeAt(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.probe.IsZero() || t.Before(l.probe) {
		l.probe = t
	}
}

// link returns what is kept for a member, nil for anybody else.
func (n *Network) link(p peer.ID) *link {
	if p == n.id || !n.table.Has(p) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[p]
	if l == nil {
		l = &link{peer: p, clients: make(map[protocol.ID]*openClient), plain: semaphore.NewWeighted(maxPlainUse)}
		n.links[p] = l
	}
	return l
}

// unreachable notes that a member could not be dialled or stalled: callers leave
// it alone for a while, and Live leaves it out until it shows life.
func (n *Network) unreachable(l *link, cause error) {
	l.failed(time.Now(), errors.Is(cause, mux.ErrStalled))
	if n.table.SetDown(l.peer, true) {
		n.log.Info("member backed off", "peer", l.peer.String(), "error", cause)
		n.metrics.setLive(n.table)
	}
}

// reachable notes a sign of life.
func (n *Network) reachable(p peer.ID) {
	l := n.link(p)
	if l == nil {
		return
	}
	l.recovered()
	if n.table.SetDown(p, false) {
		n.log.Info("member reachable again", "peer", p.String())
		n.metrics.setLive(n.table)
		n.hurryProbes()
	}
}

// hurryProbes has every member that is backed off looked at within a second, at
// most once in backOffFirst. When one is back, a network has healed or a rack has
// power again, and the others need not wait for the rest of up to a minute: while
// halves of a mesh stay apart, each reads from the origin what the other has.
func (n *Network) hurryProbes() {
	now := time.Now()
	n.mu.Lock()
	if now.Sub(n.hurried) < backOffFirst {
		n.mu.Unlock()
		return
	}
	n.hurried = now
	links := slices.Collect(maps.Values(n.links))
	n.mu.Unlock()
	for _, l := range links {
		l.hurry(now)
	}
}

// connect makes sure that there is a connection on which both sides know each
// other as members.
func (n *Network) connect(ctx context.Context, p peer.ID) error {
	for _, c := range n.host.swarm.ConnsToPeer(p) {
		if c.IsClosed() {
			continue
		}
		if c.Stat().Direction == network.DirInbound && n.table.Has(p) {
			return nil // the other side has greeted, or is about to
		}
		return n.greet(ctx, c)
	}
	// libp2p's own back-off would hide a member that has come back; ours is the
	// one that counts.
	n.host.swarm.Backoff().Clear(p)
	c, err := n.host.swarm.DialPeer(ctx, p)
	if err != nil {
		return fmt.Errorf("dial: %s: %w", err.Error(), covey.ErrUnavailable)
	}
	return n.greet(ctx, c)
}

// client returns the shared stream of a protocol to a member, opening it if need
// be; used says that it was there before. The opening is nobody's own: it goes on
// when the caller leaves.
func (n *Network) client(ctx context.Context, l *link, proto protocol.ID) (*openClient, bool, error) {
	// oc is a variable of its own, not a result: the goroutine that opens the
	// stream reads it, perhaps after this function has returned nil.
	l.mu.Lock()
	if time.Now().Before(l.strange[proto]) {
		l.mu.Unlock()
		return nil, false, errForeign
	}
	oc := l.clients[proto]
	used := oc != nil
	if !used {
		oc = &openClient{ready: make(chan struct{})}
		l.clients[proto] = oc
		if !n.spawn(func() { n.openClient(l, proto, oc) }) {
			delete(l.clients, proto)
			l.mu.Unlock()
			return nil, false, errClosed
		}
	}
	l.mu.Unlock()
	select {
	case <-oc.ready:
		return oc, used, oc.err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// openClient opens a stream and then reads it until it ends.
func (n *Network) openClient(l *link, proto protocol.ID, oc *openClient) {
	s, err := n.openStream(l.peer, proto)
	if err != nil {
		l.forget(proto, oc)
		oc.err = fmt.Errorf("connect: %w", err)
		switch {
		case n.ctx.Err() != nil:
		case errors.Is(err, errForeign):
			n.foreign(l, proto)
		default:
			n.unreachable(l, err)
		}
		close(oc.ready)
		return
	}
	oc.spoken = s.Protocol()
	// That a stream opens is no sign of life: on a connection that stands it does so
	// without a word from the other side, which may be cut off. A new connection was
	// greeted, and an answer counts when it is here.
	oc.client = mux.NewClient(s, n.opts.StallAfter, n.clientCounters(l, proto))
	close(oc.ready)
	stop := context.AfterFunc(n.ctx, func() { oc.client.Fail(errClosed) })
	err = oc.client.Run()
	stop()
	l.forget(proto, oc)
	switch {
	case n.ctx.Err() != nil:
	case errors.Is(err, mux.ErrStalled):
		n.unreachable(l, err)
	case errors.Is(err, covey.ErrInvalid):
		n.violated(l.peer, proto, err)
	}
}

// forget makes the next caller open a new client.
func (l *link) forget(proto protocol.ID, oc *openClient) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients[proto] == oc {
		delete(l.clients, proto)
	}
}

func (n *Network) openStream(p peer.ID, proto protocol.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	if err := n.connect(ctx, p); err != nil {
		return nil, err
	}
	s, err := n.host.NewStream(network.WithNoDial(ctx, "connected above"), p, n.offers(proto)...)
	if isForeign(err) {
		return nil, errForeign
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %s: %w", proto, err.Error(), covey.ErrUnavailable)
	}
	return s, nil
}

// ask is one request to a member.
type ask struct {
	proto protocol.ID
	// body makes the request, as the version of the protocol has it that the
	// member speaks.
	body func(spoken protocol.ID) ([]byte, error)
	// dst and told are those of [mux.Client.DoTelling].
	dst  func(size uint64) ([]byte, error)
	told func(got int)
	// begun says that dst was called: what has been filled is not filled again.
	begun bool
}

// fixed is a body that is the same in every version.
func fixed(body []byte) func(protocol.ID) ([]byte, error) {
	return func(protocol.ID) ([]byte, error) { return body, nil }
}

// do sends one request to a member. The error names the member.
func (n *Network) do(ctx context.Context, to peer.ID, proto protocol.ID, body []byte, dst func(uint64) ([]byte, error)) error {
	return n.request(ctx, to, &ask{proto: proto, body: fixed(body), dst: dst})
}

// request is do with all that can be asked.
func (n *Network) request(ctx context.Context, to peer.ID, q *ask) error {
	l := n.link(to)
	switch {
	case l == nil:
		return fmt.Errorf("peer %s is not a member: %w", to, covey.ErrUnavailable)
	case l.pausing(time.Now()):
		return fmt.Errorf("peer %s failed a moment ago: %w", to, covey.ErrUnavailable)
	}
	return n.ask(ctx, l, q)
}

// ask is request without regard to a pause.
func (n *Network) ask(ctx context.Context, l *link, q *ask) error {
	dst := q.dst
	q.dst = func(size uint64) ([]byte, error) {
		q.begun = true
		return dst(size)
	}
	again, err := n.askOnce(ctx, l, q)
	if again {
		_, err = n.askOnce(ctx, l, q)
	}
	if err != nil {
		return fmt.Errorf("peer %s: %w", l.peer, callerError(ctx, err))
	}
	return nil
}

// askOnce puts the request once. again says that it failed on a stream from
// before, with which the connection has ended: that says nothing of whether the
// member is there, and a request that nothing has come of may be put twice.
func (n *Network) askOnce(ctx context.Context, l *link, q *ask) (again bool, err error) {
	oc, used, err := n.client(ctx, l, q.proto)
	if err != nil {
		return false, err
	}
	body, err := q.body(oc.spoken)
	if err != nil {
		return false, err
	}
	began := time.Now() // connecting is not part of a round trip
	if err := oc.client.DoTelling(ctx, body, q.dst, q.told); err != nil {
		if !errors.Is(err, mux.ErrClosed) {
			return false, err
		}
		l.forget(q.proto, oc)
		return used && !q.begun && ctx.Err() == nil, err
	}
	l.seen.Store(time.Now().UnixNano())
	if l.doubted() {
		n.reachable(l.peer)
	}
	if q.proto == membersProtocol { // the others may have to wait for a home or an origin
		l.measured(time.Since(began))
	}
	return false, nil
}

// callerError gives every failure a kind that callers act upon: that the peer
// broke the protocol, or we did, is for the log; to a caller it is a peer that
// did not answer. Contexts of this
// package's own are turned into text, so that a caller that finds
// context.Canceled in an error knows that its own has ended.
func callerError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil, errors.Is(err, covey.ErrUnavailable), errors.Is(err, covey.ErrNotFound), errors.Is(err, covey.ErrStale):
		return err
	default:
		return fmt.Errorf("%s: %w", err.Error(), covey.ErrUnavailable)
	}
}
