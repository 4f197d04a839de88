package blockstore

import (
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// indexFS is the file system under the index. It does three things to the one it
// wraps: files get mode 0600; the names in the directory reach the disk in the
// order that Pebble relies on; and the first write that fails is told to the
// store, which then stops writing to the index and reopens it for reading. Pebble
// itself would end the process, or try again for ever.
type indexFS struct {
	vfs.FS
	os bool // FS is the operating system's

	once   sync.Once
	onFail func(error)
	failed atomic.Bool
}

func (f *indexFS) Unwrap() vfs.FS { return f.FS }

// note passes an error of a writing operation on, and reports the first.
func (f *indexFS) note(err error) error {
	if err != nil {
		f.once.Do(func() {
			f.failed.Store(true)
			f.onFail(err)
		})
	}
	return err
}

func (f *indexFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if f.note(err) != nil {
		return nil, err
	}
	if f.os {
		if err := os.Chmod(name, 0o600); err != nil {
			file.Close()
			return nil, f.note(err)
		}
	}
	return &indexFile{File: file, fs: f}, nil
}

// markerPrefix begins the names of the empty files by which Pebble says which
// manifest holds.
const markerPrefix = "marker."

// Create makes a file. A marker names a manifest that is as new as itself, and
// its predecessor is removed at once; Pebble syncs the directory only after both
// (cockroachdb/pebble#5825). Where a power loss may keep one new name and lose an
// older one, that leaves a marker whose manifest is missing, or no marker at all,
// and an index that cannot be opened. So the directory is synced before and after,
// some 25 times for a new store and twice for each later start.
func (f *indexFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if !strings.HasPrefix(f.PathBase(name), markerPrefix) {
		file, err := f.FS.Create(name, c)
		return f.wrap(name, file, err)
	}
	dir := f.PathDir(name)
	if err := f.note(syncDir(f.FS, dir)); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	if file, err = f.wrap(name, file, err); err != nil {
		return nil, err
	}
	if err := f.note(syncDir(f.FS, dir)); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func (f *indexFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return f.wrap(name, file, err)
}

func (f *indexFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(from, to, c)
	return f.wrap(to, file, err)
}

func (f *indexFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &indexFile{File: file, fs: f}, nil
}

func (f *indexFS) Rename(from, to string) error { return f.note(f.FS.Rename(from, to)) }

func (f *indexFS) Link(from, to string) error { return f.note(f.FS.Link(from, to)) }

func (f *indexFS) Lock(name string) (io.Closer, error) {
	lock, err := f.FS.Lock(name)
	if err == nil && f.os {
		err = os.Chmod(name, 0o600)
	}
	return lock, err
}

// indexFile is a file of the index whose failed writes are reported.
type indexFile struct {
	vfs.File
	fs *indexFS
}

func (f *indexFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.note(err)
}

func (f *indexFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	return n, f.fs.note(err)
}

func (f *indexFile) Sync() error     { return f.fs.note(f.File.Sync()) }
func (f *indexFile) SyncData() error { return f.fs.note(f.File.SyncData()) }

func (f *indexFile) SyncTo(n int64) (bool, error) {
	full, err := f.File.SyncTo(n)
	return full, f.fs.note(err)
}
