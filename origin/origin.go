// Package origin reads under-storage: one contract, [Bucket], and one driver a
// scheme. What every driver needs besides (retries, a limit on requests in
// flight, counting) is a decorator around the contract, and origintest is the
// suite that every driver passes.
//
// The read paths never write: Put and Delete exist for uploads that a mount was
// told to make, and for tests.
package origin

import (
	"context"
	"io"
	"io/fs"
	"time"

	"github.com/covey-cache/covey"
)

// Bucket is one under-storage as its driver sees it. Keys are whole keys, never
// relative to a data set's prefix. All methods may be called concurrently, end
// when their context does, and return errors that wrap [covey.ErrNotFound],
// [covey.ErrStale], [covey.ErrDenied], [covey.ErrThrottled],
// [covey.ErrUnavailable] (worth another try) or [covey.ErrInvalid], with the
// operation and the key in the text and never a credential.
type Bucket interface {
	// Origin returns the canonical name that [covey.Object.Origin] carries:
	// the same on every peer that means the same storage, free of credentials
	// and of the data set's prefix.
	Origin() string

	// Stat returns what is known of one object. A prefix that only has keys
	// below it is ErrNotFound.
	Stat(ctx context.Context, key string) (Info, error)

	// List returns one page of the keys that begin with req.Prefix, in
	// ascending byte order of the key. A missing prefix is an empty page; a
	// missing or forbidden bucket is an error.
	List(ctx context.Context, req ListRequest) (Page, error)

	// Get opens exactly r of exactly that version. When the object is another
	// version now, it returns ErrStale, at the latest from the reader's last
	// Read; it never returns bytes of two versions. The reader ends with io.EOF
	// after r.Len bytes and with an error that wraps ErrUnavailable when the
	// body was short. The caller closes it. r.Len > 0.
	Get(ctx context.Context, key, version string, r covey.Range) (io.ReadCloser, error)

	// Put stores size bytes of body under key, atomically visible, and returns
	// the new version.
	Put(ctx context.Context, key string, body io.Reader, size int64) (Info, error)

	// Delete removes the key. A key that does not exist is no error.
	Delete(ctx context.Context, key string) error
}

// Info is what an origin says of one object.
type Info struct {
	Key  string
	Size int64
	// Version changes whenever the bytes do.
	Version string
	ModTime time.Time
	// Mode holds permission bits where the origin has them, else 0.
	Mode fs.FileMode
	// Link is the target, unread, when the object is a symbolic link. It is
	// never followed by covey.
	Link string
}

// ListRequest asks for one page.
type ListRequest struct {
	Prefix string
	// Delimiter is "/" to list one directory, "" to list everything below.
	Delimiter string
	// Token is Page.Next of the page before, "" for the first.
	Token string
	// Limit is the most entries wanted, 0 for the driver's default. A driver
	// may return fewer.
	Limit int
}

// Page is part of a listing.
type Page struct {
	Objects []Info
	// Prefixes are the keys up to and including the delimiter that were rolled
	// up, each once in the whole listing.
	Prefixes []string
	// Next is the token of the following page, "" when this is the last.
	Next string
}
