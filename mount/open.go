package mount

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// Open revalidates the object and decides who serves its reads.
func (t *tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.nodes.get(in.NodeId)
	if n == nil || n.kind != dataset.File {
		return fuse.Status(unix.ESTALE)
	}
	if t.writes != nil {
		if status, done := t.openWrites(cancel, in, out, n); done {
			return status
		}
	} else if in.Flags&unix.O_ACCMODE != unix.O_RDONLY || in.Flags&unix.O_TRUNC != 0 {
		return fuse.EROFS
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	if t.zeroOpen(ctx) {
		// The kernel opens this file and all others from now on.
		return fuse.ENOSYS
	}
	path := n.path()
	e, err := t.names.Lookup(ctx, path)
	if err != nil {
		return t.failed(ctx, path, err)
	}
	// ESTALE makes the kernel look the whole path up again, past its own
	// entries, and open what it then finds.
	if !n.is(e) {
		return fuse.Status(unix.ESTALE)
	}
	h := &handle{node: n, inode: t.nodes.inode(n), path: path, entry: e, object: t.names.Object(path, e)}
	local, err := t.admit(ctx, h)
	if err != nil {
		h.dropBlocks(true)
		return t.failed(ctx, path, err)
	}
	if h.backing == nil && h.object.Blocks() > 1 {
		h.streams = h.inode.sharedStreams()
		t.followerOf(n.parent).opened(path)
	}
	out.Fh = t.handles.add(h)
	t.ledger.open(out.Fh, h)
	if h.backing != nil {
		if local {
			t.blocks.CountLocal(h.object.Size)
		}
		t.countPassthrough()
		out.BackingID = h.backing.id
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
		return fuse.OK
	}
	t.countDaemon()
	// A node ID is one version, so its pages stay right from open to open.
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// admit counts the handle in and decides its mode, with h.backing set for
// passthrough; local says that nothing had to be fetched for it. Without an
// error the handle must be given back with [tree.release].
func (t *tree) admit(ctx context.Context, h *handle) (local bool, err error) {
	if h.object.Size == 0 || !t.passthrough.on() {
		h.inode.enter(&t.passthrough, nil, 0)
		return true, nil
	}
	b, cached := h.inode.join(&t.passthrough)
	if b != nil {
		h.backing = b
		return true, nil
	}
	var f *os.File
	local = true
	if !cached {
		f = t.openWhole(h)
		if f == nil && t.toComplete(h) {
			local = false
			if err := t.complete(ctx, h); err != nil {
				return false, err
			}
			if f = t.openWhole(h); f == nil {
				h.inode.couldNotComplete(time.Now())
			}
		}
	}
	h.backing = h.inode.enter(&t.passthrough, f, h.object.Size)
	if h.backing != nil {
		h.dropBlocks(false)
	}
	return local, nil
}

// openWhole returns the object's file if every block is cached. Any failure
// leaves the object to the daemon, whose reads will meet and report it.
func (t *tree) openWhole(h *handle) *os.File {
	f, err := t.blocks.OpenWhole(h.object)
	if err != nil {
		if !errors.Is(err, covey.ErrNotFound) {
			t.log.Debug("open cached file", "path", h.path, "error", err)
		}
		return nil
	}
	return f
}

// complete fetches every block of a small object. The blocks stay held as by
// reads: where the cache has no room for them, the reads to come find them here.
func (t *tree) complete(ctx context.Context, h *handle) error {
	if h.object.Size > t.completeAtOpen {
		return t.completeMapped(ctx, h)
	}
	e, slot, err := h.place(ctx, t.names, 0)
	if err != nil {
		return err
	}
	t.askAhead(ctx, h, e, slot)
	for i := range h.object.Blocks() {
		b, err := t.block(ctx, h, i)
		if err != nil {
			return err
		}
		h.done(b)
	}
	return nil
}

// askAhead asks for the object's further blocks in the extent, and for the files
// behind it when the directory is being opened in order.
func (t *tree) askAhead(ctx context.Context, h *handle, e *covey.Extent, slot int) {
	var own covey.Bitmap
	for i := 1; i < h.object.Blocks() && slot+i < len(e.Blocks); i++ {
		own = own.With(slot + i)
	}
	behind := t.followerOf(h.node.parent).note(e, slot)
	if slots := own | behind; slots != 0 {
		t.blocks.Prefetch(e, slots)
	}
	if behind != 0 {
		t.followOn(ctx, h, e)
	}
}

// maxFollowers bounds the directories whose open order is watched. Epochs walk a
// few directories at a time; one that is thrown out learns again in two opens.
const maxFollowers = 256

func (t *tree) followerOf(dir *node) *follower {
	t.followersMu.Lock()
	defer t.followersMu.Unlock()
	f := t.followers[dir]
	if f == nil {
		if len(t.followers) >= maxFollowers {
			clear(t.followers)
		}
		f = &follower{}
		t.followers[dir] = f
	}
	return f
}

// Release ends a handle.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if h, ok := t.handles.take(in.Fh); ok {
		t.release(h)
		t.ledger.release(in.Fh)
	}
}

func (t *tree) release(h *handle) {
	if h.draft != nil {
		t.leaveDraft(h)
		return
	}
	h.dropBlocks(true)
	if h.inode.leave(&t.passthrough, h.backing != nil) && h.streams != nil {
		t.endStreams(h)
	}
}

// failed turns the error of an object that a listing named into an errno, and
// makes the next look-up ask the origin where the object is not what it was.
func (t *tree) failed(ctx context.Context, path string, err error) fuse.Status {
	if errors.Is(err, covey.ErrStale) || errors.Is(err, covey.ErrNotFound) {
		t.names.Invalidate(path)
	}
	status := errnoOpened(ctx, err)
	t.complain(ctx, "file request failed", path, status, err)
	return status
}
