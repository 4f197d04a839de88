package peer

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
	"github.com/multiformats/go-varint"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
)

// Bounds of what those who are not members can take up.
const (
	// maxStrangers is how many unknown peers may be connected at once. A join is
	// over in two round trips, so 64 admit hundreds a second.
	maxStrangers = 64
	// joinTimeout is how long an unknown peer has to join.
	joinTimeout = 5 * time.Second
	// maxHeld is how many streams of an unknown peer wait for it to be admitted.
	// identify opens two, kad-dht one; more is not a peer that is just joining.
	maxHeld = 8
	// maxBad bounds the list of those who failed to join.
	maxBad = 1024
	// badAfter failures within badTime keep a peer out for badTime: long enough
	// that guessing costs nothing here, short enough that an operator who has
	// mended a key file does not wonder.
	badAfter = 3
	badTime  = 30 * time.Second
)

// gate decides who is spoken to. It is libp2p's connection gater, and it also
// sees every inbound stream before its protocol is negotiated.
//
// A stream of an unknown peer is read just far enough to see which protocol it
// wants. The join protocol is served. Any other is held back until the peer has
// been admitted, because identify and kad-dht open streams the moment that a
// connection exists; when the peer fails to join in time, they are reset.
type gate struct {
	// member reports whether a peer is in the member table.
	member func(peer.ID) bool
	// join serves the join protocol.
	join network.StreamHandler
	// refused counts a stream that was reset.
	refused func()
	// standalone nodes accept nobody.
	standalone bool
	closed     chan struct{}
	closeOnce  sync.Once

	// mu is a leaf lock. It guards what follows.
	mu        sync.Mutex
	strangers map[peer.ID]*stranger
	bad       map[peer.ID]badPeer
	// expected has those whom this node is about to dial without knowing them
	// as members, and how many callers want that.
	expected map[peer.ID]int
}

// stranger is a connected peer that is not a member.
type stranger struct {
	held int
	// done is closed when the peer was admitted or has gone.
	done chan struct{}
}

// badPeer is one that failed to join.
type badPeer struct {
	failures int
	until    time.Time
}

func newGate(standalone bool) *gate {
	return &gate{
		standalone: standalone, closed: make(chan struct{}),
		strangers: make(map[peer.ID]*stranger), bad: make(map[peer.ID]badPeer), expected: make(map[peer.ID]int),
	}
}

// expect lets p be dialled although it is no member; call the result when done.
func (g *gate) expect(p peer.ID) (done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expected[p]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.expected[p]--; g.expected[p] == 0 {
			delete(g.expected, p)
		}
	}
}

// InterceptPeerDial allows members, and those being joined.
func (g *gate) InterceptPeerDial(p peer.ID) bool {
	if g.member(p) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.expected[p] > 0
}

// InterceptAddrDial applies the same rule to addresses from every source:
// records, identify, the DHT, and resolved names.
func (g *gate) InterceptAddrDial(_ peer.ID, a ma.Multiaddr) bool { return member.AllowedAddr(a) }

// InterceptAccept is asked before anything is known of the peer.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return !g.standalone }

// InterceptSecured refuses those who failed to join.
func (g *gate) InterceptSecured(dir network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	if dir == network.DirOutbound || g.member(p) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.bad[p]
	return !ok || b.failures < badAfter || time.Now().After(b.until)
}

// InterceptUpgraded bounds the number of unknown peers.
func (g *gate) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	return g.admitted(c.RemotePeer()) || g.stranger(c.RemotePeer(), c.Stat().Direction) != nil, 0
}

// admitted reports whether p may do what members may.
func (g *gate) admitted(p peer.ID) bool { return g.member(p) }

// stranger returns the entry of an unknown peer, nil when there are too many.
// Peers that this node dialled do not count against the bound.
func (g *gate) stranger(p peer.ID, dir network.Direction) *stranger {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.strangers[p]
	if s == nil && (len(g.strangers) < maxStrangers || dir == network.DirOutbound) {
		s = &stranger{done: make(chan struct{})}
		g.strangers[p] = s
	}
	return s
}

// settle releases the held streams of a peer, because it has become a member or
// has no connection left.
func (g *gate) settle(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.strangers[p]; s != nil {
		close(s.done)
		delete(g.strangers, p)
	}
}

// waiting lists the unknown peers.
func (g *gate) waiting() []peer.ID {
	g.mu.Lock()
	defer g.mu.Unlock()
	ids := make([]peer.ID, 0, len(g.strangers))
	for p := range g.strangers {
		ids = append(ids, p)
	}
	return ids
}

