package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// draftPrefix begins the version of a draft's node. No origin's version has a
// NUL byte.
const draftPrefix = "\x00draft/"

func isDraft(version string) bool { return strings.HasPrefix(version, draftPrefix) }

// draft is a file that is being written: a staged file under a path of the data
// set, which shows it to this mount's users only. When its last writer closes it
// is uploaded, and then the path is an object like any other, on a node of its
// own; whoever has the draft still open keeps the draft.
//
// uploading holds a value while the draft is uploaded or renamed; it is taken
// before writes.mu.
type draft struct {
	version   string
	staged    *stagedFile
	file      *os.File // the staged file, for reading and writing
	backing   *backing // nil: the daemon serves it
	uploading chan struct{}

	// Guarded by writes.mu.
	path    string
	mode    fs.FileMode
	excl    bool
	handles int
	writers int // handles for writing that were not closed by their opener yet
	nodes   []uint64
	began   time.Time
	opened  bool          // some handle was
	removed bool          // unlinked, or replaced by a rename: never uploaded again
	ended   bool          // given back
	entry   dataset.Entry // of the last upload; Kind 0 before
	sent    fileState     // of the staged file when it was uploaded last
	err     error         // of the last upload
}

// fileState tells whether a file was written to.
type fileState struct {
	size         int64
	mtime, ctime unix.Timespec
}

