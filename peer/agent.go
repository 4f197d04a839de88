package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/fetch/ahead"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/origin"
)

const (
	// firstJoinTimeout bounds the first attempt to join, after which the agent is
	// ready alone and keeps trying. Loopback and rack joins take milliseconds;
	// 5 s covers a peer that is starting at the same moment.
	firstJoinTimeout = 5 * time.Second
	// mountRetry is the pause between attempts to mount while the origin cannot
	// be reached.
	mountRetry = 2 * time.Second
	// unmountTimeout is the share of the 5 s that an agent has for leaving that
	// its mounts may use.
	unmountTimeout = 3 * time.Second
)

// CacheDir is a tier: a directory and its budget in bytes. Size 0 means a tenth
// of what is free there.
type CacheDir struct {
	Dir  string
	Size int64
}

// KeepSpec says how a data set, or what is at and below a path of it, is kept.
type KeepSpec struct {
	Source, Path string
	Policy       string // "epoch", "lru", "lfu" or "ttl"
	TTL          time.Duration
}

// MountSpec is a source to mount and where.
type MountSpec struct {
	Source, Dir string
	Options     gateway.MountOptions
}

// AgentOptions configure an agent. Cache is required; the zero value of the
// rest makes a standalone agent on a free loopback port without HTTP.
type AgentOptions struct {
	StateDir string
	Cache    []CacheDir // the fastest first
	// CachePolicy says what gives way when the cache is full: "epoch" (or ""), "lru"
	// or "lfu". A data set that was not used for IdleAfter gives way to others; 0
	// means 24 h, less than 0 means never.
	CachePolicy string
	IdleAfter   time.Duration
	Keep        []KeepSpec
	// Compress says how blocks are compressed in the cache.
	Compress blockstore.Compression
	// CacheKeys, if set, encrypt blocks in the cache.
	CacheKeys *blockstore.Keys
	// ScrubRate is how many bytes a second of each tier are checked again while
	// the host is idle; 0 means [blockstore.DefaultScrubRate], less means none.
	ScrubRate  int64
	Listen     string
	Join       []string
	ClusterKey *ClusterKey
	// MemberRecord is the agent's membership, in place of the cluster key.
	MemberRecord *MemberRecord
	// Revoked is a file of expelled peers; see [NetworkOptions].
	Revoked string
	// VerifyManifest is a file that a prefetch wrote; what it does not list, or lists
	// otherwise, is not read.
	VerifyManifest string
	// AuditEvery is one in how many blocks from neighbours is compared with the
	// origin's; 0 means none.
	AuditEvery int
	Zone, Rack string
	HostName   string
	// DataPlane is "tls", the same as "", or "plain": blocks travel over bare TCP
	// between agents that both have it, for a fabric that is trusted with them.
	DataPlane string
	// DataListen is HOST:PORT of the plain data plane. "" is the host of Listen and
	// the second port after its own, so that 7171 has 7173; a free port if that is
	// 0.
	DataListen string
	Mounts     []MountSpec
	// Staging is how many bytes mounts that may write stage at once, beside the
	// cache; 0 means a quarter of its budget.
	Staging int64
	HTTP    string // HOST:PORT of the read-only HTTP door; "" for none
	API     string // path of the control socket; "" for none
	Version string
	// OriginStrict refuses reads of the origin that no home has granted: a read
	// that the mesh cannot answer until its deadline fails instead.
	OriginStrict bool
	// Holder keeps the mounts for the next agent, should this one be killed.
	Holder HolderOptions
	// Dataset is the policy of every data set.
	Dataset dataset.Options
	// Mount is how every mount behaves.
	Mount mount.Options
	Log   *slog.Logger

	// The seams for simulation; nil means the real thing.
	Sockets    Sockets
	StoreFS    blockstore.FS
	OriginHTTP *http.Client
}