// forgive clears the failures of a peer that has joined.
func (g *gate) forgive(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.bad, p)
}

// failed notes that an inbound peer did not prove membership.
func (g *gate) failed(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	b := g.bad[p]
	if now.After(b.until) {
		b.failures = 0
	}
	g.bad[p] = badPeer{failures: b.failures + 1, until: now.Add(badTime)}
	if len(g.bad) > maxBad {
		g.pruneLocked(now)
	}
}

// pruneLocked drops what is over, and any one if nothing is.
func (g *gate) pruneLocked(now time.Time) {
	for id, b := range g.bad {
		if now.After(b.until) {
			delete(g.bad, id)
		}
	}
	for id := range g.bad {
		if len(g.bad) <= maxBad {
			return
		}
		delete(g.bad, id)
	}
}

// close lets nothing wait any more.
func (g *gate) close() { g.closeOnce.Do(func() { close(g.closed) }) }

// stream is every inbound stream's way to next, the host's protocol muxer.
func (g *gate) stream(s network.Stream, next network.StreamHandler) {
	p := s.Conn().RemotePeer()
	if g.admitted(p) {
		next(s)
		return
	}
	st := g.stranger(p, s.Conn().Stat().Direction)
	if st == nil || g.standalone {
		g.reset(s)
		return
	}
	if err := s.SetDeadline(time.Now().Add(joinTimeout)); err != nil {
		g.reset(s)
		return
	}
	proto, replay, err := peekProtocol(s)
	switch {
	case err != nil:
		g.reset(s)
	case proto == joinProtocol:
		g.serveJoin(replay)
	case g.hold(st) && g.admitted(p) && s.SetDeadline(time.Time{}) == nil:
		next(replay)
	default:
		g.reset(s)
	}
}

// hold waits until the peer is admitted or will not be.
func (g *gate) hold(st *stranger) bool {
	g.mu.Lock()
	if st.held >= maxHeld {
		g.mu.Unlock()
		return false
	}
	st.held++
	g.mu.Unlock()
	timeout, stop := context.WithTimeout(context.Background(), joinTimeout)
	defer stop()
	select {
	case <-st.done:
	case <-timeout.Done():
	case <-g.closed:
	}
	return true
}

func (g *gate) reset(s network.Stream) {
	g.refused()
	_ = s.Reset() // it is of no more use either way
}

// serveJoin negotiates on a muxer that knows nothing but the join protocol.
func (g *gate) serveJoin(s network.Stream) {
	only := multistream.NewMultistreamMuxer[protocol.ID]()
	only.AddHandler(joinProtocol, nil)
	if _, _, err := only.Negotiate(s); err != nil {
		g.reset(s)
		return
	}
	if err := s.SetProtocol(joinProtocol); err != nil {
		g.reset(s)
		return
	}
	g.join(s)
}

// maxToken bounds one line of the protocol negotiation; multistream's own limit.
const maxToken = 1024

// peekProtocol reads the two lines that open a stream, the negotiation's own name
// and the first protocol proposed, and returns a stream that yields them again.
func peekProtocol(s network.Stream) (protocol.ID, network.Stream, error) {
	seen := &recorder{r: s}
	if head, err := readToken(seen); err != nil || head != multistream.ProtocolID {
		return "", nil, fmt.Errorf("stream does not open a negotiation: %w", covey.ErrInvalid)
	}
	proto, err := readToken(seen)
	if err != nil {
		return "", nil, err
	}
	return protocol.ID(proto), &replayStream{Stream: s, front: seen.b}, nil
}

func readToken(r *recorder) (string, error) {
	n, err := varint.ReadUvarint(r)
	if err != nil || n == 0 || n > maxToken {
		return "", fmt.Errorf("negotiation line of %d bytes: %w", n, covey.ErrInvalid)
	}
	line := make([]byte, n)
	if _, err := io.ReadFull(r, line); err != nil || line[n-1] != '\n' {
		return "", fmt.Errorf("negotiation line is malformed: %w", covey.ErrInvalid)
	}
	return string(line[:n-1]), nil
}

// recorder keeps what is read through it.
type recorder struct {
	r io.Reader
	b []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.b = append(r.b, p[:n]...)
	return n, err
}

func (r *recorder) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// replayStream yields what was read ahead, then the rest of the stream.
type replayStream struct {
	network.Stream
	front []byte
}

func (s *replayStream) Read(p []byte) (int, error) {
	if len(s.front) > 0 {
		n := copy(p, s.front)
		s.front = s.front[n:]
		return n, nil
	}
	return s.Stream.Read(p)
}
