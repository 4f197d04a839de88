package mount

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// Edits is what a mount that may write needs of the namespace; dataset.Dataset
// satisfies it and says what each method does.
type Edits interface {
	Writable() error
	Upload(ctx context.Context, path string, body io.ReaderAt, size int64, o origin.UploadOptions) (dataset.Entry, error)
	Remove(ctx context.Context, path string) error
	Rename(ctx context.Context, path string, e dataset.Entry, to string, noReplace bool) (dataset.Entry, error)
	SetMode(ctx context.Context, path string, e dataset.Entry, mode fs.FileMode) error
	RenameDir(ctx context.Context, path, to string) error
	MakeDir(ctx context.Context, path string) (dataset.Entry, error)
	RemoveDir(ctx context.Context, path string) error
}

var _ Edits = (*dataset.Dataset)(nil)

// WriteOptions make a mount one that may write. Edits and Staging are required.
type WriteOptions struct {
	Edits   Edits
	Staging *Staging
	// Admit gives the cache a file that was just uploaded as the entry says, so
	// that it can be read back without the origin. Nil admits nothing.
	Admit func(ctx context.Context, path string, e dataset.Entry, f *os.File) error
}

// readOnly says whether the mount cannot be written to.
func (t *tree) readOnly() bool { return t.writes == nil }

// Create makes a draft. The kernel believes that the name is absent; when it is
// not, a look-up gets it right.
func (t *tree) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if t.readOnly() {
		return fuse.EROFS
	}
	dir, status := t.newName(in.NodeId, name)
	if dir == nil {
		return status
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	path, excl := dir.child(name), in.Flags&unix.O_EXCL != 0
	if excl {
		t.names.Invalidate(path) // who asks for exclusion gets the origin's word
	}
	mode := fs.FileMode(in.Mode).Perm()
	switch e, err := t.names.Lookup(ctx, path); {
	case err == nil && excl:
		return fuse.Status(unix.EEXIST)
	case err == nil && in.Flags&unix.O_TRUNC != 0 && e.Kind == dataset.File:
		// An open of what is there would be told to look up again, too, and the
		// kernel does that once: so its draft begins here.
		mode = fs.FileMode(t.nodes.permissions(e))
	case err == nil:
		return fuse.Status(unix.ESTALE)
	case !errors.Is(err, covey.ErrNotFound):
		return t.refused(ctx, "create failed", path, err)
	}
	d, err := t.beginDraft(path, mode, excl)
	if err != nil {
		return t.refused(ctx, "create failed", path, err)
	}
	t.enter(dir, d.shown(name), &out.EntryOut, 0)
	return t.openDraft(d.version, t.nodes.get(out.NodeId), in.Flags, in.Pid, &out.OpenOut)
}

// newName returns the directory in which a name is to be made, or why it cannot.
func (t *tree) newName(id uint64, name string) (*node, fuse.Status) {
	dir := t.nodes.get(id)
	switch {
	case dir == nil:
		return nil, fuse.Status(unix.ESTALE)
	case len(name) > maxName || len(dir.child(name)) > covey.MaxKeyLen:
		return nil, fuse.Status(unix.ENAMETOOLONG)
	case !validName(name):
		return nil, fuse.EINVAL
	}
	return dir, fuse.OK
}

// refused logs a change that failed and returns its errno.
func (t *tree) refused(ctx context.Context, message, path string, err error) fuse.Status {
	status := errno(ctx, err)
	t.complain(ctx, message, path, status, err)
	return status
}

