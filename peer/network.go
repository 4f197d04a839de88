package peer

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/host"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// Server answers what other members ask of this one. Both methods are called
// concurrently, for members only, and must heed ctx.
type Server interface {
	// ServeDirectory answers a directory message; the reply is at most
	// MaxMessage bytes.
	ServeDirectory(ctx context.Context, from covey.PeerID, request []byte) []byte
	// ServeBlock holds a block, waiting for a read under way when wait is set.
	// The handle is released once its bytes are sent.
	ServeBlock(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error)
}

// MaxMessage is the longest request or reply of [Network.Call], in bytes.
const MaxMessage = 1 << 20

// PeerInfo is what is known of one member.
type PeerInfo struct {
	ID               covey.PeerID
	Name             string // the ID as text
	Host, Zone, Rack string
	Addrs            []string // HOST:PORT
	Capacity         int64
	Self             bool
	Connected        bool
	// Live is false while a failed dial or a stall keeps the member out of
	// [Network.Live].
	Live          bool
	LastSeen      time.Time
	RTT           time.Duration // 0: not measured
	SentBytes     uint64
	ReceivedBytes uint64
	Errors        uint64
}

// Network is the side of a node that faces the mesh.
type Network struct{ opts NetworkOptions }

// NewNetwork loads the identity and listens.
func NewNetwork(o NetworkOptions) (*Network, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Network{opts: o.withDefaults()}, nil
}

func (n *Network) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (n *Network) Join(ctx context.Context) error { return covey.ErrUnavailable }

func (n *Network) Self() covey.PeerID { return "" }

func (n *Network) Live() ([]covey.PeerID, uint64) { return nil, 0 }

func (n *Network) Call(ctx context.Context, to covey.PeerID, request []byte) ([]byte, error) {
	return nil, covey.ErrUnavailable
}

func (n *Network) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error {
	return covey.ErrUnavailable
}

func (n *Network) SetServer(Server) {}

func (n *Network) Host() host.Host { return nil }

func (n *Network) ListenAddrs() []string { return nil }

func (n *Network) Peers() []PeerInfo { return nil }

func (n *Network) Close() error { return nil }
