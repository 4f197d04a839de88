package mount

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
)

// dirBatch is how many entries the listing hands over at a time, and dirBatches
// how many such batches it runs ahead of the reader. Together they bound an open
// directory to some 400 KiB however many entries it has.
const (
	dirBatch   = 512
	dirBatches = 6
)

// maxName is the longest name that programs can be given.
const maxName = unix.NAME_MAX

// dirHandle is one open directory. Offsets count its entries: 0 and 1 are "."
// and "..", entry i of the listing is i+2, as long as no rewind lists anew.
//
// mu serialises the requests of the handle, as the kernel does already, and is
// held while one waits for the listing.
type dirHandle struct {
	node *node

	mu    sync.Mutex
	list  *listing
	buf   []dataset.Entry
	base  uint64 // offset of buf[0]
	ended bool
	err   error // what ended the listing, nil at its proper end
}

// listing runs ahead of its reader in a goroutine of its own, so that the first
// names are delivered while later ones are still being listed.
type listing struct {
	batches chan []dataset.Entry
	err     error // valid once batches is closed
	stop    context.CancelFunc
	began   time.Time
	known   bool          // the data set knew it when it began
	age     time.Duration // for how long the kernel could believe it then
}

func (t *tree) list(path string) *listing {
	ctx, stop := context.WithCancel(t.ctx)
	l := &listing{batches: make(chan []dataset.Entry, dirBatches), stop: stop, began: time.Now()}
	if l.age = t.believeIn(path); l.age > 0 {
		l.known = true
	}
	t.listings.Add(1)
	go func() {
		defer t.listings.Done()
		defer close(l.batches)
		l.err = l.run(ctx, t.names, path)
	}()
	return l
}

func (l *listing) run(ctx context.Context, names Names, path string) error {
	batch := make([]dataset.Entry, 0, dirBatch)
	send := func() bool {
		select {
		case l.batches <- batch:
			batch = make([]dataset.Entry, 0, dirBatch)
			return true
		case <-ctx.Done():
			return false
		}
	}
	var failed error
	for e, err := range names.ReadDir(ctx, path) {
		if err != nil {
			failed = err
			break
		}
		if !validName(e.Name) {
			continue
		}
		if batch = append(batch, e); len(batch) == dirBatch && !send() {
			return ctx.Err()
		}
	}
	if len(batch) > 0 && !send() {
		return ctx.Err()
	}
	return failed
}

// validName keeps names from a directory that the kernel would refuse, with the
// whole directory, or that no program could use.
func validName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxName {
		return false
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}

// OpenDir makes a directory handle; the listing starts with the first read.
func (t *tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	out.Fh = t.dirs.add(&dirHandle{node: n})
	t.ledger.openDir(out.Fh, n.id)
	if t.names.Options().Immutable && t.writes == nil && t.names.Settled(n.path()) {
		// It will never be another, so the kernel may answer from its own copy. A
		// listing that is not complete yet must not become one.
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// ReleaseDir ends a directory handle and its listing.
func (t *tree) ReleaseDir(in *fuse.ReleaseIn) {
	if d, ok := t.dirs.take(in.Fh); ok {
		d.close()
		t.ledger.releaseDir(in.Fh)
	}
}

func (d *dirHandle) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.list != nil {
		d.list.stop()
		d.list = nil
	}
}

// ReadDir returns names and types.
func (t *tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(cancel, in, func(_ *node, e fuse.DirEntry, _ dataset.Entry) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus returns names with attributes, each of them a lookup.
func (t *tree) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	age := time.Duration(-1) // of the listing, asked for once
	return t.readDir(cancel, in, func(dir *node, e fuse.DirEntry, entry dataset.Entry) bool {
		slot := out.AddDirLookupEntry(e)
		if slot == nil {
			return false
		}
		// The kernel wants "." and ".." without a node.
		if entry.Kind != 0 {
			if age < 0 {
				age = t.believeListing(in.Fh)
			}
			t.enter(dir, entry, slot, age)
		}
		return true
	})
}

// readDir adds entries from the offset on until add finds no room. An error
// comes in a reply of its own, behind all that was listed before it: an
// incomplete directory never looks complete.
func (t *tree) readDir(cancel <-chan struct{}, in *fuse.ReadIn,
	add func(dir *node, e fuse.DirEntry, entry dataset.Entry) bool) fuse.Status {
	d, ok := t.dirs.get(in.Fh)
	if !ok {
		return fuse.EBADF
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	d.mu.Lock()
	defer d.mu.Unlock()
	off, added := in.Offset, 0
	for ; off < 2; off++ {
		name, ino := ".", d.node.ino
		if off == 1 {
			name = ".."
			if d.node.parent != nil {
				ino = d.node.parent.ino
			}
		}
		if !add(d.node, fuse.DirEntry{Name: name, Ino: ino, Mode: fuse.S_IFDIR, Off: off + 1}, dataset.Entry{}) {
			return fuse.OK
		}
		added++
	}
	d.seek(t, off, in.Offset == 0)
	for ; ; off++ {
		e, ok, err := d.at(ctx, off)
		switch {
		case err != nil && added == 0:
			status := errno(ctx, err)
			t.complain(ctx, "list directory failed", d.node.path(), status, err)
			return status
		case err != nil || !ok:
			return fuse.OK
		}
		entry := fuse.DirEntry{Name: e.Name, Ino: inoOf(d.node.ino, e.Name), Mode: typeOf(e.Kind), Off: off + 1}
		if !add(d.node, entry, e) {
			return fuse.OK
		}
		added++
	}
}

// seek makes off the start of the buffer. The kernel goes back within its last
// request whenever a program's buffer was smaller than a reply; what lies before
// that is gone, and going further back, or a rewind, lists anew.
func (d *dirHandle) seek(t *tree, off uint64, rewind bool) {
	if d.list == nil || rewind || off < d.base {
		if d.list != nil {
			d.list.stop()
		}
		d.list, d.buf, d.base = t.list(d.node.path()), nil, 2
		d.ended, d.err = false, nil
		return
	}
	if skip := off - d.base; skip <= uint64(len(d.buf)) {
		d.buf, d.base = d.buf[skip:], off
	}
}

// at returns the entry at the offset; false at the end of the listing.
func (d *dirHandle) at(ctx context.Context, off uint64) (dataset.Entry, bool, error) {
	for off-d.base >= uint64(len(d.buf)) {
		if d.ended {
			return dataset.Entry{}, false, d.err
		}
		// A seek far ahead, after a rewind, walks through what lies between.
		if skip := uint64(len(d.buf)); off-d.base >= skip+dirBatch {
			d.buf, d.base = nil, d.base+skip
		}
		select {
		case batch, ok := <-d.list.batches:
			if !ok {
				d.ended, d.err = true, d.list.err
				d.list.stop()
				continue
			}
			d.buf = append(d.buf, batch...)
		case <-ctx.Done():
			return dataset.Entry{}, false, ctx.Err()
		}
	}
	return d.buf[off-d.base], true, nil
}
