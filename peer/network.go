package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/semaphore"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/board"
	"github.com/covey-cache/covey/peer/internal/member"
	"github.com/covey-cache/covey/peer/internal/wire"
)

const (
	// tick is how often Run looks for leases that ended, members to probe and
	// strangers that did not join.
	tick = 250 * time.Millisecond
	// maxPushes is how many member messages may be under way.
	maxPushes = 64
	// maxProbes is how many members are looked at in one tick.
	maxProbes = 16
)

// Network is the side of a node that faces the mesh: it admits members, keeps
// their table, and carries messages and blocks. All methods may be called
// concurrently.
//
// A node speaks only to members: peers that presented a record signed with the
// cluster key. A member stays one until its lease of 60 s ends without a
// renewal, or until it says goodbye. [Network.Live] leaves out those that this
// node could not dial, or whose stream stalled, from that moment on until one
// of: a probe by Run succeeds (tried after 5 s, doubling to 60 s; a stall is
// looked into after 250 ms; all are tried within a second when one is back), or
// the member connects by itself. A connection that
// merely drops is tried again at once, one that was closed for being one too many
// when it is needed. Nobody else hears of it.
type Network struct {
	opts    NetworkOptions
	log     *slog.Logger
	id      peer.ID
	signer  *member.Signer // nil: standalone
	gate    *gate
	host    *meshHost
	table   *member.Table
	metrics *networkMetrics
	server  atomic.Pointer[Server]
	board   board.Board
	plain   *plainPlane // nil: blocks travel inside TLS only
	pushes  *semaphore.Weighted
	// serving bounds the requests under way, for each protocol.
	serving map[protocol.ID]*semaphore.Weighted

	// ctx ends everything that this network has started; wg counts it.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// wake makes Run do its rounds now.
	wake chan struct{}

	closeOnce sync.Once
	closeErr  error

	// mu guards what follows. It is held for map operations and for making this
	// node's record; the table's and links' locks may be taken under it.
	//
	// INVARIANT: once closing is set, wg does not grow.
	mu        sync.Mutex
	closing   bool
	own       *wire.SignedRecord
	ownMade   time.Time
	seq       uint64
	links     map[peer.ID]*link
	greetings map[network.Conn]*greeting
	streams   map[streamKey]int
	joined    map[string]peer.ID
	renewals  []*wire.SignedRecord
	// revoked and warned are Run's alone; warned is when it was said last that the
	// node's membership ends soon.
	revoked revokedFile
	warned  time.Time
	sampled time.Time // of Run, too: when rates were taken

	// first is closed when Run has made its first attempt to join, whose error is
	// firstErr.
	first    chan struct{}
	firstErr error
	flushed  time.Time
	hurried  time.Time // when the members backed off were last all looked at
}

// NewNetwork loads or makes the identity and listens. It answers joins from then
// on, on goroutines that libp2p starts; [Network.Run] does the rest. Errors wrap
// [covey.ErrInvalid] when the options or the identity file are at fault.
func NewNetwork(o NetworkOptions) (*Network, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("network options: %w", err)
	}
	o = o.withDefaults()
	listen, err := listenMultiaddr(o.Listen)
	if err != nil {
		return nil, err
	}
	key, err := o.identity()
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("derive peer ID: %w", err)
	}
	n := &Network{
		opts: o, log: o.Log, id: id, gate: newGate(o.standalone()),
		pushes: semaphore.NewWeighted(maxPushes), wake: make(chan struct{}, 1), first: make(chan struct{}),
		links: make(map[peer.ID]*link), greetings: make(map[network.Conn]*greeting),
		streams: make(map[streamKey]int), joined: make(map[string]peer.ID),
		serving: make(map[protocol.ID]*semaphore.Weighted),
	}
	if n.signer, err = o.signer(key); err != nil {
		return nil, err
	}
	n.table = member.NewTable(id, n.signer, o.MaxMembers)
	if n.metrics, err = newNetworkMetrics(o.Registry); err != nil {
		return nil, fmt.Errorf("register network metrics: %w", err)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.gate.member, n.gate.join, n.gate.refused = n.table.Has, n.serveJoin, n.metrics.refusedStreams.Inc
	n.host, err = newHost(key, o, n.gate, func([]ma.Multiaddr) []ma.Multiaddr { return n.hostAddrs() })
	if err != nil {
		n.cancel()
		n.metrics.unregister(o.Registry)
		return nil, err
	}
	n.register()
	if err := n.host.listen(listen); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", o.Listen, err), n.Close())
	}
	if o.Plain != "" {
		if n.plain, err = newPlainPlane(n, o.Plain); err != nil {
			return nil, errors.Join(err, n.Close())
		}
		n.spawn(n.plain.accept)
	}
	n.introduce()
	return n, nil
}