// Validate reports every fault of the options at once, as one error that wraps
// covey.ErrInvalid.
func (o *AgentOptions) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf(format+": %w", append(args, covey.ErrInvalid)...))
	}
	if len(o.Cache) == 0 {
		fault("no cache directory given")
	}
	for _, c := range o.Cache {
		if c.Dir == "" || c.Size < 0 {
			fault("cache directory %q with %d bytes", c.Dir, c.Size)
		}
	}
	switch o.DataPlane {
	case "", "tls":
		if o.DataListen != "" {
			fault("an address for the plain data plane, %q, and the data plane is tls", o.DataListen)
		}
	case "plain":
	default:
		fault("data plane %q; there are tls and plain", o.DataPlane)
	}
	if len(o.Join) > 0 && o.Standalone() {
		fault("joining needs the cluster key of the mesh, or a member record")
	}
	seen := map[string]bool{}
	for _, m := range o.Mounts {
		if m.Source == "" || m.Dir == "" {
			fault("mount of %q on %q", m.Source, m.Dir)
		}
		if seen[m.Dir] {
			fault("two mounts on %s", m.Dir)
		}
		seen[m.Dir] = true
	}
	return errors.Join(faults...)
}

// Standalone agents are alone: they have neither cluster key nor member record.
func (o *AgentOptions) Standalone() bool { return o.ClusterKey == nil && o.MemberRecord == nil }

// plainAddress is where the plain data plane listens, "" when there is none.
func (o *AgentOptions) plainAddress() string {
	if o.DataPlane != "plain" {
		return ""
	}
	if o.DataListen != "" {
		return o.DataListen
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return o.Listen // NewNetwork says what is wrong with it
	}
	if n, err := strconv.Atoi(port); err == nil && n != 0 {
		port = strconv.Itoa(n + 2)
	}
	return net.JoinHostPort(host, port)
}

// Agent is one running node: store, mesh, origins, mounts and doors wired
// together. It implements gateway.Agent. All methods may be called
// concurrently.
type Agent struct {
	opts     AgentOptions
	log      *slog.Logger
	registry *prometheus.Registry
	started  time.Time

	store     *blockstore.Store
	network   *Network
	directory *dht.Directory
	providers *dht.Providers
	fetcher   *fetch.Fetcher
	datasets  *dataset.Table
	ahead     *ahead.Reader
	blocks    *agentBlocks

	originMetrics *origin.Metrics
	mountMetrics  *mount.Metrics
	corrupt       *corruptCounter

	mender *mender
	mounts *mountTable
	keeper *mount.Keeper // nil: mounts end with the agent
	// resuming says that sources are to be opened without asking them.
	resuming atomic.Bool
	written  *regrouper
	staging  *mount.Staging // nil: nothing can be mounted to write
	jobs     *jobTable
	plans    *planTable
	// changing has a value while somebody pins, unpins or evicts by path.
	changing chan struct{}

	// notReady holds why the agent is not ready yet (a string), "" once it is.
	notReady atomic.Value
	// doors are the listeners of the API and HTTP, opened in NewAgent so that a
	// port in use is told before anything else happens.
	doors []door
	// http is the address of the HTTP door, "" without one.
	http string
	// closeOnce guards what NewAgent opened.
	closeOnce sync.Once
}

