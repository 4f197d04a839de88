package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/peer/internal/mux"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// wantProtocol carries the directory's messages.
const wantProtocol protocol.ID = "/covey/want/1"

const (
	// maxStreams is how many streams of one protocol a member may have open: the
	// one in use, and one that replaces it.
	maxStreams = 2
	// maxServing is how many requests of all members are worked on at once, for
	// each protocol. Most wait for a read under way and cost a goroutine.
	maxServing = 4096
)

// Server answers what other members ask of this one. Both methods are called
// concurrently, for members only, and must heed ctx.
type Server interface {
	// ServeDirectory answers a directory message; the reply is at most
	// [MaxMessage] bytes. nil means that there is no answer: the caller sees
	// [covey.ErrUnavailable].
	ServeDirectory(ctx context.Context, from covey.PeerID, request []byte) []byte
	// ServeBlock holds a block, waiting for a read under way when wait is set.
	// The handle is released once its bytes are sent.
	ServeBlock(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error)
}

// MaxMessage is the longest request or reply of [Network.Call], in bytes.
const MaxMessage = wire.MaxBody

// Call sends a directory message to a member and returns its reply. It wraps
// [covey.ErrUnavailable] when the member cannot be reached, stalls or has no
// answer, and [covey.ErrInvalid] for a message over [MaxMessage]. At most 64
// calls to one member are under way; further ones wait. A call to this node
// itself is answered without a network.
func (n *Network) Call(ctx context.Context, to covey.PeerID, request []byte) ([]byte, error) {
	if len(request) > MaxMessage {
		return nil, fmt.Errorf("call %s: message of %d bytes: %w", peer.ID(to), len(request), covey.ErrInvalid)
	}
	if to == n.Self() {
		a, err := n.serveDirectory(ctx, n.id, request)
		if err != nil {
			return nil, fmt.Errorf("call self: %w", err)
		}
		reply := make([]byte, a.Size)
		_, err = a.Body.ReadAt(reply, 0)
		if a.Size == 0 {
			err = nil
		}
		return reply, err
	}
	var reply []byte
	err := n.do(ctx, peer.ID(to), wantProtocol, request, func(size uint64) (_ []byte, err error) {
		reply, err = discardReply(size)
		return reply, err
	})
	if err != nil {
		return nil, fmt.Errorf("call %w", err)
	}
	return reply, nil
}

// Fetch reads the whole block from a member into buf, whose length is the
// block's; nothing is checked against a digest. With wait the member holds the
// request while it reads the block itself, for up to a minute. It wraps
// [covey.ErrNotFound] when the member does not have it and
// [covey.ErrUnavailable] when it cannot be reached or stalls. buf is not touched
// after Fetch has returned. At most 64 fetches from one member are under way;
// further ones wait.
func (n *Network) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error {
	if want := l.Range().Len; int64(len(buf)) != want {
		return fmt.Errorf("fetch %s: buffer of %d bytes for a block of %d: %w", l, len(buf), want, covey.ErrInvalid)
	}
	return n.fetch(ctx, from, &wire.BlockRequest{Locator: l.AppendCanonical(nil), Wait: wait}, l, buf, nil)
}

// FetchFrom is Fetch, without waiting, of the bytes from off on, into buf[off:];
// it tells p how far buf is filled. It wraps [covey.ErrUnavailable] also when the
// member's version cannot begin in the middle of a block.
func (n *Network) FetchFrom(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, off int, p *fetch.Progress) error {
	if want := l.Range().Len; int64(len(buf)) != want || off < 0 || off >= len(buf) {
		return fmt.Errorf("fetch %s from byte %d: buffer of %d bytes for a block of %d: %w", l, off, len(buf), want, covey.ErrInvalid)
	}
	return n.fetch(ctx, from, &wire.BlockRequest{Locator: l.AppendCanonical(nil), Offset: uint64(off)}, l, buf, p)
}

// fetch asks a member for the part of a block that the request says.
func (n *Network) fetch(ctx context.Context, from covey.PeerID, m *wire.BlockRequest, l covey.Locator, buf []byte, p *fetch.Progress) error {
	if n.plain != nil {
		err := n.plain.fetch(ctx, peer.ID(from), m, buf, p)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errNoPlain):
			return fmt.Errorf("fetch %s from %w", l, err)
		}
	}
	off := int(m.Offset)
	q := &ask{
		proto: exchangeProtocol,
		body: func(spoken protocol.ID) ([]byte, error) {
			if spoken == exchangeFirst && off > 0 {
				return nil, fmt.Errorf("member speaks %s, without offsets: %w", spoken, covey.ErrUnavailable)
			}
			return wire.Marshal(m), nil
		},
		dst: func(size uint64) ([]byte, error) {
			if size != uint64(len(buf)-off) {
				return nil, fmt.Errorf("%d bytes of a block of %d from byte %d: %w", size, len(buf), off, covey.ErrInvalid)
			}
			return buf[off:], nil
		},
	}
	if p != nil {
		q.told = func(got int) { p.Reached(off + got) }
	}
	if err := n.request(ctx, peer.ID(from), q); err != nil {
		return fmt.Errorf("fetch %s from %w", l, err)
	}
	return nil
}

