package dataset

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// The changes that a mount makes on behalf of its users. Each is done at the
// origin first; when it returns, lookups and listings of this data set show it,
// whatever their age. Other agents see it when their listings have aged.
//
// Errors are those of [origin.Editor].

// maxEdits bounds the directories of which it is remembered when something in
// them was last changed from here: while a listing of one is under way, that is.
const maxEdits = 4096

// editor returns what changes the origin.
func (d *Dataset) editor(op, path string) (origin.Editor, error) {
	switch {
	case d.src.Editor == nil:
		return nil, fmt.Errorf("%s %q in %s: its driver only reads: %w", op, path, d.src.URL, covey.ErrReadOnly)
	case d.opts.Immutable:
		return nil, fmt.Errorf("%s %q in %s: the data set is immutable: %w", op, path, d.src.URL, covey.ErrReadOnly)
	case !validPath(path) || len(d.src.Prefix)+len(path) > covey.MaxKeyLen:
		return nil, fmt.Errorf("%s %q in %s: it cannot be a key: %w", op, path, d.src.URL, covey.ErrInvalid)
	}
	return d.src.Editor, nil
}

// Writable is nil when the data set can be changed, else says why not.
func (d *Dataset) Writable() error {
	_, err := d.editor("write", "x")
	return err
}

// Upload stores the first size bytes of body as the path's file and returns its
// entry.
func (d *Dataset) Upload(ctx context.Context, path string, body io.ReaderAt, size int64, o origin.UploadOptions) (Entry, error) {
	ed, err := d.editor("upload", path)
	if err != nil {
		return Entry{}, err
	}
	info, err := ed.Upload(ctx, d.src.Prefix+path, body, size, o)
	if err != nil {
		return Entry{}, err
	}
	_, name := splitPath(path)
	e := entryOf(name, info)
	d.changed(path, e)
	return e, nil
}

// Remove deletes the path's file. One that is gone already is no error.
func (d *Dataset) Remove(ctx context.Context, path string) error {
	ed, err := d.editor("remove", path)
	if err != nil {
		return err
	}
	if err := ed.Delete(ctx, d.src.Prefix+path); err != nil {
		return err
	}
	d.changed(path, Entry{})
	// The directory may have gone with its last key.
	if dir, _ := splitPath(path); dir != "" {
		d.Invalidate(dir)
	}
	return nil
}

// Rename gives a file, which is as the entry says, another path.
func (d *Dataset) Rename(ctx context.Context, path string, e Entry, to string, noReplace bool) (Entry, error) {
	ed, err := d.editor("rename", path)
	if err == nil {
		_, err = d.editor("rename to", to)
	}
	if err != nil {
		return Entry{}, err
	}
	info, err := ed.Move(ctx, d.src.Prefix+path, e.Version, d.src.Prefix+to, noReplace)
	if info.Version != "" { // where the copy is there, though its source may be, too
		_, name := splitPath(to)
		e = entryOf(name, info)
		d.changed(to, e)
	}
	if err != nil {
		d.Invalidate(path)
		return Entry{}, err
	}
	d.changed(path, Entry{})
	return e, nil
}

// RenameDir gives a directory another path in one step, or is ErrUnsupported.
func (d *Dataset) RenameDir(ctx context.Context, path, to string) error {
	ed, err := d.editor("rename", path)
	if err == nil {
		_, err = d.editor("rename to", to)
	}
	if err != nil {
		return err
	}
	if err := ed.MoveDir(ctx, d.src.Prefix+path, d.src.Prefix+to); err != nil {
		return err
	}
	d.forgetBelow(path)
	d.forgetBelow(to)
	_, name := splitPath(to)
	d.changed(path, Entry{})
	d.changed(to, Entry{Name: name, Kind: Dir})
	return nil
}

// SetMode gives a file, which is as the entry says, other permission bits, or is
// ErrUnsupported.
func (d *Dataset) SetMode(ctx context.Context, path string, e Entry, mode fs.FileMode) error {
	ed, err := d.editor("change", path)
	if err != nil {
		return err
	}
	if err := ed.SetMode(ctx, d.src.Prefix+path, mode); err != nil {
		return err
	}
	e.Mode = mode.Perm()
	d.changed(path, e)
	return nil
}

// MakeDir makes a directory.
func (d *Dataset) MakeDir(ctx context.Context, path string) (Entry, error) {
	ed, err := d.editor("make directory", path)
	if err == nil && !dirFits(d.dirKey(path)) {
		err = fmt.Errorf("make directory %q in %s: no name would fit in it: %w", path, d.src.URL, covey.ErrInvalid)
	}
	if err != nil {
		return Entry{}, err
	}
	if err := ed.MakeDir(ctx, d.src.Prefix+path); err != nil {
		return Entry{}, err
	}
	_, name := splitPath(path)
	e := Entry{Name: name, Kind: Dir}
	d.forgetBelow(path)
	d.changed(path, e)
	return e, nil
}

// RemoveDir removes an empty directory.
func (d *Dataset) RemoveDir(ctx context.Context, path string) error {
	ed, err := d.editor("remove directory", path)
	if err != nil {
		return err
	}
	if err := ed.RemoveDir(ctx, d.src.Prefix+path); err != nil {
		return err
	}
	d.forgetBelow(path)
	d.changed(path, Entry{})
	return nil
}

// changed notes what a path is from now on. A listing under way that began
// before may or may not have seen it, so nobody joins that any more.
func (d *Dataset) changed(path string, now Entry) {
	d.mu.Lock()
	dir, _ := splitPath(path)
	seq := d.nextSeq()
	d.facts.put(path, fact{entry: now, seq: seq, at: time.Now()}, 1)
	d.edits.put(dir, seq, 1)
	var was Entry
	if l := d.complete(dir); l != nil {
		_, name := splitPath(path)
		was = l.lookup(name)
		l.dirty.Store(true)
	}
	delete(d.runs, dir)
	closed := d.closed
	if !closed && !sameObject(was, now) {
		// Aside: a watcher may ask the kernel for what it can give only once
		// the change is answered.
		d.wg.Go(func() { d.announce(path, was, now) })
	}
	d.mu.Unlock()
}

// changedSince reports whether something in the directory was changed from here
// after the given moment. mu is held.
func (d *Dataset) changedSince(dir string, seq uint64) bool {
	last, ok := d.edits.get(dir)
	return ok && last > seq
}

// forgetBelow drops all that is known below a directory.
func (d *Dataset) forgetBelow(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for path := range d.listings.items {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			d.listings.remove(path)
			delete(d.runs, path)
		}
	}
	for path := range d.facts.items {
		if strings.HasPrefix(path, dir+"/") {
			d.facts.remove(path)
		}
	}
}