// NewAgent opens the cache directory and listens on the mesh address, the
// control socket and the HTTP address; it joins and mounts nothing yet. Errors
// are one line for people. When it fails, nothing stays open.
func NewAgent(opts AgentOptions) (*Agent, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Listen == "" {
		opts.Listen = "127.0.0.1:0"
	}
	a := &Agent{
		opts: opts, log: opts.Log, started: time.Now(),
		registry: prometheus.NewRegistry(),
	}
	a.notReady.Store("starting")
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.originMetrics = origin.NewMetrics(a.registry)
	a.mountMetrics = mount.NewMetrics(a.registry)
	a.corrupt = newCorruptCounter(a.registry)
	a.mounts, a.written = newMountTable(), newRegrouper()
	a.mender = newMender()
	a.jobs, a.changing = newJobTable(), make(chan struct{}, 1)
	a.plans = newPlanTable(opts.StateDir)
	if err := a.open(); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// open builds the parts from the disk upwards.
func (a *Agent) open() (err error) {
	if err := a.openStore(); err != nil {
		return err
	}
	a.openStaging()
	a.network, err = NewNetwork(NetworkOptions{
		StateDir: a.opts.StateDir, Listen: a.opts.Listen, Join: a.opts.Join, Key: a.opts.ClusterKey,
		Record: a.opts.MemberRecord, Revoked: a.opts.Revoked,
		Zone: a.opts.Zone, Rack: a.opts.Rack, Host: a.opts.HostName, NICBits: nicBits(a.opts.Listen), Capacity: a.store.Usage().Budget,
		Plain:   a.opts.plainAddress(),
		Sockets: a.opts.Sockets, Log: a.log, Registry: a.registry,
	})
	if err != nil {
		return err
	}
	a.providers, err = dht.NewProviders(a.network.Host(), dht.ProvidersOptions{Log: a.log})
	if err != nil {
		return err
	}
	a.directory = dht.NewDirectory(dht.DirectoryOptions{
		Members: a.network, Caller: a.network, Providers: a.providers, Advertiser: a.providers,
		Source: a.held, Own: a.heldOf, Log: a.log, Registry: a.registry,
	})
	policy := a.opts.Dataset
	policy.Log, policy.Metrics = a.log, dataset.NewMetrics(a.registry)
	a.datasets = dataset.NewTable(a.openSource, policy)
	manifest, err := a.manifest()
	if err != nil {
		return err
	}
	a.fetcher = fetch.New(fetch.Options{
		Manifest: manifest, AuditEvery: a.opts.AuditEvery,
		Self: a.network.Self(), Store: a.store, Exchange: a.network, Topology: a.network, Origins: a.datasets, Directory: a.directory,
		OnCorrupt: func(source string, _ covey.Locator, _ covey.PeerID) { a.corrupt.add(source) },
		Strict:    a.opts.OriginStrict,
		Crowded:   a.crowded,
		Log:       a.log, Registry: a.registry,
	})
	a.ahead = ahead.New(ahead.Options{
		Self: a.network.Self(), Fetch: a.fetcher, Room: a.planRoom, Log: a.log, Registry: a.registry,
	})
	a.fetcher.Advise(a.ahead)
	a.blocks = &agentBlocks{Fetcher: a.fetcher, store: a.store, ahead: a.ahead, manifest: manifest != nil}
	a.network.SetServer(agentServer{a})
	return a.openDoors()
}

// close gives back what NewAgent opened, in the reverse order. Run does the
// same at its end.
func (a *Agent) close() {
	a.closeOnce.Do(func() {
		for _, d := range a.doors {
			_ = d.listener.Close()
		}
		a.plans.cancelAll()
		if a.datasets != nil {
			a.datasets.Close()
		}
		if a.network != nil {
			_ = a.network.Close()
		}
		if a.store != nil {
			if err := a.store.Close(); err != nil {
				a.log.Error("closing the cache failed; what was not synced will be fetched again", "error", err)
			}
		}
	})
}

// Run joins the mesh, mounts what was configured and serves until ctx ends; then
// it unmounts, says goodbye to the mesh and closes the cache. It joins every
// goroutine it started. A configured mount that can never work (a source that
// does not exist, a directory that is not empty) ends it with an error.
func (a *Agent) Run(ctx context.Context) error {
	defer a.close()
	// The services outlive ctx: mounts that are being unmounted still read.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	services, serving := errgroup.WithContext(serving)
	for name, run := range map[string]func(context.Context) error{
		"network": a.network.Run, "directory": a.directory.Run, "providers": a.providers.Run,
		"fetch": a.fetcher.Run, "ahead": a.ahead.Run, "plans": a.tellPlans, "doors": a.serveDoors,
		"mend": a.mend, "scrub": a.scrub,
	} {
		services.Go(func() error {
			if err := run(serving); err != nil && serving.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	running, stopRunning := context.WithCancel(ctx)
	defer stopRunning()
	// A service that fails takes the agent down in the same orderly way.
	services.Go(func() error {
		<-serving.Done()
		stopRunning()
		return nil
	})

	// First of all: readers of the agent before are waiting.
	a.openHolder(running)
	services.Go(func() error {
		a.resumeStaged(running)
		return nil
	})
	services.Go(func() error {
		a.regroup(running)
		return nil
	})
	err := a.start(running)
	if err == nil {
		<-running.Done()
	}
	a.notReady.Store("leaving")
	a.log.Info("leaving")
	a.jobs.cancelAll()
	a.plans.cancelAll()
	a.unmountAll()
	stopServing()
	if a.keeper != nil {
		defer a.keeper.Close()
	}
	return errors.Join(err, services.Wait())
}

// start joins and mounts. It returns nil when ctx ended meanwhile.
func (a *Agent) start(ctx context.Context) error {
	a.join(ctx)
	if err := a.mountConfigured(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		a.notReady.Store("")
		a.log.Info("ready", "peer", peerName(a.network.Self()), "listen", a.network.ListenAddrs(), "mounts", len(a.opts.Mounts))
	}
	return nil
}

func (a *Agent) join(ctx context.Context) {
	if len(a.opts.Join) == 0 {
		return
	}
	a.notReady.Store("joining the mesh")
	ctx, cancel := context.WithTimeout(ctx, firstJoinTimeout)
	defer cancel()
	// The network logs why, and goes on trying.
	if err := a.network.Joined(ctx); err != nil {
		a.log.Info("going on alone for now")
	}
}

// mountConfigured mounts every --mount. What cannot work is an error at once;
// an origin that cannot be reached is tried again until it can.
func (a *Agent) mountConfigured(ctx context.Context) error {
	for _, m := range a.opts.Mounts {
		if a.mounted(ctx, m) {
			continue
		}
		a.notReady.Store("mounting " + m.Source)
		for {
			_, err := a.Mount(ctx, gateway.MountRequest{Source: m.Source, Dir: m.Dir, Options: m.Options})
			if err == nil || ctx.Err() != nil {
				break
			}
			if !errors.Is(err, covey.ErrUnavailable) && !errors.Is(err, covey.ErrThrottled) {
				return err
			}
			a.notReady.Store(err.Error())
			a.log.Warn("mount failed; trying again", "source", m.Source, "dir", m.Dir, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(mountRetry):
			}
		}
	}
	return nil
}

// Ready is nil once the mesh listens and every configured mount is mounted.
func (a *Agent) Ready() error {
	if why := a.notReady.Load().(string); why != "" {
		return fmt.Errorf("%s: %w", why, covey.ErrUnavailable)
	}
	return nil
}

// Fetcher is the agent's way to blocks, for readers in the same process.
func (a *Agent) Fetcher() *fetch.Fetcher { return a.fetcher }

// OpenDataset returns the data set of a source URL, shared with mounts of the
// same source, and a function that gives it back.
func (a *Agent) OpenDataset(ctx context.Context, source string) (*dataset.Dataset, func(), error) {
	ds, err := a.datasets.Add(ctx, source)
	if err != nil {
		return nil, nil, err
	}
	return ds, sync.OnceFunc(func() { a.datasets.Release(ds) }), nil
}

func (a *Agent) openSource(ctx context.Context, url string) (*origin.Source, error) {
	src, err := origin.Open(ctx, url, origin.Options{
		HTTP: a.opts.OriginHTTP, Log: a.log, Metrics: a.originMetrics, SkipCheck: a.resuming.Load(),
		Retry: origin.Retry{Throttled: func(name string) { a.fetcher.Throttled(name) }},
	})
	if err == nil {
		a.knowSource(src)
	}
	return src, err
}
