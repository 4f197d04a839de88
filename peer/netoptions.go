package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
)

// Sockets is where the network gets its connections from: the seam for
// simulation. Addresses of what it returns must be *net.TCPAddr.
type Sockets interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Defaults and bounds of [NetworkOptions].
const (
	// DefaultMaxMembers is how many records a table holds. At about 500 bytes
	// each that is 5 MB, and one digest of it stays under 200 kB.
	DefaultMaxMembers = 10_000
	// DefaultMaxConnections is about where idle connections begin to be closed;
	// members beyond it are dialled on demand. A connection costs 44 KiB at each
	// end, so this is 22 MiB.
	DefaultMaxConnections = 512
	// DefaultStallAfter is how long a stream with requests under way may carry
	// nothing, not even a keep-alive, before it is given up. Keep-alives come
	// every 200 ms; a node whose processors are all busy can be late by several
	// of them without being ill.
	DefaultStallAfter = time.Second
	// maxLabelLen bounds zone, rack and host in a member record.
	maxLabelLen = 128
)

// NetworkOptions configure a [Network]. The zero value is a standalone node on a
// free loopback port.
type NetworkOptions struct {
	// StateDir holds identity.key (mode 0600), made when missing; "" means an
	// identity that ends with the process.
	StateDir string
	// Listen is HOST:PORT; port 0 takes a free one, and a host of 0.0.0.0 or ::
	// advertises the addresses of all interfaces. "" is 127.0.0.1:0.
	Listen string
	// Join has HOST:PORT of any members. One that answers is enough. The node's
	// own address may be among them.
	Join []string
	// Key is the cluster key. Without it the node is alone: it may only listen
	// on loopback, must not join, and admits nobody.
	Key *ClusterKey
	// Record is this node's membership, in place of the cluster key.
	Record *MemberRecord
	// Revoked is a file with the peer IDs, one a line, of those who are no members
	// any more; it is read again when it changes, and passed on signed. It needs
	// the cluster key.
	Revoked string
	// Zone, Rack and Host say where the node is, for the choice of neighbours;
	// at most 128 bytes each.
	Zone, Rack, Host string
	// Capacity is the node's cache budget in bytes.
	Capacity int64
	// NICBits is what the network interface carries, in bits a second; 0: unknown.
	NICBits uint64

	// Plain is HOST:PORT of the plain data plane, port 0 for a free one; "" means
	// that there is none and blocks travel inside TLS only. See [AgentOptions].
	Plain string

	MaxMembers     int           // 0: DefaultMaxMembers
	MaxConnections int           // 0: DefaultMaxConnections
	StallAfter     time.Duration // 0: DefaultStallAfter

	Sockets  Sockets      // nil: the operating system's
	Log      *slog.Logger // nil: discard
	Registry prometheus.Registerer

	// exchanges are the versions of the exchange to speak, newest first; nil means
	// all. Tests make an older, or a newer, node of it.
	exchanges []protocol.ID
}

// Validate lists every fault of the options; each wraps [covey.ErrInvalid].
func (o NetworkOptions) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(format+": %w", append(args, covey.ErrInvalid)...))
	}
	host, _, err := net.SplitHostPort(o.listen())
	if err != nil {
		bad("listen address %q is not HOST:PORT", o.Listen)
	} else if o.standalone() && !isLoopback(host) {
		bad("listen address %q is not on loopback and there is no cluster key", o.Listen)
	}
	if o.Plain != "" {
		if host, _, err := net.SplitHostPort(o.Plain); err != nil {
			bad("plain data plane address %q is not HOST:PORT", o.Plain)
		} else if o.standalone() && !isLoopback(host) {
			bad("plain data plane address %q is not on loopback and there is no cluster key", o.Plain)
		}
	}
	for _, a := range o.Join {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" || port == "0" {
			bad("join address %q is not HOST:PORT", a)
		}
	}
	if o.Key != nil && o.Record != nil {
		bad("both a cluster key and a member record")
	}
	if o.Revoked != "" && o.Key == nil {
		bad("list of revoked peers %q without the cluster key that signs it", o.Revoked)
	}
	if o.standalone() && len(o.Join) > 0 {
		bad("join %s without a cluster key", strings.Join(o.Join, ","))
	}
	for _, l := range [...]struct{ name, value string }{{"zone", o.Zone}, {"rack", o.Rack}, {"host", o.Host}} {
		if len(l.value) > maxLabelLen {
			bad("%s of %d bytes", l.name, len(l.value))
		}
	}
	if o.Capacity < 0 || o.MaxMembers < 0 || o.MaxConnections < 0 || o.StallAfter < 0 {
		bad("negative limit")
	}
	return errors.Join(errs...)
}

// standalone nodes are alone.
func (o NetworkOptions) standalone() bool { return o.Key == nil && o.Record == nil }

// identity loads the node's private key, or takes the one that was issued.
func (o NetworkOptions) identity() (crypto.PrivKey, error) {
	if o.Record != nil && o.Record.identity != nil {
		return o.Record.identity, nil
	}
	return loadIdentity(o.StateDir)
}

// signer returns what the node proves its membership with; nil when it is alone.
func (o NetworkOptions) signer(identity crypto.PrivKey) (*member.Signer, error) {
	switch {
	case o.Record != nil:
		return o.Record.signer(identity)
	case o.Key != nil:
		k, err := o.Key.signer()
		if err != nil {
			return nil, err
		}
		return member.NewSigner(k), nil
	default:
		return nil, nil
	}
}

func (o NetworkOptions) listen() string {
	if o.Listen == "" {
		return "127.0.0.1:0"
	}
	return o.Listen
}

// withDefaults fills in what is zero.
func (o NetworkOptions) withDefaults() NetworkOptions {
	o.Listen = o.listen()
	if o.MaxMembers == 0 {
		o.MaxMembers = DefaultMaxMembers
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	if o.StallAfter == 0 {
		o.StallAfter = DefaultStallAfter
	}
	if o.exchanges == nil {
		o.exchanges = []protocol.ID{exchangeProtocol, exchangeFirst}
	}
	if o.Sockets == nil {
		o.Sockets = osSockets{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	return o
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// osSockets are the operating system's TCP sockets.
type osSockets struct{}

// keepAlive finds a host that vanished without a word within 30 s; until then
// the stall rule of each stream is what callers see.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

func (osSockets) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	return lc.Listen(ctx, network, address)
}

func (osSockets) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	return d.DialContext(ctx, network, address)
}
