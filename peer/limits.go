package peer

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/x/rate"
)

// Limits that libp2p enforces below us. Its defaults are made for the open
// Internet: 8 connections from one address, 192 inbound on a 16 GiB host.
const (
	// connHeadroom is how far connections may go above the mark at which idle
	// ones are closed, because closing waits for a grace period: a thousand
	// members may all join through one within it, with two connections each.
	connHeadroom = 4
	// connsPerPeer: two when both dial at once, and two that are just closing.
	connsPerPeer = 8
	// streamsPerPeer: three of ours in each direction, identify, and what
	// kad-dht opens, which is one stream for each query under way.
	streamsPerPeer = 256
	// memoryPerPeer is four full windows. It is memory only while a reader lags.
	memoryPerPeer = 64 << 20
	// systemMemory bounds all windows together.
	systemMemory = 4 << 30
	// transient connections are those that are not authenticated yet.
	transientConns = 256
	// connGrace is how long a new connection is safe from being closed as idle.
	connGrace = 30 * time.Second
)

// newLimits returns the resource manager for about the given number of live
// connections.
func newLimits(connections int) (network.ResourceManager, error) {
	conns := rcmgr.LimitVal(connections * connHeadroom)
	streams := conns * 64
	all := rcmgr.ResourceLimits{
		Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
		Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
		Memory: systemMemory,
	}
	transient := all
	transient.Conns, transient.ConnsInbound, transient.ConnsOutbound = transientConns, transientConns, transientConns
	transient.FD = transientConns
	onePeer := rcmgr.ResourceLimits{
		Streams: streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer,
		Conns: connsPerPeer, ConnsInbound: connsPerPeer, ConnsOutbound: connsPerPeer, FD: connsPerPeer,
		Memory: memoryPerPeer,
	}
	config := rcmgr.PartialLimitConfig{
		System: all, Transient: transient,
		ServiceDefault: all, ProtocolDefault: all,
		ServicePeerDefault: onePeer, ProtocolPeerDefault: onePeer, PeerDefault: onePeer,
		Conn:   rcmgr.ResourceLimits{Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: memoryPerPeer},
		Stream: rcmgr.ResourceLimits{Streams: 1, StreamsInbound: 1, StreamsOutbound: 1, Memory: memoryPerPeer},
	}.Build(rcmgr.InfiniteLimits)
	// Many agents may share an address (one machine, or a NAT). Strangers are
	// bounded by the gate, members by the limits above.
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(config),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: math.MaxInt}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 128, ConnCount: math.MaxInt}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}),
		rcmgr.WithMetricsDisabled())
}

// newConnManager closes connections until three quarters of the given number are
// left when there are that many: first those without streams, then those that
// others opened. It looks every 10 s.
func newConnManager(connections int) (*connmgr.BasicConnMgr, error) {
	return connmgr.NewConnManager(max(connections*3/4, 1), connections, connmgr.WithGracePeriod(connGrace))
}

// trimmed reports whether a connection that has ended did so because there were
// too many, at this side or at the other: the connection manager that closes it
// says so in the muxer's last frame, which a process that dies does not send. When
// the frame is lost (a reset overtook it) a trim looks like any other end.
func trimmed(c network.Conn) bool {
	if !c.IsClosed() {
		return false
	}
	// The error of a stream that cannot be opened is why the connection ended.
	s, err := c.NewStream(network.WithNoDial(context.Background(), "closed"))
	if err == nil {
		_ = s.Reset() // cannot be: the connection is closed
		return false
	}
	var why *network.ConnError
	return errors.As(err, &why) && why.ErrorCode == network.ConnGarbageCollected
}

// muxer is yamux as libp2p configures it: 16 MiB windows and no limit of its own
// on streams.
var muxer = yamux.DefaultTransport