func stateOf(f *os.File) (fileState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileState{}, fmt.Errorf("stat a staged file: %w", err)
	}
	return fileState{size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// writes is what a mount that may write has beside one that only reads.
type writes struct {
	WriteOptions
	source string
	age    time.Duration // until a draft that was never opened is given up

	ends sync.WaitGroup // uploads and removals that no request waits for

	// mu is a leaf lock over the maps and the drafts' fields.
	//
	// INVARIANT: a draft is in byVersion until it has ended, and in byPath until
	// it has ended or is removed.
	mu        sync.Mutex
	byPath    map[string]*draft
	byVersion map[string]*draft
	departed  map[string]time.Time // when files were renamed away from paths
}

// draftAge is how long a draft may be without a handle that was begun for an
// open with O_TRUNC, between the two requests that such an open takes.
const draftAge = 2 * time.Second

func newWrites(o *WriteOptions, source string) *writes {
	if o == nil {
		return nil
	}
	return &writes{
		WriteOptions: *o, source: source, age: draftAge,
		byPath: map[string]*draft{}, byVersion: map[string]*draft{}, departed: map[string]time.Time{},
	}
}

// beginDraft makes a draft of the path, or returns the one that is there.
func (t *tree) beginDraft(path string, mode fs.FileMode, excl bool) (*draft, error) {
	w := t.writes
	sf, err := w.Staging.create(Staged{Source: w.source, Path: path, Mode: uint32(mode.Perm()), Exclusive: excl})
	if err != nil {
		return nil, fmt.Errorf("stage %s: %w", path, err)
	}
	d := &draft{
		version: draftPrefix + sf.info.ID, staged: sf, file: sf.file, uploading: make(chan struct{}, 1),
		path: path, mode: mode.Perm(), excl: excl, began: time.Now(),
	}
	if t.passthrough.on() {
		// A file of its own: the registration owns it.
		if f, err := os.OpenFile(sf.file.Name(), os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil {
			d.backing = t.passthrough.register(f, 0)
		}
	}
	w.mu.Lock()
	old := w.byPath[path]
	if old == nil {
		w.byPath[path], w.byVersion[d.version] = d, d
	}
	w.mu.Unlock()
	if old != nil {
		t.give(d)
		return old, nil
	}
	return d, nil
}

// close gives back what a draft has, but for its place in staging.
func (d *draft) close(r *registrar) {
	if d.backing != nil {
		r.drop(d.backing)
	}
	d.file.Close()
}

// give ends a draft whose bytes nobody wants any more.
func (t *tree) give(d *draft) {
	d.close(&t.passthrough)
	d.staged.remove()
}

// draftAt returns the draft that a path shows, nil for none. One that was begun and
// never opened, because its process died in between, is given up here.
func (t *tree) draftAt(path string) *draft {
	w := t.writes
	w.mu.Lock()
	d := w.byPath[path]
	if d == nil || d.opened || time.Since(d.began) < w.age {
		w.mu.Unlock()
		return d
	}
	w.forget(d)
	w.mu.Unlock()
	t.give(d)
	return nil
}

// forget takes an ended draft out of the maps. mu is held.
func (w *writes) forget(d *draft) {
	d.ended = true
	delete(w.byVersion, d.version)
	if w.byPath[d.path] == d {
		delete(w.byPath, d.path)
	}
}

// shown is what the overlay shows of a draft. Its size is in the staged file.
func (d *draft) shown(name string) dataset.Entry {
	return dataset.Entry{Name: name, Kind: dataset.File, Version: d.version, Mode: d.mode}
}

// dress fills in the attributes of a draft, which change as it is written.
func (w *writes) dress(n *node, a *fuse.Attr) (live bool) {
	if !isDraft(n.version) {
		return false
	}
	w.mu.Lock()
	d := w.byVersion[n.version]
	var mode fs.FileMode
	if d != nil {
		mode = d.mode
	}
	w.mu.Unlock()
	if d == nil {
		return true
	}
	// Not by its descriptor, which the last close may take away meanwhile.
	info, err := d.file.Stat()
	if err != nil {
		return true
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	a.Size, a.Blocks = uint64(st.Size), uint64(st.Blocks)
	a.Mtime, a.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	a.Ctime, a.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
	a.Atime, a.Atimensec = a.Mtime, a.Mtimensec
	a.Mode = fuse.S_IFREG | uint32(mode)
	return true
}

// entered notes that the kernel has a node of a draft.
func (w *writes) entered(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.byVersion[n.version]; d != nil && !slices.Contains(d.nodes, n.id) {
		d.nodes = append(d.nodes, n.id)
	}
}

// acquire counts a handle of a live draft.
func (w *writes) acquire(version string, write bool) *draft {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.byVersion[version]
	if d == nil {
		return nil
	}
	d.handles++
	d.opened = true
	if write {
		d.writers++
	}
	return d
}

// settle uploads what was written since the last upload, if anything was, and
// admits it to the cache. Two of one draft take turns.
func (t *tree) settle(ctx context.Context, d *draft) error {
	if ctx.Err() != nil {
		return fmt.Errorf("upload a draft: %w", ctx.Err())
	}
	select {
	case d.uploading <- struct{}{}:
		defer func() { <-d.uploading }()
	case <-ctx.Done():
		return fmt.Errorf("upload a draft: %w", ctx.Err())
	}
	w := t.writes
	now, err := stateOf(d.file)
	if err != nil {
		return err
	}
	w.mu.Lock()
	path, mode, first := d.path, d.mode, d.entry.Kind == 0
	excl := d.excl && first
	idle := d.removed || !first && d.sent == now && d.err == nil
	w.mu.Unlock()
	if idle {
		return nil
	}
	d.staged.set(func(i *Staged) { i.State, i.Error, i.Path = StagedClosing, "", path })
	e, err := w.Edits.Upload(ctx, path, d.file, now.size, origin.UploadOptions{IfAbsent: excl, Mode: mode})
	w.mu.Lock()
	if err == nil {
		d.entry, d.sent = e, now
	}
	d.err = err
	w.mu.Unlock()
	if err != nil {
		// When it is the mount that ends, the next agent goes on.
		if t.ctx.Err() == nil {
			d.staged.set(func(i *Staged) { i.State, i.Error = StagedFailed, err.Error() })
		}
		return fmt.Errorf("upload %s: %w", path, err)
	}
	d.staged.set(func(i *Staged) { i.State, i.Uploaded = StagedWriting, true })
	t.admitDraft(ctx, path, e, d.file)
	return nil
}

// admitDraft gives an uploaded file to the cache, so that reading it back asks
// nobody. A cache without room for it costs nothing but that.
func (t *tree) admitDraft(ctx context.Context, path string, e dataset.Entry, f *os.File) {
	if t.writes.Admit == nil {
		return
	}
	if err := t.writes.Admit(ctx, path, e, f); err != nil {
		t.log.Debug("an uploaded file was not admitted to the cache", "path", path, "error", err)
	}
}

// dirty reports whether the draft has bytes that were never uploaded.
func (d *draft) dirty() bool {
	now, err := stateOf(d.file)
	return err != nil || d.entry.Kind == 0 || d.sent != now
}

// leaveDraft counts a handle off. What its writers left unsaid, because the last one
// closed a descriptor that it had inherited, is uploaded now; the last handle
// ends the draft. It runs where no request waits.
func (t *tree) leaveDraft(h *handle) {
	d, w := h.draft, t.writes
	w.mu.Lock()
	if h.unclosed {
		h.unclosed = false
		d.writers--
	}
	unsaid := t.ctx.Err() == nil && d.writers == 0 && !d.removed && d.err == nil && d.dirty()
	w.mu.Unlock()
	if unsaid {
		if err := t.settle(t.ctx, d); err != nil {
			t.log.Error("a file could not be uploaded after its last close; its bytes stay in staging, see covey status",
				"path", d.path, "error", err)
		}
	}
	w.mu.Lock()
	d.handles--
	last := d.handles == 0 && !d.ended
	if last {
		w.forget(d)
	}
	nodes := d.nodes
	done := d.removed || d.entry.Kind != 0 && d.err == nil && !d.dirty()
	w.mu.Unlock()
	if !last {
		return
	}
	if now, err := stateOf(d.file); err == nil {
		t.nodes.settle(nodes, now.size, now.mtime.Nano())
	}
	d.close(&t.passthrough)
	if done {
		d.staged.remove()
	} else {
		d.staged.abandon()
	}
}

// abandon leaves the file in staging for a person, or the next agent.
func (f *stagedFile) abandon() {
	f.s.mu.Lock()
	f.file = nil
	f.s.mu.Unlock()
}

// settle gives the nodes of an ended draft the attributes that they have from now
// on.
func (t *nodes) settle(ids []uint64, size, mtime int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		if n := t.byID.get(id); n != nil {
			n.size, n.mtime = size, mtime
			t.ledger.size(id, size, mtime)
		}
	}
}

// read answers a read of a draft from its file.
func (d *draft) read(p []byte, off int64) (fuse.ReadResult, fuse.Status) {
	n, err := d.file.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(p[:n]), fuse.OK
}

// notifier tells the kernel what to forget; a fuse.Server is one.
type notifier interface {
	EntryNotify(parent uint64, name string) fuse.Status
}

// setModes sets the permissions of what its origin has none for.
func (t *nodes) setModes(umask *uint32, writes bool) {
	mask := uint16(0o022)
	if umask != nil {
		mask = uint16(*umask & 0o777)
	}
	t.modes = modes{file: readModes.file &^ mask, dir: readModes.dir &^ mask}
	if writes {
		t.modes = modes{file: 0o666 &^ mask, dir: 0o777 &^ mask}
		t.root.mode = t.modes.dir
	}
}

// resumeDraft gives a handle its draft again, which the first of its handles makes.
func (t *tree) resumeDraft(h *handle, o imageOpen) error {
	w := t.writes
	if w == nil {
		return errStagedGone
	}
	w.mu.Lock()
	d := w.byVersion[h.node.version]
	w.mu.Unlock()
	if d == nil {
		sf, err := w.Staging.reclaim(strings.TrimPrefix(h.node.version, draftPrefix))
		if err != nil {
			return err
		}
		i := sf.get()
		d = &draft{
			version: h.node.version, staged: sf, file: sf.file, uploading: make(chan struct{}, 1),
			path: i.Path, mode: fs.FileMode(i.Mode), excl: i.Exclusive && !i.Uploaded, began: time.Now(), removed: i.Removed,
		}
		if o.passed {
			d.backing = &backing{id: o.backing}
		}
		w.mu.Lock()
		w.byVersion[d.version] = d
		if w.byPath[d.path] == nil && !d.removed {
			w.byPath[d.path] = d
		}
		w.mu.Unlock()
	}
	w.entered(h.node)
	w.acquire(d.version, h.writes)
	h.draft, h.backing = d, d.backing
	return nil
}
