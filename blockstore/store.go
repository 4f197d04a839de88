// Package blockstore keeps verified blocks on local disk.
//
// All cached blocks of one object live in one sparse file at their true offsets,
// so that a whole object can be handed to the kernel as it is; which ranges are
// present, their digests and where they are advertised live in a Pebble index.
// Data is written before the index names it, so a crash loses recent blocks and
// never serves a wrong one.
package blockstore

import (
	"io"
	"iter"
	"log/slog"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// Options configure a store. The zero value of every field but Dir works.
type Options struct {
	// Dir is the cache directory. It is made when missing, with mode 0700, and
	// owned by one process at a time (a lock file).
	Dir string
	// Budget is the most bytes of block data the store may hold, counted as
	// disk blocks used; 0 means a tenth of what is free on Dir's file system
	// when the store opens.
	Budget int64
	// FS is the file system under data and index; nil means the operating
	// system's. It is the seam for simulation and fault injection.
	FS vfs.FS
	// SyncEvery is how long an admitted block may stay unsynced; 0 means 1 s.
	SyncEvery time.Duration
	// OnCorrupt, if set, is called for every block whose bytes on disk turned
	// out wrong. It must not block.
	OnCorrupt func(covey.Locator)
	Log       *slog.Logger
	Registry  prometheus.Registerer
}

// Handle is a hold on one cached block (or on a part of memory that stands for
// one). The bytes stay readable until Release, whatever is evicted. Release
// exactly once.
type Handle interface {
	io.ReaderAt
	// Len is the block's length in bytes.
	Len() int
	// Digest is what the bytes were verified against when they were admitted.
	Digest() covey.Digest
	Release()
}

// Held is the part of an extent that the store has, as the directory wants to
// hear it.
type Held struct {
	Extent covey.ExtentID
	Have   covey.Bitmap
	// Digests has one entry for each bit of Have, lowest slot first.
	Digests []covey.Digest
}

// Usage is what a tier holds.
type Usage struct {
	Dir            string
	Budget, Used   int64 // bytes
	Objects, Whole int   // objects with any block, and with every block
	Blocks         int
	ReadOnly       bool // a disk fault stopped admission
}

// The methods of Store, implemented in the files beside this one. All may be
// called concurrently.
type store interface {
	// Get holds a cached block; ErrNotFound when it is not here. A block whose
	// checksum no longer holds is dropped, counted, and ErrNotFound.
	Get(l covey.Locator) (Handle, error)

	// Present returns which blocks of the extent are here, without I/O where
	// the objects are known in memory.
	Present(e *covey.Extent) covey.Bitmap

	// Put admits a block whose bytes have the given digest. It does not keep
	// data. ErrFull when the budget has no room; the caller goes on without.
	// Putting a block that is already here is a no-op, except that its place is
	// brought up to date.
	Put(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error

	// PutEmpty makes an object of no blocks known, so that OpenWhole finds it.
	// OpenWhole opens the object's file for reading when every block is here;
	// ErrNotFound otherwise. The file may be unlinked while it is open, and is
	// never changed below its size. The caller closes it.
	OpenWhole(o covey.Object) (*os.File, error)

	// All yields what the store holds, extent by extent, for the directory's
	// full refresh. It does not block writers.
	All() iter.Seq[Held]

	// Drop forgets one block (it was found to be wrong).
	Drop(l covey.Locator) error

	Usage() Usage

	// Sync makes everything admitted so far survive a power loss.
	Sync() error
	// Close syncs, marks the store clean and gives up the lock.
	Close() error
}