// hostAddrs is what libp2p's identify tells of this node.
func (n *Network) hostAddrs() []ma.Multiaddr {
	if n.host == nil {
		return nil // the host asks while it is being made
	}
	return n.advertised()
}

// register sets up the protocols.
func (n *Network) register() {
	n.host.Network().Notify(&network.NotifyBundle{ConnectedF: n.connected, DisconnectedF: n.disconnected})
	n.host.SetStreamHandler(joinProtocol, n.serveJoin)
	answers := map[protocol.ID]answerer{membersProtocol: n.serveMembers, wantProtocol: n.serveDirectory, plansProtocol: n.servePlans}
	for _, proto := range n.opts.exchanges {
		answers[proto] = n.serveBlock
	}
	for proto, answer := range answers {
		n.serving[proto] = semaphore.NewWeighted(maxServing)
		n.serve(proto, answer)
	}
}

// introduce puts this node in its own table, now that its addresses are known.
func (n *Network) introduce() {
	if n.signer != nil {
		n.ownRecord()
		return
	}
	now := time.Now()
	n.table.SetSelf(n.record(now), nil, now)
}

// connected introduces this node on every connection that it opened, whoever
// asked for it: the other side may not know of it yet.
func (n *Network) connected(_ network.Network, c network.Conn) {
	if c.Stat().Direction == network.DirOutbound {
		n.greeting(c)
	}
}

// disconnected has a member that was lost looked at, so that one that died is
// out of Live at once and not when somebody needs it. One whose connection was
// trimmed stays in Live for as long as its lease is renewed.
func (n *Network) disconnected(_ network.Network, c network.Conn) {
	p := c.RemotePeer()
	n.forgetGreeting(c)
	if len(n.host.swarm.ConnsToPeer(p)) > 0 {
		return
	}
	n.gate.settle(p)
	// A member whose connection was one too many, here or there, is dialled when it
	// is needed: to look at it would bring the connection back. One that refused this
	// node, or failed otherwise, has its pause.
	if trimmed(c) {
		n.metrics.trimmed.Inc()
		return
	}
	if l := n.link(p); l != nil && !l.pausing(time.Now()) {
		l.probeAt(time.Now())
		n.poke()
	}
}

func (n *Network) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// spawn runs f in a goroutine that Run and Close wait for, unless the network is
// closing. f must end soon after n.ctx does.
func (n *Network) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.spawnLocked(f)
}

func (n *Network) spawnLocked(f func()) bool {
	if n.closing {
		return false
	}
	n.wg.Go(f)
	return true
}

// enter counts a goroutine of libp2p's as spawn does; the caller then calls
// n.wg.Done.
func (n *Network) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return false
	}
	n.wg.Add(1)
	return true
}

// Run keeps the node in the mesh: it renews the lease, spreads and compares
// member tables, joins and rejoins through the configured addresses, probes
// members that failed and closes connections of those who do not join. When ctx
// ends it says goodbye to the connected members, ends every request, waits for
// all that it started, and returns nil. The network is then of no use but to be
// closed.
func (n *Network) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var loops sync.WaitGroup
	loops.Go(func() { n.rejoin(ctx) })
	loops.Go(func() { n.compare(ctx) })
	n.rounds(ctx)
	cancel()
	loops.Wait()
	n.bye()
	n.stop()
	return nil
}

// rounds does what is due, every tick and when poked.
func (n *Network) rounds(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-n.wake:
		case <-ctx.Done():
			return
		case <-n.ctx.Done():
			return
		}
		n.renew()
		n.expire()
		n.flushRenewals()
		n.reloadRevoked()
		n.sampleRates()
		n.probeDue()
		n.reap()
	}
}

// renew makes a new record when the last has used up a third of its lease.
func (n *Network) renew() {
	if n.signer == nil {
		return
	}
	n.mu.Lock()
	due := time.Since(n.ownMade) >= member.Renew
	n.mu.Unlock()
	if due {
		n.queueRenewal(n.ownRecord())
		n.warnOfEnd()
	}
}

const (
	// warnAhead is how long before its membership ends a node begins to say so, once
	// in warnEvery: long enough for a working day to pass.
	warnAhead = 72 * time.Hour
	warnEvery = 6 * time.Hour
)

