package blockstore

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/covey-cache/covey"
)

// dataDir is where the sparse files are: one for each object, named by its ID in
// hexadecimal, in one of 256 directories named by the first two digits, so that
// 20 million objects make directories of 80,000 names.
//
// All methods may be called concurrently. A missing file is an error that wraps
// [fs.ErrNotExist].
type dataDir interface {
	// write puts p at off of the object's file, which it makes when missing.
	write(id covey.ObjectID, off int64, p []byte) error
	create(id covey.ObjectID) error
	open(id covey.ObjectID) (dataFile, error)
	// descriptor opens the file for reading by others, or says errNoDescriptor.
	descriptor(id covey.ObjectID) (*os.File, error)
	// punch makes the range read as zeros and gives its space back.
	punch(id covey.ObjectID, r covey.Range) error
	// remove unlinks the file; that there is none is no error.
	remove(id covey.ObjectID) error
	// sync makes what was written to these files, and their names, survive a
	// power loss. Files that are gone by now are passed over.
	sync(ids []covey.ObjectID) error
	// list returns the names in one of the 256 directories.
	list(shard byte) ([]string, error)
	close() error
}

type dataFile interface {
	io.ReaderAt
	io.Closer
}

var errNoDescriptor = errors.New("the file system has no descriptors")

const hexDigits = "0123456789abcdef"

func shardName(b byte) string { return string([]byte{hexDigits[b>>4], hexDigits[b&15]}) }

// fsData keeps the files on a [vfs.FS]: in memory, or with faults.
type fsData struct {
	fs  vfs.FS
	dir string

	// mu makes "open or create" one step: two writers that create the same file
	// at once would otherwise replace each other's. It also guards made.
	mu   sync.Mutex
	made [256]bool
}

func (d *fsData) shard(b byte) string { return d.fs.PathJoin(d.dir, shardName(b)) }

func (d *fsData) path(id covey.ObjectID) string { return d.fs.PathJoin(d.shard(id[0]), id.String()) }

func (d *fsData) openWrite(id covey.ObjectID) (vfs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.made[id[0]] {
		if err := d.fs.MkdirAll(d.shard(id[0]), 0o700); err != nil {
			return nil, err
		}
		if err := syncDir(d.fs, d.dir); err != nil {
			return nil, err
		}
		d.made[id[0]] = true
	}
	return d.fs.OpenReadWrite(d.path(id), vfs.WriteCategoryUnspecified)
}

func (d *fsData) write(id covey.ObjectID, off int64, p []byte) error {
	f, err := d.openWrite(id)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Close())
}

func (d *fsData) create(id covey.ObjectID) error {
	f, err := d.openWrite(id)
	if err != nil {
		return err
	}
	return f.Close()
}

func (d *fsData) open(id covey.ObjectID) (dataFile, error) { return d.fs.Open(d.path(id)) }

func (d *fsData) descriptor(covey.ObjectID) (*os.File, error) { return nil, errNoDescriptor }

func (d *fsData) punch(id covey.ObjectID, r covey.Range) error {
	info, err := d.fs.Stat(d.path(id))
	if err != nil || info.Size() <= r.Off {
		return err
	}
	return d.write(id, r.Off, make([]byte, min(r.End(), info.Size())-r.Off))
}

func (d *fsData) remove(id covey.ObjectID) error {
	if err := d.fs.Remove(d.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *fsData) sync(ids []covey.ObjectID) error {
	var shards [256]bool
	for _, id := range ids {
		f, err := d.fs.Open(d.path(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		shards[id[0]] = true
	}
	for b, touched := range shards {
		if touched {
			if err := syncDir(d.fs, d.shard(byte(b))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *fsData) list(shard byte) ([]string, error) {
	names, err := d.fs.List(d.shard(shard))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

func (d *fsData) close() error { return nil }

// syncDir makes the names in a directory survive a power loss.
func syncDir(fsys vfs.FS, dir string) error {
	f, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
