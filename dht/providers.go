package dht

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	logging "github.com/ipfs/go-log/v2"
	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/provider"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/multiformats/go-multihash"

	"github.com/covey-cache/covey"
)

// Figures of the provider records. One sweep every 10 min with a validity of
// 25 survives a sweep that is missed and one that is late.
const (
	// kadPrefix keeps this DHT apart from any other that a host may speak; the
	// protocol is kadPrefix + "/kad/1.0.0".
	kadPrefix     = "/covey"
	kadProtocol   = kadPrefix + "/kad/1.0.0"
	recordLife    = 25 * time.Minute
	sweepInterval = 10 * time.Minute
	// maxSweepDelay is how late a sweep may come: 10 + 5 is still a third below
	// the validity.
	maxSweepDelay = 5 * time.Minute
	// recordCopies is enough to find one of them while a tenth of the peers come
	// and go each minute; a record is only the second way to a holder.
	recordCopies = 3

	// offlineAfter is how long without any peer until the sweep forgets what it
	// believed of the network's size, and onlineCheck how often failures make it
	// look again.
	offlineAfter = 2 * time.Minute
	onlineCheck  = 10 * time.Second

	// sendRecordTimeout is how long a peer may take for one record: it is in
	// the same data centre.
	sendRecordTimeout = 5 * time.Second

	// refreshTable is how often the routing table is refreshed. The members
	// connect to each other by themselves, which fills it. The first time is
	// drawn from refreshSpread, because hosts that start together and refresh at
	// once open a connection to nearly everybody.
	refreshTable  = 10 * time.Minute
	refreshSpread = time.Minute

	// advertiseEvery and advertiseAtOnce pace what is handed to the sweep:
	// 4,096 extents a second are 1 TiB of large blocks a second.
	advertiseEvery  = time.Second
	advertiseAtOnce = 4096

	// maxAdvertised bounds the extents advertised by one peer: 64 TiB of full
	// ones, about 60 MiB of memory with the sweep's own copy.
	maxAdvertised = 1 << 18

	// maxProviders is how many holders a search returns at most, and
	// searchTimeout how long it may take when the caller sets no deadline.
	maxProviders  = 16
	searchTimeout = 5 * time.Second
)

// ProvidersOptions configure the coarse layer. The zero value works.
type ProvidersOptions struct {
	// Log receives what happens here; nil discards it.
	Log *slog.Logger
}

// Providers is the coarse layer: kad-dht under /covey in server mode, without
// values, its provider records in memory, one for each extent.
//
// It keeps no address to begin with and dials nobody by itself at first: it
// finds the members that are connected to the host and speak its protocol.
// Loopback and private addresses are as good as any, and any number of peers
// may share one.
//
// All methods may be called concurrently. Before Run and after it ended nobody
// is found; what was advertised before waits for it.
type Providers struct {
	host host.Host
	log  *slog.Logger
	kad  atomic.Pointer[kaddht.IpfsDHT]

	// mu is a leaf lock and guards the fields below.
	//
	// INVARIANT: waiting holds keys of advertised only, each once.
	mu         sync.Mutex
	advertised map[covey.ExtentID]time.Time // when last asked for
	waiting    []covey.ExtentID
}

// NewProviders returns the coarse layer over a host, which it does not own.
// Nothing is registered or started until Run.
func NewProviders(h host.Host, o ProvidersOptions) (*Providers, error) {
	if h == nil {
		return nil, fmt.Errorf("providers without a host: %w", covey.ErrInvalid)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Providers{host: h, log: o.Log, advertised: map[covey.ExtentID]time.Time{}}, nil
}

// Advertise asks for a record of each extent from now on. A [Directory] that
// has these Providers as its Advertiser calls it, for what is announced and at
// every full refresh; an extent that is not named again for 15 min is given up,
// and its records with it. It returns at once: records go out a few seconds
// later, or when a first peer is met. Beyond 262,144 extents the rest is left
// out, which costs nothing but the second way to find them.
func (p *Providers) Advertise(extents ...covey.ExtentID) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range extents {
		if _, known := p.advertised[e]; !known {
			if len(p.advertised) >= maxAdvertised {
				continue
			}
			p.waiting = append(p.waiting, e)
		}
		p.advertised[e] = now
	}
}

