package peer

import (
	"context"
	"fmt"
	"net"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	mafmt "github.com/multiformats/go-multiaddr-fmt"
	manet "github.com/multiformats/go-multiaddr/net"
)

// socketTransport is libp2p's TCP transport over [Sockets]. The library's own
// would do for the operating system's; one code path for both means that what
// the simulation shows holds for the real thing.
type socketTransport struct {
	sockets  Sockets
	upgrader transport.Upgrader
	limits   network.ResourceManager
}

var _ transport.Transport = (*socketTransport)(nil)

var ipTCP = mafmt.And(mafmt.IP, mafmt.Base(ma.P_TCP))

func (t *socketTransport) CanDial(a ma.Multiaddr) bool { return ipTCP.Matches(a) }

// Dial connects, secures and multiplexes; p is who must be there.
func (t *socketTransport) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	scope, err := t.limits.OpenConnection(network.DirOutbound, true, a)
	if err != nil {
		return nil, err
	}
	if err := scope.SetPeer(p); err != nil {
		scope.Done()
		return nil, err
	}
	conn, err := t.dial(ctx, a)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return t.upgrader.Upgrade(ctx, t, conn, network.DirOutbound, p, scope)
}

func (t *socketTransport) dial(ctx context.Context, a ma.Multiaddr) (manet.Conn, error) {
	_, address, err := manet.DialArgs(a)
	if err != nil {
		return nil, err
	}
	conn, err := t.sockets.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	wrapped, err := manet.WrapNetConn(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return wrapped, nil
}

// Listen binds the address and accepts in goroutines of the upgrader, which end
// when the listener is closed.
func (t *socketTransport) Listen(a ma.Multiaddr) (transport.Listener, error) {
	_, address, err := manet.DialArgs(a)
	if err != nil {
		return nil, err
	}
	l, err := t.sockets.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	wrapped, err := manet.WrapNetListener(l)
	if err != nil {
		l.Close()
		return nil, err
	}
	return t.upgrader.UpgradeGatedMaListener(t, t.upgrader.GateMaListener(wrapped)), nil
}

func (t *socketTransport) Protocols() []int { return []int{ma.P_TCP} }

func (t *socketTransport) Proxy() bool { return false }

// multiaddrOf is the multiaddr of a socket's end.
func multiaddrOf(a net.Addr) (ma.Multiaddr, error) {
	m, err := manet.FromNetAddr(a)
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", a, err)
	}
	return m, nil
}
