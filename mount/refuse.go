package mount

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The calls that a read-only file system refuses. The mount is read-only for the
// kernel too, which answers most of them before they come here.

// SetAttr is refused.
func (t *tree) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status {
	return fuse.EROFS
}

// Mknod is refused.
func (t *tree) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

// Mkdir is refused.
func (t *tree) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

// Unlink is refused.
func (t *tree) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EROFS }

// Rmdir is refused.
func (t *tree) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EROFS }

// Rename is refused.
func (t *tree) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return fuse.EROFS
}

// Link is refused.
func (t *tree) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

// Symlink is refused.
func (t *tree) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

// Create is refused.
func (t *tree) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EROFS
}

// Tmpfile is refused.
func (t *tree) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.EROFS
}

// Write is refused.
func (t *tree) Write(<-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, fuse.EROFS
}

// Writev is refused.
func (t *tree) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.EROFS
}

// Fallocate is refused.
func (t *tree) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return fuse.EROFS }

// CopyFileRange is refused: its target would be on this mount.
func (t *tree) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.EROFS
}

// Ioctl knows none.
func (t *tree) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

// Flush has nothing to do. Files that were opened here are closed without it; the
// kernel asks for those that it opened by itself, until it hears ENOSYS: a message
// at each close would cost profile small two thirds of its speed.
func (t *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	if t.profile.small.Load() {
		return fuse.ENOSYS
	}
	return fuse.OK
}

// The embedded default answers everything else with ENOSYS, which the kernel
// takes as "never ask again" and answers by itself from then on: access,
// fsync and fsyncdir succeed, statx falls back to getattr, SEEK_DATA and
// SEEK_HOLE see one run of data. Locks are not asked for at all; the kernel
// keeps them. Extended attributes are switched off in the mount's options.
