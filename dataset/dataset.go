// Package dataset is the namespace: sources from URLs, the table of data sets in
// use, their directories with attributes that have an age, and how objects are
// cut into blocks and blocks grouped into extents.
//
// A [Dataset] answers from directory listings. A listing is one LIST run with
// the delimiter "/", shared by everyone who waits for it, kept packed, and
// believed for [Options].MaxAge. Which keys show as which names is in NAMES.md;
// how small files are grouped into extents is in cut.go.
package dataset

import (
	"context"
	"io/fs"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// Kind is what an entry is.
type Kind uint8

// The kinds of entries.
const (
	File Kind = iota + 1
	Dir
	Symlink
)

// String returns the kind in one word.
func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Dir:
		return "directory"
	case Symlink:
		return "symlink"
	}
	return "nothing"
}

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

// Dataset is one source with its policy and what is known of its namespace. All
// methods may be called concurrently. A path is relative to the data set's
// root, with "/" between names, "" for the root itself.
//
// Listings and questions to the origin run in goroutines of their own, which
// end when the last caller that waits has given up, and which Close joins.
type Dataset struct {
	src  origin.Source
	opts Options

	ctx    context.Context // of every listing and question; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// mu is a leaf lock: code holding it does no I/O and calls nothing outside
	// this package. Complete listings are immutable and read without it.
	//
	// INVARIANT: a run in runs is not cancelled, so joining it is safe.
	// INVARIANT: listings.used counts the entries of complete listings and of
	// those that are under way.
	mu       sync.Mutex
	closed   bool
	seq      uint64 // orders listings, questions and doubts
	listings *lru[string, *listing]
	runs     map[string]*run
	facts    *lru[string, fact]
	queries  map[string]*query
	edits    *lru[string, uint64] // seq of the last change from here, by directory
	extents  *lru[extentKey, *covey.Extent]
	watchers map[int]Watcher
	nextID   int
	outage   outage
}

// New returns the data set of src. It does no I/O. The options should have
// passed Validate.
func New(src *origin.Source, opts Options) *Dataset {
	opts = opts.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	return &Dataset{
		src:      *src,
		opts:     opts,
		ctx:      ctx,
		cancel:   cancel,
		listings: newLRU[string, *listing](opts.MaxEntries),
		runs:     make(map[string]*run),
		facts:    newLRU[string, fact](maxFacts),
		queries:  make(map[string]*query),
		edits:    newLRU[string, uint64](maxEdits),
		extents:  newLRU[extentKey, *covey.Extent](maxExtents),
		watchers: make(map[int]Watcher),
	}
}

// Name is the canonical source URL.
func (d *Dataset) Name() string { return d.src.URL }

// Bucket is where the data set's bytes are.
func (d *Dataset) Bucket() origin.Bucket { return d.src.Bucket }

// Prefix is what every key of the data set begins with.
func (d *Dataset) Prefix() string { return d.src.Prefix }

// Options are the policy with its defaults filled in.
func (d *Dataset) Options() Options { return d.opts }

// Object returns what the path's file is for the cache.
func (d *Dataset) Object(path string, e Entry) covey.Object {
	return covey.Object{
		Origin:    d.src.Bucket.Origin(),
		Key:       d.src.Prefix + path,
		Version:   e.Version,
		Size:      e.Size,
		BlockSize: d.opts.BlockSize,
	}
}

// Close ends every listing and question under way and waits until they and the
// watchers they call have returned. Calls from then on fail with
// ErrUnavailable where they would have had to ask the origin. A watcher must
// not call it.
func (d *Dataset) Close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
}

// dirKey is the key prefix of a directory.
func (d *Dataset) dirKey(path string) string {
	if path == "" {
		return d.src.Prefix
	}
	return d.src.Prefix + path + "/"
}

// nextSeq returns the next number in the order of what was learnt. mu is held.
func (d *Dataset) nextSeq() uint64 {
	d.seq++
	return d.seq
}

// fresh reports whether what was learnt at the given time is still believed.
func (d *Dataset) fresh(at time.Time) bool {
	return d.opts.Immutable || d.opts.MaxAge > 0 && time.Since(at) < d.opts.MaxAge
}

// usable reports whether what was learnt at the given time may stand in while
// the origin cannot be reached.
func (d *Dataset) usable(at time.Time) bool {
	return d.opts.Immutable || time.Since(at) < max(d.opts.MaxAge, 0)+d.opts.StaleIfError
}
