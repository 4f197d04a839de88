package mount

import (
	"context"
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// Mkdir makes a directory at the origin.
func (t *tree) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if t.readOnly() {
		return fuse.EROFS
	}
	dir, status := t.newName(in.NodeId, name)
	if dir == nil {
		return status
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	path := dir.child(name)
	switch _, err := t.names.Lookup(ctx, path); {
	case err == nil:
		return fuse.Status(unix.EEXIST)
	case !errors.Is(err, covey.ErrNotFound):
		return t.refused(ctx, "mkdir failed", path, err)
	}
	e, err := t.writes.Edits.MakeDir(ctx, path)
	if err != nil {
		return t.refused(ctx, "mkdir failed", path, err)
	}
	t.enter(dir, e, out, t.believe(dir.child(name)))
	return fuse.OK
}

// removable returns the path of an entry that is to be removed, or why it cannot be.
func (t *tree) removable(dir uint64, name string) (string, fuse.Status) {
	if t.readOnly() {
		return "", fuse.EROFS
	}
	n := t.nodes.get(dir)
	if n == nil {
		return "", fuse.Status(unix.ESTALE)
	}
	return n.child(name), fuse.OK
}

// Rmdir removes a directory that is empty at the origin and in which nothing is
// being written.
func (t *tree) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	path, status := t.removable(in.NodeId, name)
	if status != fuse.OK {
		return status
	}
	ctx := t.begin(cancel, in)
	defer ctx.end()
	if t.writes.below(path) {
		return fuse.Status(unix.ENOTEMPTY)
	}
	if err := t.writes.Edits.RemoveDir(ctx, path); err != nil {
		return t.refused(ctx, "rmdir failed", path, err)
	}
	return fuse.OK
}

// Unlink removes an object, or a draft, which then is never uploaded. Who has it
// open keeps its bytes as far as they are cached.
func (t *tree) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	path, status := t.removable(in.NodeId, name)
	if status != fuse.OK {
		return status
	}
	ctx := t.begin(cancel, in)
	defer ctx.end()
	if d := t.draftAt(path); d != nil {
		release, err := t.hold(ctx, d)
		if err != nil {
			return t.refused(ctx, "unlink failed", path, err)
		}
		defer release()
	}
	// The object first: a draft whose name could not be removed is one still.
	switch _, err := t.objects().Lookup(ctx, path); {
	case err == nil:
		if err := t.writes.Edits.Remove(ctx, path); err != nil {
			return t.refused(ctx, "unlink failed", path, err)
		}
	case !errors.Is(err, covey.ErrNotFound):
		return t.refused(ctx, "unlink failed", path, err)
	}
	t.discard(path)
	return fuse.OK
}

// objects are the names without drafts.
func (t *tree) objects() Names {
	if o, ok := t.names.(overlay); ok {
		return o.Names
	}
	return t.names
}

// hold keeps a draft from being uploaded or renamed until release is called.
func (t *tree) hold(ctx context.Context, d *draft) (release func(), err error) {
	select {
	case d.uploading <- struct{}{}:
		return func() { <-d.uploading }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for an upload: %w", ctx.Err())
	}
}

// discard takes a path's draft, if any, from its name. It ends with its last
// handle, and now if it has none.
func (t *tree) discard(path string) {
	w := t.writes
	w.mu.Lock()
	d := w.byPath[path]
	if d == nil {
		w.mu.Unlock()
		return
	}
	d.removed = true
	delete(w.byPath, path)
	idle := d.handles == 0
	if idle {
		w.forget(d)
	}
	w.mu.Unlock()
	if idle {
		t.give(d)
		return
	}
	d.staged.set(func(i *Staged) { i.Removed = true })
}
