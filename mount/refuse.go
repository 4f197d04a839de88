package mount

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The calls that no mount answers with a yes. One that only reads is read-only
// for the kernel too, which answers most of them before they come here; one that
// may write says what link(2) and mknod(2) say of a file system without such
// files.

func (t *tree) refusal(writable fuse.Status) fuse.Status {
	if t.readOnly() {
		return fuse.EROFS
	}
	return writable
}

// Mknod is refused: an origin has no devices, sockets or pipes.
func (t *tree) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return t.refusal(fuse.EPERM)
}

// Link is refused: an object has one key.
func (t *tree) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return t.refusal(fuse.EPERM)
}

// Symlink is refused.
func (t *tree) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return t.refusal(fuse.EPERM)
}

// Tmpfile is refused, so that programs make a file with a name and remove it.
func (t *tree) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return t.refusal(fuse.Status(unix.EOPNOTSUPP))
}

// CopyFileRange is left to the kernel, which copies by reads and writes.
func (t *tree) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, t.refusal(fuse.ENOSYS)
}

// Ioctl knows none.
func (t *tree) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

// The embedded default answers everything else with ENOSYS, which the kernel
// takes as "never ask again" and answers by itself from then on: access and
// fsyncdir succeed (fsync, too, on a mount that only reads), statx falls back to
// getattr, SEEK_DATA and SEEK_HOLE see one run of data. Locks are not asked for at
// all; the kernel keeps them. Extended attributes are switched off in the mount's
// options, unless it has them.
