package peer

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
)

// acceptTimeout is how long an inbound connection may take over TLS and the
// choice of a muxer; a round trip or two and a signature.
const acceptTimeout = 5 * time.Second

// dialTimeout is how long one dial may take, the same steps and TCP's.
const dialTimeout = 5 * time.Second

// gatedSwarm puts the gate between the swarm and the host's protocol muxer: every
// inbound stream passes it, whichever protocol it will speak.
type gatedSwarm struct {
	*swarm.Swarm
	gate *gate
}

// SetStreamHandler is what the host calls to be given its streams.
func (g gatedSwarm) SetStreamHandler(h network.StreamHandler) {
	g.Swarm.SetStreamHandler(func(s network.Stream) { g.gate.stream(s, h) })
}

// meshHost is a libp2p host put together by hand: TCP, TLS 1.3 and yamux, and
// none of the services for the open Internet, several of which the usual
// constructor starts unasked (QUIC's sockets, AutoNAT).
type meshHost struct {
	*basichost.BasicHost
	swarm *swarm.Swarm
	tls   *libp2ptls.Transport
}

// newHost makes a host that does not listen yet.
func newHost(key crypto.PrivKey, o NetworkOptions, g *gate, addrs func([]ma.Multiaddr) []ma.Multiaddr) (*meshHost, error) {
	limits, err := newLimits(o.MaxConnections)
	if err != nil {
		return nil, fmt.Errorf("make resource manager: %w", err)
	}
	h, err := assembleHost(key, o, limits, g, addrs)
	if err != nil {
		return nil, errors.Join(err, limits.Close())
	}
	return h, nil
}

// listen starts the host at an address.
func (h *meshHost) listen(a ma.Multiaddr) error {
	if err := h.swarm.Listen(a); err != nil {
		return err
	}
	h.Start()
	return nil
}

func assembleHost(key crypto.PrivKey, o NetworkOptions, limits network.ResourceManager, g *gate, addrs func([]ma.Multiaddr) []ma.Multiaddr) (_ *meshHost, err error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("derive peer ID: %w", err)
	}
	book, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, fmt.Errorf("make peerstore: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, book.Close())
		}
	}()
	if err := errors.Join(book.AddPrivKey(id, key), book.AddPubKey(id, key.GetPublic())); err != nil {
		return nil, fmt.Errorf("keep identity: %w", err)
	}
	bus := eventbus.NewBus()
	sw, err := swarm.NewSwarm(id, book, bus,
		swarm.WithConnectionGater(g), swarm.WithResourceManager(limits),
		swarm.WithDialTimeout(dialTimeout), swarm.WithDialTimeoutLocal(dialTimeout),
		// Both detectors drop whole families of addresses after failed dials,
		// which in a cluster only says that members are down.
		swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil))
	if err != nil {
		return nil, fmt.Errorf("make swarm: %w", err)
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: muxer}}
	tls, err := libp2ptls.New(libp2ptls.ID, key, muxers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make TLS identity: %w", err), sw.Close())
	}
	up, err := upgrader.New([]sec.SecureTransport{tls}, muxers, nil, limits, g, upgrader.WithAcceptTimeout(acceptTimeout))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make upgrader: %w", err), sw.Close())
	}
	if err := sw.AddTransport(&socketTransport{sockets: o.Sockets, upgrader: up, limits: limits}); err != nil {
		return nil, errors.Join(fmt.Errorf("add transport: %w", err), sw.Close())
	}
	conns, err := newConnManager(o.MaxConnections)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make connection manager: %w", err), sw.Close())
	}
	h, err := basichost.NewHost(gatedSwarm{sw, g}, &basichost.HostOpts{
		EventBus: bus, ConnManager: conns, AddrsFactory: addrs,
		UserAgent: "covey", ProtocolVersion: "covey/1",
		NegotiationTimeout: dialTimeout,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make host: %w", err), conns.Close(), sw.Close())
	}
	return &meshHost{BasicHost: h, swarm: sw, tls: tls}, nil
}
