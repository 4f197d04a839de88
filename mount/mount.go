// Package mount shows a data set as a read-mostly FUSE file system on go-fuse's
// raw API. SEMANTICS.md says what each call does.
package mount

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
)

// Blocks is what a mount needs of the cache: package fetch and blockstore
// together satisfy it.
type Blocks interface {
	Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error)
	Prefetch(e *covey.Extent, slots covey.Bitmap) int
	// OpenWhole opens the object's file when every block is cached. See
	// blockstore.
	OpenWhole(o covey.Object) (*os.File, error)
	// CountLocal adds to the bytes that were served from the local cache: a
	// mount calls it once for each open that was passed through and found the
	// file whole already (reads behind it are the kernel's own).
	CountLocal(bytes int64)
}

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
	Log            *slog.Logger
	// Metrics are shared by all mounts of an agent; nil counts nowhere.
	Metrics *Metrics
}

// Metrics are the counters of all mounts of an agent.
type Metrics struct {
	opens *prometheus.CounterVec // covey_mount_opens_total{mode}
}

// NewMetrics registers the counters; it must be called once per registry.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{opens: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "covey_mount_opens_total",
		Help: "Opens of regular files, by how their reads are served.",
	}, []string{"mode"})}
	reg.MustRegister(m.opens)
	return m
}

// Status is what a mount says of itself.
type Status struct {
	Source, Dir string
	// Passthrough says whether the kernel reads whole files by itself; when
	// not, PassthroughWhy says why in one line.
	Passthrough     bool
	PassthroughWhy  string
	OpenPassthrough uint64 // opens since the mount, by mode
	OpenDaemon      uint64
}

// The functions and methods of package mount, implemented in the files beside
// this one:
//
//	func New(ds *dataset.Dataset, blocks Blocks, dir string, opts Options) (*Mount, error)
//
// mounts at once, and its errors are one line for people: dir missing, not a
// directory, not empty, already mounted, /dev/fuse or fusermount3 missing.
type mount interface {
	// Run serves until Unmount or until ctx ends, which unmounts (lazily when
	// files are open), and joins everything it started.
	Run(ctx context.Context) error
	// Ready is closed once the kernel answers from the mount.
	Ready() <-chan struct{}
	Unmount() error
	Status() Status
}

var _ = (*dataset.Dataset)(nil)