// serveDirectory hands a directory message to the server.
func (n *Network) serveDirectory(ctx context.Context, from peer.ID, body []byte) (mux.Answer, error) {
	s := n.server.Load()
	if s == nil {
		return mux.Answer{}, fmt.Errorf("no directory here: %w", covey.ErrUnavailable)
	}
	reply := (*s).ServeDirectory(ctx, covey.PeerID(from), body)
	if reply == nil || len(reply) > MaxMessage {
		return mux.Answer{}, fmt.Errorf("no reply to a directory message: %w", covey.ErrUnavailable)
	}
	return bytesAnswer(reply), nil
}

// serveBlock looks up a block for a member.
func (n *Network) serveBlock(ctx context.Context, from peer.ID, body []byte) (mux.Answer, error) {
	var m wire.BlockRequest
	if err := wire.Unmarshal(body, &m); err != nil {
		return mux.Answer{}, err
	}
	if m.GetTicket() {
		return n.ticket(from)
	}
	l, err := covey.ParseLocator(m.GetLocator())
	if err != nil {
		return mux.Answer{}, err
	}
	h, err := n.lookUp(ctx, l, m.GetWait())
	if err != nil {
		return mux.Answer{}, err
	}
	if m.GetOffset() >= uint64(h.Len()) {
		h.Release()
		return mux.Answer{}, fmt.Errorf("block %s from byte %d: %w", l, m.GetOffset(), covey.ErrInvalid)
	}
	off := int64(m.GetOffset())
	size := int64(h.Len()) - off
	return mux.Answer{Size: int(size), Body: io.NewSectionReader(h, off, size), Release: h.Release}, nil
}

// lookUp gets a whole block of this node's. The caller releases the handle.
func (n *Network) lookUp(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error) {
	s := n.server.Load()
	if s == nil {
		return nil, fmt.Errorf("no blocks here: %w", covey.ErrNotFound)
	}
	h, err := (*s).ServeBlock(ctx, l, wait)
	if err != nil {
		return nil, err
	}
	if int64(h.Len()) != l.Range().Len {
		h.Release()
		return nil, fmt.Errorf("block %s of %d bytes: %w", l, h.Len(), covey.ErrCorrupt)
	}
	return h, nil
}

func bytesAnswer(b []byte) mux.Answer { return mux.Answer{Size: len(b), Body: bytes.NewReader(b)} }

// answerer is a handler that is told who asks.
type answerer func(ctx context.Context, from peer.ID, body []byte) (mux.Answer, error)

// serve registers a protocol of shared streams. The gate has let through members
// only.
func (n *Network) serve(proto protocol.ID, answer answerer) {
	n.host.SetStreamHandler(proto, func(s network.Stream) {
		from := s.Conn().RemotePeer()
		key := streamKey{from, proto}
		if !n.enter() {
			_ = s.Reset() // shutting down
			return
		}
		defer n.wg.Done()
		if !n.addStream(key) {
			n.violated(from, proto, fmt.Errorf("more than %d streams: %w", maxStreams, covey.ErrInvalid))
			_ = s.Reset() // as announced
			return
		}
		defer n.dropStream(key)
		handle := func(ctx context.Context, body []byte) (mux.Answer, error) { return answer(ctx, from, body) }
		if err := mux.Serve(n.ctx, s, handle, n.serving[proto], n.serverCounters(from, proto)); err != nil {
			n.violated(from, proto, err)
		}
	})
}

// streamKey counts inbound streams.
type streamKey struct {
	peer  peer.ID
	proto protocol.ID
}

func (n *Network) addStream(k streamKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.streams[k] >= maxStreams {
		return false
	}
	n.streams[k]++
	return true
}

func (n *Network) dropStream(k streamKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.streams[k]--; n.streams[k] == 0 {
		delete(n.streams, k)
	}
}

// violated counts a member's breach of protocol. The stream has been reset; the
// member stays one, for it may just be of another version.
func (n *Network) violated(p peer.ID, proto protocol.ID, err error) {
	n.metrics.violation(proto)
	n.log.Warn("protocol violated", "peer", p.String(), "protocol", string(proto), "error", err)
}

func (n *Network) clientCounters(l *link, proto protocol.ID) mux.Counters {
	return mux.Counters{Received: func(k int) {
		l.received.Add(uint64(k))
		if proto == exchangeProtocol {
			n.metrics.received.Add(float64(k))
		}
	}}
}

func (n *Network) serverCounters(p peer.ID, proto protocol.ID) mux.Counters {
	l := n.link(p)
	return mux.Counters{Sent: func(k int) {
		if l != nil {
			l.sent.Add(uint64(k))
		}
		if proto == exchangeProtocol {
			n.metrics.sent.Add(float64(k))
		}
	}}
}