// warnOfEnd says when an issued membership ends soon.
func (n *Network) warnOfEnd() {
	ends, now := n.signer.Ends(), time.Now()
	if ends.IsZero() || ends.Sub(now) > warnAhead || now.Sub(n.warned) < warnEvery {
		return
	}
	n.warned = now
	n.log.Warn("this agent's member record ends soon; issue another and restart the agent with it", "expires", ends)
}

// expire drops members whose lease has ended.
func (n *Network) expire() {
	for _, p := range n.table.Expire(time.Now()) {
		n.log.Info("member lost", "peer", p.String())
		n.dropped(p)
	}
	n.metrics.setLive(n.table)
}

// probeDue looks at members whose time has come.
func (n *Network) probeDue() {
	n.mu.Lock()
	links := make([]*link, 0, len(n.links))
	for _, l := range n.links {
		links = append(links, l)
	}
	n.mu.Unlock()
	now := time.Now()
	started := 0
	for _, l := range links {
		if started == maxProbes {
			return
		}
		if l.dueProbe(now) {
			started++
			if !n.spawn(func() { n.probe(l) }) {
				l.probed()
			}
		}
	}
}

// reap closes the connections of peers that have had their time to join and are
// no members, and forgets those that have none.
func (n *Network) reap() {
	for _, p := range n.gate.waiting() {
		if len(n.host.swarm.ConnsToPeer(p)) == 0 {
			n.gate.settle(p)
		}
	}
	for _, c := range n.host.swarm.Conns() {
		p := c.RemotePeer()
		if n.table.Has(p) || time.Since(c.Stat().Opened) < joinTimeout {
			continue
		}
		if c.Stat().Direction == network.DirInbound {
			n.gate.failed(p)
		}
		n.log.Debug("closed a connection without membership", "peer", p.String(), "addr", c.RemoteMultiaddr().String())
		_ = c.Close() // it is of no more use either way
	}
}

// compare syncs with a random member every few seconds, as a rule a connected one.
func (n *Network) compare(ctx context.Context) {
	for {
		select {
		case <-time.After(syncEvery/2 + rand.N(syncEvery)):
		case <-ctx.Done():
			return
		case <-n.ctx.Done():
			return
		}
		for _, p := range n.partners() {
			sctx, cancel := context.WithTimeout(ctx, pushTimeout)
			if err := n.sync(sctx, p); err != nil {
				n.log.Debug("comparison of member tables failed", "error", err)
			}
			cancel()
		}
	}
}

// stop ends all that this network has started and waits for it.
func (n *Network) stop() {
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	n.cancel()
	n.gate.close()
	n.closePlain()
	n.wg.Wait()
}

// closePlain ends the plain data plane, both sides.
func (n *Network) closePlain() {
	if n.plain == nil {
		return
	}
	n.plain.close()
	n.mu.Lock()
	links := slices.Collect(maps.Values(n.links))
	n.mu.Unlock()
	for _, l := range links {
		l.drop()
	}
}

// Close stops listening, drops all connections without a goodbye, and waits for
// everything that was started. Run, if it has not returned, does so. Close may
// be called again.
func (n *Network) Close() error {
	n.closeOnce.Do(func() {
		n.mu.Lock()
		n.closing = true
		n.mu.Unlock()
		n.cancel()
		n.gate.close()
		n.closePlain()
		// An identify push to a peer that does not answer any more would hold
		// up Close for 5 s: nothing but its connection's end cancels it.
		for _, p := range n.host.Network().Peers() {
			_ = n.host.Network().ClosePeer(p) // it is going away anyway
		}
		n.closeErr = n.host.Close()
		n.wg.Wait()
		n.metrics.unregister(n.opts.Registry)
	})
	if n.closeErr != nil {
		return fmt.Errorf("close network: %w", n.closeErr)
	}
	return nil
}

// SetServer names who answers other members. Until then directory messages are
// ErrUnavailable to them, and no block is found.
func (n *Network) SetServer(s Server) { n.server.Store(&s) }

// Self is this node.
func (n *Network) Self() covey.PeerID { return covey.PeerID(n.id) }

// Live returns the members believed reachable, this node included, ordered by
// ID, and a number that grows whenever the set changes. The type comment says
// who is left out. The slice is shared: do not change it.
func (n *Network) Live() ([]covey.PeerID, uint64) { return n.table.Live() }

// Host is the libp2p host, for the DHT. Whatever protocol is registered on it is
// reached by members only: streams of others never get as far as its protocol
// muxer. It dials members only. Close it through [Network.Close].
func (n *Network) Host() host.Host { return n.host.BasicHost }

// ListenAddrs are the addresses at which others can reach this node, HOST:PORT.
func (n *Network) ListenAddrs() []string { return hostPorts(n.advertised()) }
