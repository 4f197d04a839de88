// Package mount shows a data set as a read-mostly FUSE file system on go-fuse's
// raw API. SEMANTICS.md says what each call does.
//
// A file that is whole in the cache is opened by passthrough: the kernel reads
// the cached file itself, and no byte goes through the daemon. A small file is
// made whole at open. A larger one is served block by block until it is whole.
package mount

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
)

// Blocks is what a mount needs of the cache: package fetch and blockstore
// together satisfy it.
type Blocks interface {
	Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error)
	// ReadRange fills p from the block without fetching all of it, where that is
	// the better way; false says that Get is. See package fetch.
	ReadRange(ctx context.Context, e *covey.Extent, slot int, off int64, p []byte) (done bool, err error)
	Prefetch(e *covey.Extent, slots covey.Bitmap) int
	// Forgo takes back what Prefetch was asked for and has not begun, and reports
	// how many blocks that were.
	Forgo(e *covey.Extent, slots covey.Bitmap) int
	// OpenWhole opens the object's file when every block is cached. See
	// blockstore.
	OpenWhole(o covey.Object) (*os.File, error)
	// CountLocal adds to the bytes that were served from the local cache: a
	// mount calls it once for each open that was passed through and found the
	// file whole already (reads behind it are the kernel's own).
	CountLocal(bytes int64)
}

// Names is what a mount needs of the namespace; dataset.Dataset satisfies it and
// says what each method does.
type Names interface {
	Name() string
	Options() dataset.Options
	Lookup(ctx context.Context, path string) (dataset.Entry, error)
	ReadDir(ctx context.Context, path string) iter.Seq2[dataset.Entry, error]
	Settled(path string) bool
	After(path string) (next string, e dataset.Entry, ok bool)
	Object(path string, e dataset.Entry) covey.Object
	Extent(ctx context.Context, path string, e dataset.Entry, index int) (*covey.Extent, int, error)
	Invalidate(path string)
	Believed(path string) time.Duration
	BelievedIn(dir string) time.Duration
	Watch(w dataset.Watcher) (stop func())
}

var _ Names = (*dataset.Dataset)(nil)

// The defaults of Options.
const (
	// DefaultReadTimeout is longer than an origin's own retries take, and what
	// the hung-task watchdog of the kernel (120 s) does not notice.
	DefaultReadTimeout = 30 * time.Second
	// DefaultCompleteAtOpen is one block of the default size: the first read
	// would fetch as much.
	DefaultCompleteAtOpen = covey.DefaultBlockSize
)

// Options configure a mount. The zero value works.
type Options struct {
	// AllowOther lets other users read; needs user_allow_other in fuse.conf or
	// root. When root mounts, it is on, with the kernel's permission checks.
	AllowOther bool
	// UID and GID own every entry; nil means the mounting process's.
	UID, GID *uint32
	// ReadTimeout bounds one read that waits for the mesh and the origin; then
	// it is EIO. 0 means 30 s.
	ReadTimeout time.Duration
	// CompleteAtOpen is the largest file that open fetches whole, to pass it
	// through to the kernel; 0 means 4 MiB, negative none.
	CompleteAtOpen int64
	// Profile says how files are opened; the zero value decides by the listing.
	Profile Profile
	// PushBudget is how many bytes of small files may be in the kernel's page
	// cache because they were pushed there (profile small); 0 means half the
	// memory available at mount, negative none.
	PushBudget int64
	// PushRate is how many bytes a second are pushed at most; 0 means 2 GiB.
	PushRate int64
	// Umask takes permissions from what its origin has none for: of 0666 and 0777
	// where the mount may write, else of 0444 and 0555. Nil means 022.
	Umask *uint32
	// Describe gives files extended attributes; nil, none. It rules out Write.
	Describe DescribeFunc
	// Write makes the mount one that may write; nil, one that only reads.
	Write *WriteOptions
	// Keeper has a holder process keep the mount, so that the next process can
	// resume it when this one is killed; nil, or a user other than root, does
	// without. Extra is given along to whoever resumes.
	Keeper *Keeper
	Extra  json.RawMessage
	Log    *slog.Logger
	// Metrics are shared by all mounts of an agent; nil counts nowhere.
	Metrics *Metrics
}

// Metrics are the counters of all mounts of an agent.
type Metrics struct {
	opens       *prometheus.CounterVec // covey_mount_opens_total{mode}
	pushedFiles prometheus.Counter
	pushedBytes prometheus.Counter
	pushedLost  prometheus.Counter
	aheadAsked  prometheus.Counter
	aheadUnread prometheus.Counter
}

// NewMetrics registers the counters; it must be called once per registry.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		opens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_mount_opens_total",
			Help: "Opens of regular files, by how their reads are served.",
		}, []string{"mode"}),
		pushedFiles: counter("covey_mount_pushed_files_total", "Files pushed into the kernel's page cache ahead of their readers."),
		pushedBytes: counter("covey_mount_pushed_bytes_total", "Bytes of those files."),
		pushedLost:  counter("covey_mount_pushed_lost_total", "Pushed files that the kernel dropped before they were read."),
	}
	m.aheadAsked = counter("covey_mount_ahead_bytes_total", "Bytes asked for ahead of readers of large files, here already or not.")
	m.aheadUnread = counter("covey_mount_ahead_wasted_bytes_total", "Of those, what was not read before its reader left, less what could be taken back.")
	reg.MustRegister(m.opens, m.pushedFiles, m.pushedBytes, m.pushedLost, m.aheadAsked, m.aheadUnread)
	// Both are there from the start, so that a rate over them is never absent.
	m.opens.WithLabelValues("passthrough")
	m.opens.WithLabelValues("daemon")
	return m
}

