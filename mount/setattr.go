package mount

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// SetAttr changes a draft's size, times and permissions. An object can be cut to
// nothing, which stores an empty one; a change that changes nothing is no error.
func (t *tree) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if t.readOnly() {
		return fuse.EROFS
	}
	n := t.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	var status fuse.Status
	if d := t.draftOf(n, &in.SetAttrInCommon); d != nil {
		status = t.setDraft(ctx, d, in)
	} else {
		status = t.setObject(ctx, n, in)
	}
	if !status.Ok() {
		return status
	}
	status = t.GetAttr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, out)
	if size, ok := in.GetSize(); ok {
		out.Size = size
		out.SetTimeout(0)
	}
	return status
}

// draftOf returns the live draft that an attribute change is for.
func (t *tree) draftOf(n *node, in *fuse.SetAttrInCommon) *draft {
	if fh, ok := in.GetFh(); ok {
		if h, ok := t.handles.get(fh); ok && h.draft != nil {
			return h.draft
		}
	}
	t.writes.mu.Lock()
	defer t.writes.mu.Unlock()
	return t.writes.byVersion[n.version]
}

func (t *tree) setDraft(ctx context.Context, d *draft, in *fuse.SetAttrIn) fuse.Status {
	if status := t.sameOwner(in); !status.Ok() {
		return status
	}
	if size, ok := in.GetSize(); ok {
		if size > uint64(covey.MaxObjectSize) {
			return fuse.Status(unix.EFBIG)
		}
		if err := d.file.Truncate(int64(size)); err != nil {
			return t.refused(ctx, "truncate failed", d.staged.get().Path, err)
		}
	}
	if mode, ok := in.GetMode(); ok {
		t.writes.mu.Lock()
		d.mode = fs.FileMode(mode).Perm()
		t.writes.mu.Unlock()
		d.staged.set(func(i *Staged) { i.Mode = mode & 0o777 })
	}
	atime, setA := in.GetATime()
	mtime, setM := in.GetMTime()
	if setA || setM {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
		if setA {
			times[0] = timespec(atime)
		}
		if setM {
			times[1] = timespec(mtime)
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, d.file.Name(), times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fuse.ToStatus(err)
		}
	}
	return fuse.OK
}

func timespec(at time.Time) unix.Timespec { return unix.NsecToTimespec(at.UnixNano()) }

// sameOwner refuses another owner than the mount gives every file.
func (t *tree) sameOwner(in *fuse.SetAttrIn) fuse.Status {
	if uid, ok := in.GetUID(); ok && uid != t.uid {
		return fuse.EPERM
	}
	if gid, ok := in.GetGID(); ok && gid != t.gid {
		return fuse.EPERM
	}
	return fuse.OK
}

// setMode changes an object's permissions where its origin has any. Where it has
// none the change is let pass and not kept: nearly every program that copies files
// makes one, and would report a failure that loses nothing.
func (t *tree) setMode(ctx context.Context, n *node, mode uint32) fuse.Status {
	path := n.path()
	e, err := t.names.Lookup(ctx, path)
	if err == nil && !n.is(e) {
		return fuse.Status(unix.ESTALE)
	}
	if err == nil && e.Kind == dataset.File {
		err = t.writes.Edits.SetMode(ctx, path, e, fs.FileMode(mode))
	}
	if errors.Is(err, origin.ErrUnsupported) {
		return fuse.OK
	}
	if err != nil {
		return t.refused(ctx, "chmod failed", path, err)
	}
	if e.Kind == dataset.File {
		t.nodes.setMode(n, uint16(mode&0o777))
	}
	return fuse.OK
}

// setMode notes a file's permissions.
func (t *nodes) setMode(n *node, mode uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.mode = mode
}

func (t *tree) setObject(ctx context.Context, n *node, in *fuse.SetAttrIn) fuse.Status {
	if status := t.sameOwner(in); !status.Ok() {
		return status
	}
	var now fuse.Attr
	t.nodes.fill(n, &now)
	if mode, ok := in.GetMode(); ok && mode&0o7777 != now.Mode&0o7777 {
		if status := t.setMode(ctx, n, mode); !status.Ok() {
			return status
		}
	}
	if mtime, ok := in.GetMTime(); ok && in.Valid&fuse.FATTR_SIZE == 0 && mtime.UnixNano() != int64(now.Mtime)*1e9+int64(now.Mtimensec) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	size, ok := in.GetSize()
	switch {
	case !ok:
		return fuse.OK
	case n.kind != dataset.File || isDraft(n.version):
		return fuse.Status(unix.ESTALE)
	case size == now.Size:
		return fuse.OK
	case size != 0:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	path := n.path()
	opts := origin.UploadOptions{Mode: fs.FileMode(now.Mode).Perm()}
	if _, err := t.writes.Edits.Upload(ctx, path, strings.NewReader(""), 0, opts); err != nil {
		return t.refused(ctx, "truncate failed", path, err)
	}
	return fuse.OK
}
