// Package dataset is the namespace: sources from URLs, the table of data sets in
// use, their directories with attributes that have an age, and how objects are
// cut into blocks and blocks grouped into extents.
package dataset

import (
	"context"
	"io/fs"
	"iter"
	"log/slog"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// Options are a data set's policy. The zero value works.
type Options struct {
	// BlockSize in bytes; 0 means covey.DefaultBlockSize.
	BlockSize int64
	// MaxAge is how long a listing is believed; 0 means DefaultMaxAge, negative
	// means not at all.
	MaxAge time.Duration
	// Immutable says that no object of the data set ever changes: listings are
	// believed for ever.
	Immutable bool
	// StaleIfError is how long beyond MaxAge known entries stay valid while the
	// origin cannot be reached; 0 means one hour.
	StaleIfError time.Duration
	Log          *slog.Logger
}

// DefaultMaxAge is how long a listing is believed. A minute bounds the LIST
// requests of a cluster to what an origin does not notice, and is the freshness
// that training data needs.
const DefaultMaxAge = time.Minute

// Kind is what an entry is.
type Kind uint8

// The kinds of entries.
const (
	File Kind = iota + 1
	Dir
	Symlink
)

// Entry is one name in a directory. It is a value; what it says was true when
// the directory was listed.
type Entry struct {
	Name    string
	Kind    Kind
	Size    int64
	ModTime time.Time
	// Mode holds permission bits, 0 when the origin has none.
	Mode    fs.FileMode
	Version string
	Link    string
}

// The methods of Dataset, implemented in the files beside this one. All may be
// called concurrently. A path is relative to the data set's root, with "/"
// between names, "" for the root itself.
type dataset interface {
	// Name is the canonical source URL.
	Name() string
	// Bucket is where the data set's bytes are.
	Bucket() origin.Bucket
	// Options are the policy with its defaults filled in.
	Options() Options

	// Lookup returns one entry, from the cached listing of its directory where
	// that is young enough. ErrNotFound only when the origin said so; when it
	// cannot be asked, a known entry stays valid for StaleIfError, and an
	// unknown one is ErrUnavailable.
	Lookup(ctx context.Context, path string) (Entry, error)

	// ReadDir yields the directory's entries in ascending byte order of the
	// name, while later pages are still being listed. The error, if any, is the
	// last thing yielded: an incomplete listing never looks complete.
	ReadDir(ctx context.Context, path string) iter.Seq2[Entry, error]

	// Object returns what the path's file is for the cache.
	Object(path string, e Entry) covey.Object

	// Extent returns the extent that holds block index of the file, and the
	// block's slot in it. It needs the directory's whole listing when the file
	// is small.
	Extent(ctx context.Context, path string, e Entry, index int) (*covey.Extent, int, error)

	// Invalidate makes the next Lookup of the path ask the origin, after a read
	// said ErrStale or ErrNotFound.
	Invalidate(path string)
}