// Status is what a mount says of itself.
type Status struct {
	Source, Dir string
	// Profile is Auto as long as it is not decided.
	Profile Profile
	Pushed  Pushed
	// Writable says that programs may write.
	Writable bool
	// Passthrough says whether the kernel reads whole files by itself; when
	// not, PassthroughWhy says why in one line.
	Passthrough     bool
	PassthroughWhy  string
	OpenPassthrough uint64 // opens since the mount, by mode
	OpenDaemon      uint64
	// Reads are the read requests that came to the daemon.
	Reads uint64
}

// Mount is one mounted data set. All methods may be called concurrently.
type Mount struct {
	dir    string
	names  Names
	log    *slog.Logger
	tree   *tree
	server *fuse.Server
	keeper *Keeper // nil: no holder has it
	number uint32  // minor device number, which names the FUSE connection
	cancel context.CancelFunc

	ready     chan struct{}
	started   atomic.Bool
	serveOnce sync.Once
	served    chan struct{} // closed when no request is running or will
}

// New mounts the data set on the directory, at once; requests wait for Run. Its
// errors are one line for people: dir missing, not a directory, not empty,
// already mounted, /dev/fuse or fusermount3 missing. A dead mount of ours on the
// directory is taken away first.
//
// Who calls New must call Run or Unmount.
func New(names Names, blocks Blocks, dir string, opts Options) (*Mount, error) {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("mount %s on %s: %w", names.Name(), dir, err)
	}
	abs = resolve(abs)
	if err := checkProfile(opts.Profile, names.Options()); err != nil {
		return nil, fmt.Errorf("mount %s on %s: %w", names.Name(), dir, err)
	}
	if err := prepare(abs, opts, log); err != nil {
		return nil, fmt.Errorf("mount %s on %s: %w", names.Name(), dir, err)
	}
	if opts.Write != nil && opts.Describe != nil {
		return nil, fmt.Errorf("mount %s on %s: extended attributes would slow every write: %w", names.Name(), dir, covey.ErrInvalid)
	}
	if opts.Write != nil {
		if err := opts.Write.Edits.Writable(); err != nil {
			return nil, fmt.Errorf("mount %s on %s to write: %w", names.Name(), dir, err)
		}
	}
	t, cancel := newTree(names, blocks, opts, log)
	t.mountedAt = abs
	if opts.Keeper != nil && os.Geteuid() == 0 {
		// Before the kernel hears of anything.
		if err := t.remember(); err != nil {
			log.Warn("the mount will end with this process", "dir", abs, "error", err)
			opts.Keeper = nil
		}
	}
	server, device, err := attach(t, abs, opts, log)
	if err != nil {
		cancel()
		t.ledger.close()
		return nil, fmt.Errorf("mount %s on %s: %w", names.Name(), dir, err)
	}
	m := newMount(abs, names, log, t, server, cancel)
	if device != nil {
		if err := m.keep(device, opts); err != nil {
			log.Warn("the mount will end with this process", "dir", abs, "error", err)
		}
		device.Close()
	}
	return m, nil
}

func newMount(dir string, names Names, log *slog.Logger, t *tree, server *fuse.Server, cancel context.CancelFunc) *Mount {
	m := &Mount{
		dir: dir, names: names, log: log, tree: t, server: server, cancel: cancel,
		ready: make(chan struct{}), served: make(chan struct{}),
	}
	if info, ok := mountOn(dir); ok {
		m.number = info.minor
	}
	return m
}

func newTree(names Names, blocks Blocks, opts Options, log *slog.Logger) (*tree, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	t := &tree{
		RawFileSystem:  fuse.NewDefaultRawFileSystem(),
		ctx:            ctx,
		names:          names,
		blocks:         blocks,
		log:            log,
		metrics:        opts.Metrics,
		uid:            uint32(os.Geteuid()),
		gid:            uint32(os.Getegid()),
		readTimeout:    opts.ReadTimeout,
		completeAtOpen: opts.CompleteAtOpen,
		nodes:          newNodes(time.Now()),
		followers:      map[*node]*follower{},
		passthrough:    registrar{limit: idleLimit()},
	}
	t.configurePush(opts)
	t.changes.notes = make(chan string, maxChanges)
	if opts.Profile != Auto {
		t.beSmall(opts.Profile == Small)
	}
	if opts.UID != nil {
		t.uid = *opts.UID
	}
	if opts.GID != nil {
		t.gid = *opts.GID
	}
	if t.readTimeout <= 0 {
		t.readTimeout = DefaultReadTimeout
	}
	if t.completeAtOpen == 0 {
		t.completeAtOpen = DefaultCompleteAtOpen
	}
	t.describe = opts.Describe
	t.entryAge, t.absentAge = ages(names.Options())
	t.nodes.setModes(opts.Umask, opts.Write != nil)
	if t.writes = newWrites(opts.Write, names.Name()); t.writes != nil {
		t.names = overlay{names, t}
	}
	return t, cancel
}

// Ready is closed once the kernel answers from the mount.
func (m *Mount) Ready() <-chan struct{} { return m.ready }

// Status says what the mount is and how its files were opened so far.
func (m *Mount) Status() Status {
	why := m.tree.passthrough.reason()
	return Status{
		Source:          m.names.Name(),
		Dir:             m.dir,
		Profile:         m.tree.profile.now(),
		Pushed:          m.tree.pusher.status(),
		Writable:        !m.tree.readOnly(),
		Passthrough:     why == "",
		PassthroughWhy:  why,
		OpenPassthrough: m.tree.openPassthrough.Load(),
		OpenDaemon:      m.tree.openDaemon.Load(),
		Reads:           m.tree.reads.Load(),
	}
}
