package mount

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// Rename commits: a draft takes its new name with it and is uploaded under that;
// an object is renamed at the origin. Directories are renamed where the origin
// can do that in one step, else it is EXDEV, which makes mv copy.
func (t *tree) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if t.readOnly() {
		return fuse.EROFS
	}
	if in.Flags&^unix.RENAME_NOREPLACE != 0 {
		return fuse.EINVAL
	}
	from := t.nodes.get(in.NodeId)
	to, status := t.newName(in.Newdir, newName)
	switch {
	case from == nil:
		return fuse.Status(unix.ESTALE)
	case to == nil:
		return status
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	r := &renaming{tree: t, from: from.child(oldName), to: to.child(newName), noReplace: in.Flags&unix.RENAME_NOREPLACE != 0}
	// Before it shows: requests that name the old node are under way already.
	t.writes.depart(r.from)
	if err := r.run(ctx); err != nil {
		return t.refused(ctx, "rename failed", r.from, err)
	}
	if r.isDir {
		// Whoever has it open or works in it goes on below the new name.
		t.nodes.move(from, oldName, to, newName)
		return fuse.OK
	}
	t.renamed(to, newName)
	return fuse.OK
}

// renamed has the kernel forget what it now believes of the new name, which is
// the old one's node. It may do so only once the rename is answered.
func (t *tree) renamed(dir *node, name string) {
	if t.notify == nil {
		return
	}
	t.writes.ends.Go(func() { t.notify.EntryNotify(dir.id, name) })
}

// renaming is one rename.
type renaming struct {
	*tree
	from, to  string
	noReplace bool
	isDir     bool // set by run
}

func (r *renaming) run(ctx context.Context) error {
	if d := r.draftAt(r.from); d != nil {
		release, err := r.hold(ctx, d)
		if err != nil {
			return err
		}
		defer release()
		return r.draft(ctx, d)
	}
	e, err := r.names.Lookup(ctx, r.from)
	if err != nil {
		return err
	}
	if e.Kind == dataset.Dir {
		r.isDir = true
		return r.dir(ctx)
	}
	if r.noReplace {
		if _, err := r.names.Lookup(ctx, r.to); err == nil {
			return origin.ErrExists
		} else if !errors.Is(err, covey.ErrNotFound) {
			return err
		}
	}
	if err := r.object(ctx, e); err != nil {
		return err
	}
	r.discard(r.to)
	return nil
}

// object renames at the origin, and takes the cached bytes along.
func (r *renaming) object(ctx context.Context, e dataset.Entry) error {
	old := r.names.Object(r.from, e)
	now, err := r.writes.Edits.Rename(ctx, r.from, e, r.to, r.noReplace)
	if err != nil {
		return err
	}
	if f, err := r.blocks.OpenWhole(old); err == nil {
		r.admitDraft(ctx, r.to, now, f)
		f.Close()
	}
	return nil
}

// draft renames a draft, which the caller holds, and its object if it has been
// uploaded already. What the new name was is gone for this mount from now on.
func (r *renaming) draft(ctx context.Context, d *draft) error {
	w := r.writes
	if r.noReplace {
		if _, err := r.names.Lookup(ctx, r.to); err == nil {
			return origin.ErrExists
		} else if !errors.Is(err, covey.ErrNotFound) {
			return err
		}
	}
	w.mu.Lock()
	e := d.entry
	w.mu.Unlock()
	if e.Kind != 0 {
		if err := r.object(ctx, e); err != nil {
			return err
		}
		var err error
		if e, err = r.objects().Lookup(ctx, r.to); err != nil {
			return err
		}
	} else if err := r.removeUnder(ctx); err != nil {
		return err
	}
	r.discard(r.to)
	w.mu.Lock()
	if w.byPath[d.path] == d {
		delete(w.byPath, d.path)
	}
	// A rename replaces, whatever the file was made with.
	d.path, d.entry, d.excl = r.to, e, r.noReplace && d.excl
	if !d.ended && !d.removed {
		w.byPath[r.to] = d
	}
	w.mu.Unlock()
	excl := d.excl
	d.staged.set(func(i *Staged) { i.Path, i.Exclusive = r.to, excl })
	return nil
}

// removeUnder removes the object whose place a draft had taken, which would show
// again once the draft has left.
func (r *renaming) removeUnder(ctx context.Context) error {
	_, err := r.objects().Lookup(ctx, r.from)
	switch {
	case errors.Is(err, covey.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return r.writes.Edits.Remove(ctx, r.from)
}

func (r *renaming) dir(ctx context.Context) error {
	if strings.HasPrefix(r.to, r.from+"/") {
		return covey.ErrInvalid
	}
	if r.writes.below(r.from) {
		return errDraftsBelow
	}
	e, err := r.names.Lookup(ctx, r.to)
	switch {
	case err == nil && r.noReplace:
		return origin.ErrExists
	case err == nil && e.Kind != dataset.Dir:
		return errNotDir
	case err != nil && !errors.Is(err, covey.ErrNotFound):
		return err
	}
	return r.writes.Edits.RenameDir(ctx, r.from, r.to)
}

var errNotDir = fmt.Errorf("not a directory: %w", covey.ErrInvalid)

// move gives a directory's node another name. What is below keeps its nodes, whose
// paths follow; names looked up from then on have the st_ino of their new path.
func (t *nodes) move(from *node, oldName string, to *node, newName string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byName.find(from, inoOf(from.ino, oldName), oldName)
	if n == nil {
		return
	}
	ino := inoOf(to.ino, newName)
	if old := t.byName.find(to, ino, newName); old != nil {
		t.byName.remove(old)
	}
	t.byName.remove(n)
	n.parent, n.name, n.ino = to, newName, ino
	t.byName.add(n)
	t.ledger.move(n)
}
