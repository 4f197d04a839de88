package mount

import (
	"context"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
)

// DescribeFunc says how many bytes of a file are cached here, and which peers hold
// any of it.
type DescribeFunc func(ctx context.Context, path string, e dataset.Entry) (cached int64, holders []string, err error)

// The extended attributes of a file. They are read-only, and only mounts that were
// told to have any: the kernel asks for attributes of other names at every turn
// (before each write for the one that holds capabilities, which costs writes a
// factor of four), and stops for good only when it hears that there are none.
const (
	xattrSource  = "user.covey.source"
	xattrVersion = "user.covey.version"
	xattrCached  = "user.covey.cached"
	xattrHolders = "user.covey.holders"
)

var xattrs = []string{xattrSource, xattrVersion, xattrCached, xattrHolders}

// GetXAttr returns one attribute.
func (t *tree) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if t.describe == nil {
		return 0, fuse.ENOSYS
	}
	n := t.nodes.get(in.NodeId)
	switch {
	case n == nil:
		return 0, fuse.Status(unix.ESTALE)
	case name == xattrSource:
		return sized(t.names.Name(), dest)
	case n.kind != dataset.File || !strings.HasPrefix(name, "user.covey."):
		return 0, fuse.ENOATTR
	case name == xattrVersion:
		return sized(n.version, dest)
	case name != xattrCached && name != xattrHolders:
		return 0, fuse.ENOATTR
	}
	ctx := t.begin(cancel, in)
	defer ctx.end()
	path := n.path()
	cached, holders, err := t.describe(ctx, path, dataset.Entry{Name: n.name, Kind: n.kind, Size: n.size, Version: n.version})
	if err != nil {
		return 0, t.failed(ctx, path, err)
	}
	if name == xattrCached {
		return sized(strconv.FormatInt(cached, 10), dest)
	}
	return sized(strings.Join(holders, ","), dest)
}

// ListXAttr returns the names, each with a NUL behind it.
func (t *tree) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if t.describe == nil {
		return 0, fuse.ENOSYS
	}
	n := t.nodes.get(in.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	names := xattrs
	if n.kind != dataset.File {
		names = xattrs[:1]
	}
	return sized(strings.Join(names, "\x00")+"\x00", dest)
}

// sized is the answer to a caller whose buffer may be too small, or nothing, to ask
// for the size alone.
func sized(value string, dest []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}
