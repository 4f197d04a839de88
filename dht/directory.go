package dht

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// defaultLeaseTTL is the longest lease without renewal: four times the slowest
// first byte that is still an origin's and not a fault.
const defaultLeaseTTL = 15 * time.Second

// ProviderFinder finds peers that hold something of an extent without the help
// of its homes. [Providers] is one.
type ProviderFinder interface {
	Providers(ctx context.Context, e covey.ExtentID) ([]covey.PeerID, error)
}

// Advertiser takes the extents that this peer holds, so that they are found
// without the help of homes. [Providers] is one.
type Advertiser interface {
	// Advertise must not wait for the network. It is called for everything
	// announced, and for everything held every 5 min.
	Advertise(extents ...covey.ExtentID)
}

// DirectoryOptions configure a directory. Members and Caller are needed; the
// zero value of every other field works.
type DirectoryOptions struct {
	Members Members
	// Caller must return soon after its context ends.
	Caller Caller
	// Providers, if set, is asked when no home answers.
	Providers ProviderFinder
	// Advertiser, if set, is told of every extent that this peer holds.
	Advertiser Advertiser
	// Source yields everything this peer holds, one Have for each extent (the
	// store's All). It is read every 5 min, and when the member table changed
	// or a home restarted. Without it nothing is refreshed, and homes forget
	// what this peer announced after 15 min.
	Source func() iter.Seq[Have]
	// Own, if set, says what this peer holds of one extent (the store's
	// Extent). It is asked once for an extent that this peer becomes home of,
	// and when a fellow home asks.
	Own func(covey.ExtentID) (Have, bool)
	// MaxEntries bounds the extents this peer keeps as a home; 0 means 524,288,
	// at most 1.2 GiB.
	MaxEntries int
	// LeaseTTL is the longest that a lease lasts without being renewed, however
	// slow the asker's origin is; 0 means 15 s.
	LeaseTTL time.Duration
	// Log receives what happens here; nil discards it.
	Log *slog.Logger
	// Registry takes the metrics; nil means nobody does.
	Registry prometheus.Registerer
}

// Directory is the one-hop layer: this peer's part as a home of extents, and
// its way to ask the homes of others.
//
// As a home it keeps, for each extent it was told of, the holders, one pinned
// digest for each block (the first that was reported) and the reads from the
// origin under way. A peer is believed only about itself; what a home asks of
// its fellow homes is believed about others too.
//
// All methods may be called concurrently. They work without Run, but then
// nothing is announced.
//
// Locks: ringMu, then a table shard's, then the leaf locks of peerTable, pacer,
// health, queue and looks. None is held across a call to Members, Caller, Source or Providers
// but ringMu, which is held across Members.Live.
type Directory struct {
	self        covey.PeerID
	members     Members
	caller      Caller
	providers   ProviderFinder
	advertiser  Advertiser
	source      func() iter.Seq[Have]
	own         func(covey.ExtentID) (Have, bool)
	log         *slog.Logger
	m           *metrics
	table       *table
	queue       queue
	incarnation uint64

	// health is who did not answer a call: it is asked last, and nobody hands a
	// question to it. lagging is who was overtaken by another home: it is only
	// asked last, because what it grants still counts.
	health, lagging health

	ringMu sync.Mutex // serialises the making of rings
	ring   atomic.Pointer[ring]

	// haveSeq numbers the HAVE that this peer sends.
	haveSeq atomic.Uint64

	calls calls
	holds holds
	looks looks
}

// NewDirectory returns a directory that knows nothing yet. It neither calls
// anybody nor starts anything.
func NewDirectory(o DirectoryOptions) *Directory {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = defaultMaxEntries
	}
	if o.LeaseTTL <= 0 {
		o.LeaseTTL = defaultLeaseTTL
	}
	d := &Directory{
		self:        o.Members.Self(),
		members:     o.Members,
		caller:      o.Caller,
		providers:   o.Providers,
		advertiser:  o.Advertiser,
		source:      o.Source,
		own:         o.Own,
		log:         o.Log,
		m:           newMetrics(o.Registry),
		incarnation: rand.Uint64() | 1,
	}
	d.table = newTable(o.MaxEntries, o.LeaseTTL, d.m, d.conflict)
	return d
}

// Homes returns the extent's homes, best first: three, or all members where
// there are fewer. This peer may be among them.
func (d *Directory) Homes(e covey.ExtentID) []covey.PeerID { return d.view().homes(e) }

// view returns the ring of the present member table.
func (d *Directory) view() *ring {
	if r := d.ring.Load(); r != nil {
		if _, epoch := d.members.Live(); epoch == r.epoch {
			return r
		}
	}
	d.ringMu.Lock()
	defer d.ringMu.Unlock()
	r := d.ring.Load()
	ids, epoch := d.members.Live()
	if r == nil || epoch > r.epoch {
		r = newRing(r, d.self, ids, epoch, time.Now())
		d.ring.Store(r)
	}
	return r
}

// conflict counts and logs a report that contradicts a pinned digest.
func (d *Directory) conflict(from covey.PeerID, e covey.ExtentID, slot int) {
	d.m.conflicts.Inc()
	d.log.Warn("digest differs from the pinned one", "extent", e, "slot", slot, "peer", printable(from))
}

// printable renders a peer ID, which is raw bytes, for logs and errors.
func printable(id covey.PeerID) string { return fmt.Sprintf("%x", string(id)) }

func unavailable(op string, e covey.ExtentID, cause error) error {
	if cause == nil {
		return fmt.Errorf("%s extent %s: no home answered: %w", op, e, covey.ErrUnavailable)
	}
	return fmt.Errorf("%s extent %s: %w: %w", op, e, covey.ErrUnavailable, cause)
}

// String returns the state as metrics label it.
func (s State) String() string {
	switch s {
	case Held:
		return "held"
	case Fetching:
		return "fetching"
	case Granted:
		return "granted"
	case Wait:
		return "wait"
	case Throttled:
		return "throttled"
	case Redirect:
		return "redirect"
	}
	return "unknown"
}

// calls counts the questions under way, so that Run can wait for those that
// outlive the Resolve that sent them.
//
// mu guards ended and orders every start before the wait.
type calls struct {
	mu    sync.Mutex
	ended bool
	wg    sync.WaitGroup
}

// start runs f in a goroutine of its own, unless the directory has ended.
func (c *calls) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.wg.Go(f)
	return true
}

// end refuses new calls and waits for those under way.
func (c *calls) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.wg.Wait()
}
