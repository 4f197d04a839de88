package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// pinnedAge is how long the kernel believes names of an immutable data set. They
// never change, but the kernel should get to ask now and then, so that what it
// does not use falls out of its tables and ours.
const pinnedAge = time.Hour

// tree is the file system as go-fuse calls it. Every method may run in many
// goroutines at once. It holds no lock while it waits for names or blocks, but
// for the one of a directory handle whose listing it waits for.
type tree struct {
	fuse.RawFileSystem

	ctx            context.Context // ends when the mount is taken down
	names          Names
	blocks         Blocks
	log            *slog.Logger
	complaints     complaints
	metrics        *Metrics
	uid, gid       uint32
	readTimeout    time.Duration
	completeAtOpen int64
	entryAge       time.Duration
	absentAge      time.Duration

	describe  DescribeFunc // nil: no extended attributes
	writes    *writes      // nil: the mount only reads
	mountedAt string       // the resolved directory
	notify    notifier     // the kernel's door for what it must forget

	ledger *ledger // nil without a holder

	nodes       *nodes
	profile     profile
	passthrough registrar
	unopened    unopened
	pusher      pusher
	changes     changes
	handles     shards[*handle]
	dirs        shards[*dirHandle]
	listings    sync.WaitGroup // goroutines of open directories

	followersMu sync.Mutex // leaf; guards followers
	followers   map[*node]*follower

	openPassthrough, openDaemon, reads atomic.Uint64
}

// Init learns what the kernel can do, before the first request.
func (t *tree) Init(s *fuse.Server) {
	t.passthrough.open = func(fd int32) (int32, unix.Errno) {
		return s.RegisterBackingFd(&fuse.BackingMap{Fd: fd})
	}
	t.passthrough.close = s.UnregisterBackingFd
	t.changes.tell = s.EntryNotify
	t.pusher.store, t.pusher.drop = s.InodeNotifyStoreCache, s.InodeNotify
	t.notify = s
	if s.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		t.passthrough.disable("the kernel does not know passthrough (Linux 6.9 or later does)")
	}
}

// Lookup finds a name in a directory.
func (t *tree) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := t.nodes.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if len(name) > maxName {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	ctx := t.begin(cancel, in)
	defer ctx.end()
	path := dir.child(name)
	// From before the look-up, so that what is learnt meanwhile does not make an
	// older answer young.
	age := t.believe(path)
	e, err := t.names.Lookup(ctx, path)
	if errors.Is(err, covey.ErrNotFound) {
		// No node: the kernel may remember that the name does not exist.
		out.SetEntryTimeout(t.absentAge)
		if t.absentAge > 0 {
			return fuse.OK
		}
		return fuse.ENOENT
	}
	if err != nil {
		status := errno(ctx, err)
		t.complain(ctx, "look-up failed", path, status, err)
		return status
	}
	e.Name = name
	if age == 0 {
		age = t.believe(path)
	}
	t.enter(dir, e, out, age)
	return fuse.OK
}

// enter fills a reply that gives the kernel a reference to a node, which it
// believes for that long.
func (t *tree) enter(dir *node, e dataset.Entry, out *fuse.EntryOut, age time.Duration) {
	n := t.nodes.enter(dir, e, &out.Attr)
	out.NodeId = n.id
	out.Uid, out.Gid = t.uid, t.gid
	out.SetEntryTimeout(age)
	out.SetAttrTimeout(age)
	if t.writes != nil && t.writes.dress(n, &out.Attr) {
		t.writes.entered(n)
		out.SetEntryTimeout(0)
		out.SetAttrTimeout(0)
	}
}

// Forget gives references back.
func (t *tree) Forget(id, lookups uint64) {
	n := t.nodes.forget(id, lookups)
	if n == nil {
		return
	}
	if n.open != nil {
		n.open.forget(&t.passthrough)
	}
	if t.profile.small.Load() {
		t.unopened.drop(n)
		t.pusher.forget(n)
	}
}

// GetAttr answers from the node: a file's attributes belong to its version, and
// a path is revalidated by the look-up of its name.
func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := t.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	t.nodes.fill(n, &out.Attr)
	out.Uid, out.Gid = t.uid, t.gid
	out.SetTimeout(t.entryAge)
	if t.writes != nil && t.writes.dress(n, &out.Attr) {
		out.SetTimeout(0)
	}
	return fuse.OK
}

// Readlink returns a symlink's target as the origin has it.
func (t *tree) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := t.nodes.get(in.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	if n.kind != dataset.Symlink {
		return nil, fuse.EINVAL
	}
	return []byte(n.version), fuse.OK
}

// StatFs reports a size no data set reaches, all of it free: an origin does not
// tell, and monitoring alarms at full or empty file systems.
func (t *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const blockSize, blocks, files = 4096, 1 << 38, 1 << 32 // 1 PiB
	*out = fuse.StatfsOut{
		Bsize: blockSize, Frsize: blockSize, NameLen: maxName,
		Blocks: blocks, Bfree: blocks, Bavail: blocks, Files: files, Ffree: files,
	}
	return fuse.OK
}

// String names the file system in go-fuse's messages.
func (t *tree) String() string { return fsName }

func (t *tree) countPassthrough() {
	t.openPassthrough.Add(1)
	if t.metrics != nil {
		t.metrics.opens.WithLabelValues("passthrough").Inc()
	}
}

func (t *tree) countDaemon() {
	t.openDaemon.Add(1)
	if t.metrics != nil {
		t.metrics.opens.WithLabelValues("daemon").Inc()
	}
}

// shut gives back what the kernel did not: after an unmount under open files no
// release comes. No request may be running.
func (t *tree) shut() {
	for _, d := range t.dirs.drain() {
		d.close()
	}
	t.listings.Wait()
	for _, h := range t.handles.drain() {
		t.release(h)
	}
	t.unopened.drain()
	if t.writes != nil {
		t.writes.ends.Wait()
	}
	for _, e := range t.passthrough.parked() {
		e.in.evict(&t.passthrough, e.b)
	}
	t.ledger.close()
}

// ages returns how long the kernel may believe that a name exists, and that one
// does not.
func ages(o dataset.Options) (entry, absent time.Duration) {
	switch {
	case o.Immutable:
		return pinnedAge, pinnedAge
	case o.MaxAge < 0:
		return 0, 0
	default:
		return o.MaxAge, 0
	}
}

// panicked is what a request gets that ran into a bug of ours: the mount goes on.
func panicked(log *slog.Logger) func(any) fuse.Status {
	return func(p any) fuse.Status {
		log.Error("mount request panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		return fuse.EIO
	}
}
