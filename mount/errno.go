package mount

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// errInterrupted says that the process that asked is about to die of a signal.
var errInterrupted = errors.New("interrupted by a fatal signal")

// errnoTable is the only place where an error becomes an errno. The first row
// that the error wraps wins; what is in no row is EIO, so that nothing unknown
// can look like a missing file.
var errnoTable = []struct {
	kind   error
	status fuse.Status
}{
	{errInterrupted, fuse.EINTR},
	{errStagingFull, fuse.Status(unix.ENOSPC)},
	{unix.ENOSPC, fuse.Status(unix.ENOSPC)},
	{unix.EDQUOT, fuse.Status(unix.EDQUOT)},
	{origin.ErrExists, fuse.Status(unix.EEXIST)},
	{origin.ErrNotEmpty, fuse.Status(unix.ENOTEMPTY)},
	{origin.ErrUnsupported, fuse.Status(unix.EXDEV)},
	{errDraftsBelow, fuse.EBUSY},
	{errNotDir, fuse.ENOTDIR},
	{covey.ErrStale, fuse.Status(unix.ESTALE)},
	{covey.ErrNotFound, fuse.ENOENT},
	{covey.ErrDenied, fuse.EACCES},
	{covey.ErrReadOnly, fuse.EROFS},
	{covey.ErrInvalid, fuse.EINVAL},
	{covey.ErrThrottled, fuse.EIO},
	{covey.ErrUnavailable, fuse.EIO},
	{covey.ErrCorrupt, fuse.EIO},
	{covey.ErrFull, fuse.EIO},
	{context.DeadlineExceeded, fuse.EIO},
	{context.Canceled, fuse.EIO},
}

// errno returns what the kernel hears of err, which ended a request that ran
// under ctx. An operation that the caller's death cut short is EINTR whatever
// error it came back with.
func errno(ctx context.Context, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	for _, row := range errnoTable {
		if errors.Is(err, row.kind) {
			return row.status
		}
	}
	return fuse.EIO
}

// errnoOpened is errno for an object that a listing has named: when the origin
// no longer has it, the handle or node is stale. ENOENT from a read means
// nothing to a program, and at open ESTALE makes the kernel look the name up
// anew, which then ends in the plain ENOENT.
func errnoOpened(ctx context.Context, err error) fuse.Status {
	if errors.Is(err, covey.ErrNotFound) {
		return fuse.Status(unix.ESTALE)
	}
	return errno(ctx, err)
}
