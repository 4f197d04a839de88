package blockstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// osData keeps the files on the operating system's file system.
//
// Every name is looked up one step at a time from a descriptor that is held, and
// no step follows a symbolic link: a link planted in the cache directory leads
// nowhere. It holds one descriptor for each of the 256 directories that is in
// use.
type osData struct {
	path string
	top  int // the data directory
	// whole is a descriptor for syncfs alone: the kernel reports a failed
	// write-back of any file once to each descriptor opened before it.
	whole int

	mu     sync.Mutex
	shards [256]int // descriptor+1, 0 while not opened
}

// closeFD closes a descriptor that was only read from, or whose failure is being
// reported already.
func closeFD(fd int) { _ = unix.Close(fd) }

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

func openOSData(path string) (*osData, error) {
	if err := unix.Mkdir(path, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	top, err := unix.Open(path, dirFlags, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	whole, err := unix.Open(path, dirFlags, 0)
	if err != nil {
		closeFD(top)
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &osData{path: path, top: top, whole: whole}, nil
}

func (d *osData) fail(op string, id covey.ObjectID, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(d.path, shardName(id[0]), id.String()), Err: err}
}

// shard returns the descriptor of one of the 256 directories, made when missing.
func (d *osData) shard(b byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fd := d.shards[b]; fd != 0 {
		return fd - 1, nil
	}
	fd, err := unix.Openat(d.top, shardName(b), dirFlags, 0)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkdirat(d.top, shardName(b), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return 0, err
		}
		// Once per directory and cache: the name must be there after a crash
		// for the files in it to be.
		if err := unix.Fsync(d.top); err != nil {
			return 0, err
		}
		fd, err = unix.Openat(d.top, shardName(b), dirFlags, 0)
	}
	if err != nil {
		return 0, err
	}
	d.shards[b] = fd + 1
	return fd, nil
}

func (d *osData) openat(id covey.ObjectID, flags int) (int, error) {
	shard, err := d.shard(id[0])
	if err != nil {
		return 0, d.fail("open", id, err)
	}
	for {
		fd, err := unix.Openat(shard, id.String(), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return 0, d.fail("open", id, err)
		}
	}
}

func (d *osData) write(id covey.ObjectID, off int64, p []byte) error {
	fd, err := d.openat(id, unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err != nil && !errors.Is(err, unix.EINTR) {
			closeFD(fd)
			return d.fail("write", id, err)
		}
		p, off = p[max(n, 0):], off+int64(max(n, 0))
	}
	if err := unix.Close(fd); err != nil {
		return d.fail("close", id, err)
	}
	return nil
}

func (d *osData) create(id covey.ObjectID) error {
	fd, err := d.openat(id, unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (d *osData) open(id covey.ObjectID) (dataFile, error) { return d.descriptor(id) }

func (d *osData) descriptor(id covey.ObjectID) (*os.File, error) {
	fd, err := d.openat(id, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), id.String()), nil
}

func (d *osData) punch(id covey.ObjectID, r covey.Range) error {
	fd, err := d.openat(id, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(fd, mode, r.Off, r.Len); err != nil {
		return d.fail("punch", id, err)
	}
	return nil
}

func (d *osData) remove(id covey.ObjectID) error {
	shard, err := d.shard(id[0])
	if err != nil {
		return d.fail("remove", id, err)
	}
	if err := unix.Unlinkat(shard, id.String(), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return d.fail("remove", id, err)
	}
	return nil
}

// fewFiles is how many files are synced one by one. Each costs a journal commit
// of its own; beyond a handful, one syncfs for all is cheaper, even though it
// also waits for what others wrote to the same file system.
const fewFiles = 8

func (d *osData) sync(ids []covey.ObjectID) error {
	if len(ids) > fewFiles {
		if err := unix.Syncfs(d.whole); err != nil {
			return &fs.PathError{Op: "syncfs", Path: d.path, Err: err}
		}
		return nil
	}
	for _, id := range ids {
		if err := d.syncFile(id); err != nil {
			return err
		}
	}
	return nil
}

func (d *osData) syncFile(id covey.ObjectID) error {
	fd, err := d.openat(id, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = unix.Fdatasync(fd)
	closeFD(fd)
	if err != nil {
		return d.fail("fdatasync", id, err)
	}
	shard, err := d.shard(id[0])
	if err == nil {
		err = unix.Fsync(shard)
	}
	if err != nil {
		return d.fail("fsync the directory of", id, err)
	}
	return nil
}

func (d *osData) list(shard byte) ([]string, error) {
	fd, err := unix.Openat(d.top, shardName(shard), dirFlags, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(d.path, shardName(shard)), Err: err}
	}
	f := os.NewFile(uintptr(fd), shardName(shard))
	defer f.Close()
	return f.Readdirnames(-1)
}

func (d *osData) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b, fd := range d.shards {
		if fd != 0 {
			closeFD(fd - 1)
			d.shards[b] = 0
		}
	}
	return errors.Join(unix.Close(d.whole), unix.Close(d.top))
}