// Providers returns peers that advertise the extent, at most 16, this one not
// among them. It takes until enough are found, the search is over, ctx ends, or
// 5 s; what was found until then counts. No peer and no error says that the
// search went well and found nobody; ErrUnavailable that it could not be made.
func (p *Providers) Providers(ctx context.Context, e covey.ExtentID) ([]covey.PeerID, error) {
	kad := p.kad.Load()
	if kad == nil || kad.RoutingTable().Size() == 0 {
		return nil, fmt.Errorf("find providers of extent %s: no peer known: %w", e, covey.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	var found []covey.PeerID
	for info := range kad.FindProvidersAsync(ctx, e.CID(), maxProviders) {
		if info.ID != p.host.ID() {
			found = append(found, covey.PeerID(info.ID))
		}
	}
	if len(found) == 0 && ctx.Err() != nil {
		return nil, fmt.Errorf("find providers of extent %s: %w: %w", e, covey.ErrUnavailable, context.Cause(ctx))
	}
	return found, nil
}

// Run takes part in the DHT until ctx ends, and returns after everything it
// started has ended.
func (p *Providers) Run(ctx context.Context) error {
	kad, err := p.join()
	if err != nil {
		return fmt.Errorf("join the dht: %w", err)
	}
	s := &sweep{p: p, kad: kad, refreshAt: time.Now().Add(rand.N(refreshSpread))}
	defer func() {
		p.kad.Store(nil)
		p.host.RemoveStreamHandler(kadProtocol)
		s.close()
		if err := kad.Close(); err != nil {
			p.log.Warn("dht did not close cleanly", "err", err)
		}
	}()
	p.kad.Store(kad)
	tick := time.NewTicker(advertiseEvery)
	defer tick.Stop()
	for {
		if err := s.step(time.Now()); err != nil {
			return fmt.Errorf("advertise in the dht: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// join starts kad-dht.
func (p *Providers) join() (*kaddht.IpfsDHT, error) {
	kad, err := kaddht.New(p.host,
		kaddht.ProtocolPrefix(kadPrefix),
		kaddht.Mode(kaddht.ModeServer),
		kaddht.DisableValues(),
		kaddht.BootstrapPeers(),
		kaddht.DisableAutoRefresh(),
		kaddht.ProviderManagerOpts(
			records.ProvideValidity(recordLife),
			records.ProviderAddrTTL(recordLife),
			records.CleanupInterval(recordLife/5),
		),
	)
	quieten()
	return kad, err
}

// sweep is the state of Run; only its goroutine touches it.
type sweep struct {
	p         *Providers
	kad       *kaddht.IpfsDHT
	provider  *provider.SweepingProvider
	refreshAt time.Time
	givenUpAt time.Time
}

func (s *sweep) step(now time.Time) error {
	if now.After(s.refreshAt) && s.kad.RoutingTable().Size() > 0 {
		s.kad.RefreshRoutingTable()
		s.refreshAt = now.Add(refreshTable + rand.N(refreshSpread))
	}
	if s.provider == nil {
		if s.kad.RoutingTable().Size() == 0 {
			return nil
		}
		if err := s.start(); err != nil {
			return err
		}
	}
	if keys := s.p.next(); len(keys) > 0 {
		if err := s.provider.StartProviding(false, keys...); err != nil {
			return err
		}
	}
	if now.Sub(s.givenUpAt) >= refreshEvery {
		s.givenUpAt = now
		if keys := s.p.giveUp(now.Add(-holdLife)); len(keys) > 0 {
			return s.provider.StopProviding(keys...)
		}
	}
	return nil
}

// start makes the sweeping provider. It is made when the first peer is known:
// one that starts alone looks for company ever more seldom, up to a minute.
func (s *sweep) start() error {
	sp, err := provider.New(
		provider.WithHost(s.p.host),
		provider.WithRouter(s.kad),
		provider.WithMessageSender(s.kad.MessageSender()),
		provider.WithSelfAddrs(s.kad.FilteredAddrs),
		provider.WithAddLocalRecord(func(ctx context.Context, h multihash.Multihash) error {
			return s.kad.Provide(ctx, cid.NewCidV1(cid.Raw, h), false)
		}),
		provider.WithReplicationFactor(recordCopies),
		provider.WithReprovideInterval(sweepInterval),
		provider.WithMaxReprovideDelay(maxSweepDelay),
		provider.WithOfflineDelay(offlineAfter),
		provider.WithConnectivityCheckOnlineInterval(onlineCheck),
		provider.WithSendProviderRecordTimeout(sendRecordTimeout),
		provider.WithResumeCycle(false),
	)
	quieten()
	s.provider = sp
	return err
}

func (s *sweep) close() {
	if s.provider == nil {
		return
	}
	if err := s.provider.Close(); err != nil {
		s.p.log.Warn("sweep did not close cleanly", "err", err)
	}
}

// next takes the next extents to hand to the sweep.
func (p *Providers) next() []multihash.Multihash {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.waiting), advertiseAtOnce)
	keys := hashes(p.waiting[:n])
	if p.waiting = p.waiting[n:]; len(p.waiting) == 0 {
		p.waiting = nil
	}
	return keys
}

// giveUp takes out the extents that were not asked for since the given time.
func (p *Providers) giveUp(since time.Time) []multihash.Multihash {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 {
		return nil // a key must not wait to be advertised after it was given up
	}
	var old []covey.ExtentID
	for e, at := range p.advertised {
		if at.Before(since) {
			old = append(old, e)
			delete(p.advertised, e)
		}
	}
	return hashes(old)
}

func hashes(extents []covey.ExtentID) []multihash.Multihash {
	keys := make([]multihash.Multihash, len(extents))
	for i, e := range extents {
		keys[i] = e.CID().Hash()
	}
	return keys
}

// quieten turns off what kad-dht and its parts write to standard error by
// themselves: every failure that matters is returned or counted. It is called
// again after each part was made, because a logger that does not exist yet
// cannot be set.
func quieten() {
	// The expression is constant and the level exists.
	_ = logging.SetLogLevelRegex(`^(dht|providers|table)`, "dpanic")
}