// openWrites answers an open that concerns a draft or wants to write; done is
// false for any other.
func (t *tree) openWrites(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut, n *node) (status fuse.Status, done bool) {
	writes := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	switch {
	case isDraft(n.version):
		status = t.openDraft(n.version, n, in.Flags, in.Pid, out)
		if status != fuse.Status(unix.ESTALE) || !writes || in.Flags&unix.O_TRUNC == 0 {
			return status, true
		}
		// It has become an object, and the kernel has not heard of that yet.
	case !writes && in.Flags&unix.O_TRUNC == 0:
		return fuse.OK, false
	case in.Flags&unix.O_TRUNC == 0:
		return fuse.Status(unix.EOPNOTSUPP), true
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	return t.overwrite(ctx, n), true
}

// overwrite begins a draft in the place of an object, and has the kernel open
// that instead: ESTALE makes it look the name up again. The object's own node
// keeps its bytes for those who have it open.
//
// The kernel looks up once more only: so the draft begins also where the node is
// not the object's any more, or a second ESTALE would reach the program. A node from
// before a rename is left alone: its path may be another file's by now.
func (t *tree) overwrite(ctx context.Context, n *node) fuse.Status {
	path := n.path()
	e, err := t.names.Lookup(ctx, path)
	if err != nil {
		return t.failed(ctx, path, err)
	}
	if n.is(e) || e.Kind == dataset.File && !t.writes.hasDeparted(path) {
		if _, err := t.beginDraft(path, fs.FileMode(t.nodes.permissions(e)), false); err != nil {
			return t.refused(ctx, "open for writing failed", path, err)
		}
	}
	return fuse.Status(unix.ESTALE)
}

// openDraft makes a handle of a draft: through to the staged file where that
// works, else past the page cache to the daemon.
func (t *tree) openDraft(version string, n *node, flags, tid uint32, out *fuse.OpenOut) fuse.Status {
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY
	d, w := t.writes.acquire(version, writes), t.writes
	if d == nil || n == nil {
		return fuse.Status(unix.ESTALE)
	}
	h := &handle{node: n, inode: t.nodes.inode(n), path: n.path(), draft: d, writes: writes, unclosed: writes, backing: d.backing}
	if writes {
		h.opener = processOf(tid)
	}
	w.mu.Lock()
	// What was closed by its last writer is an object in a moment.
	late := writes && flags&unix.O_TRUNC == 0 && d.writers == 1 && d.entry.Kind != 0
	w.mu.Unlock()
	if late {
		t.leaveDraft(h)
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if writes && flags&unix.O_TRUNC != 0 {
		if err := d.file.Truncate(0); err != nil {
			t.leaveDraft(h)
			return fuse.ToStatus(err)
		}
	}
	out.Fh = t.handles.add(h)
	t.ledger.open(out.Fh, h)
	if d.backing != nil {
		t.countPassthrough()
		out.BackingID = d.backing.id
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH
		return fuse.OK
	}
	t.countDaemon()
	// Not through the page cache: after a rename two nodes have one draft, and what
	// is written by the one would not be in the pages of the other.
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

// Write writes to a draft that is not passed through.
func (t *tree) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, ok := t.handles.get(in.Fh)
	switch {
	case !ok || h.draft == nil:
		return 0, fuse.EBADF
	case in.Offset > uint64(covey.MaxObjectSize):
		return 0, fuse.Status(unix.EFBIG)
	}
	if err := t.writes.Staging.room(int64(len(data))); err != nil {
		return 0, errno(t.ctx, err)
	}
	n, err := h.draft.file.WriteAt(data, int64(in.Offset))
	if n > 0 {
		return uint32(n), fuse.OK
	}
	return 0, fuse.ToStatus(err)
}

// Writev is Write for several buffers.
func (t *tree) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	var all []byte
	for _, p := range data {
		all = append(all, p...)
	}
	return t.Write(cancel, in, all)
}

// Flush is a close of one descriptor. That of the last one that its opener has of
// a draft uploads it, and is answered when that is done.
//
// It has no deadline but the origin's own: an upload takes as long as it takes,
// and one that stands still is given up by its driver. When the closing process
// is killed meanwhile, the upload goes on.
//
// What only reads is closed without it. The kernel asks for files that it opened
// by itself, until it hears ENOSYS: a message at each close would cost profile
// small two thirds of its speed.
func (t *tree) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if t.profile.small.Load() {
		return fuse.ENOSYS
	}
	h, ok := t.handles.get(in.Fh)
	if !ok || h.draft == nil || !h.writes {
		return fuse.OK
	}
	if !h.lastClose(t.mountedAt, in.Pid) {
		return fuse.OK
	}
	d, w := h.draft, t.writes
	err := t.settle(t.ctx, d)
	if err != nil {
		return t.refused(t.ctx, "upload failed; the bytes stay in staging, see covey status", h.path, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.unclosed {
		h.unclosed = false
		d.writers--
	}
	return fuse.OK
}

// Fsync makes a draft's bytes durable in staging. They are visible to others, and
// at the origin, from close on.
func (t *tree) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if t.readOnly() {
		return fuse.ENOSYS
	}
	h, ok := t.handles.get(in.Fh)
	if !ok || h.draft == nil {
		return fuse.OK
	}
	d := h.draft
	err := d.file.Sync()
	if err == nil {
		err = d.staged.save(true)
	}
	if err != nil {
		return t.refused(t.ctx, "fsync failed", h.path, err)
	}
	t.writes.mu.Lock()
	err = d.err
	t.writes.mu.Unlock()
	if err != nil { // of a close that nobody may have looked at
		return errno(t.ctx, err)
	}
	return fuse.OK
}

// FsyncDir has nothing to do: names are the origin's.
func (t *tree) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.ENOSYS }

// Fallocate reserves or punches in a draft.
func (t *tree) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if t.readOnly() {
		return fuse.EROFS
	}
	h, ok := t.handles.get(in.Fh)
	if !ok || h.draft == nil {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if err := t.writes.Staging.room(int64(in.Length)); err != nil {
		return errno(t.ctx, err)
	}
	return fuse.ToStatus(unix.Fallocate(int(h.draft.file.Fd()), in.Mode, int64(in.Offset), int64(in.Length)))
}
