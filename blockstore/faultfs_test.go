package blockstore

import (
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// faultFS is a disk that fails while it is told to: writes, syncs or reads of what
// is below a path, with an error, some of them after a part of the bytes was
// written.
type faultFS struct {
	vfs.FS

	mu     sync.Mutex
	fault  *fault
	struck int // operations that failed
}

// fault is what fails and how.
type fault struct {
	below        string // "/data/" or "/index/"
	writes, sync bool
	reads        bool
	err          error
	short        bool // a write that fails writes a part
	odds         int  // one operation in so many fails
	rng          *rand.Rand
}

func (f *faultFS) set(ft *fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = ft
}

// strikes decides whether an operation fails, and how much of n bytes is written
// before.
func (f *faultFS) strikes(path string, does func(*fault) bool, n int) (part int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ft := f.fault
	if ft == nil || !strings.Contains(path, ft.below) || !does(ft) || ft.rng.IntN(ft.odds) != 0 {
		return n, nil
	}
	f.struck++
	if ft.short && n > 0 {
		return ft.rng.IntN(n), ft.err
	}
	return 0, ft.err
}

func (f *faultFS) Unwrap() vfs.FS { return f.FS }

func (f *faultFS) wrap(path string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, fs: f, path: path}, nil
}

func doesWrite(f *fault) bool { return f.writes }
func doesSync(f *fault) bool  { return f.sync }
func doesRead(f *fault) bool  { return f.reads }

func (f *faultFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if _, err := f.strikes(name, doesWrite, 0); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f *faultFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.Open(name, opts...)
	return f.wrap(name, file, err)
}

func (f *faultFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return f.wrap(name, file, err)
}

func (f *faultFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if _, err := f.strikes(to, doesWrite, 0); err != nil {
		return nil, err
	}
	file, err := f.FS.ReuseForWrite(from, to, c)
	return f.wrap(to, file, err)
}

type faultFile struct {
	vfs.File
	fs   *faultFS
	path string
}

func (f *faultFile) Write(p []byte) (int, error) {
	n, err := f.fs.strikes(f.path, doesWrite, len(p))
	if err == nil {
		return f.File.Write(p)
	}
	if n > 0 {
		_, _ = f.File.Write(p[:n]) // the fault is what is told
	}
	return n, err
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.fs.strikes(f.path, doesWrite, len(p))
	if err == nil {
		return f.File.WriteAt(p, off)
	}
	if n > 0 {
		_, _ = f.File.WriteAt(p[:n], off) // the fault is what is told
	}
	return n, err
}

func (f *faultFile) Sync() error {
	if _, err := f.fs.strikes(f.path, doesSync, 0); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultFile) SyncData() error {
	if _, err := f.fs.strikes(f.path, doesSync, 0); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	if _, err := f.fs.strikes(f.path, doesRead, 0); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// newFault picks one for a run of operations.
func newFault(rng *rand.Rand) *fault {
	f := &fault{
		below: []string{"/data/", "/index/"}[rng.IntN(2)], err: []error{syscall.EIO, syscall.ENOSPC}[rng.IntN(2)],
		odds: 1 + rng.IntN(4), short: rng.IntN(2) == 0, rng: rand.New(rand.NewPCG(rng.Uint64(), 2)),
	}
	switch rng.IntN(4) {
	case 0:
		f.writes = true
	case 1:
		f.sync = true
	case 2:
		f.writes, f.sync = true, true
	default:
		f.below, f.reads, f.err = "/data/", true, syscall.EIO
	}
	return f
}
