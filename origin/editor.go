package origin

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/covey-cache/covey"
)

// Editor is what a mount that may write needs of an origin. Only drivers that
// can do all of it have one; nothing on a read path calls it. Keys and errors are
// as for [Bucket], and all methods may be called concurrently.
type Editor interface {
	// Upload stores the first size bytes of body under key. The object is
	// visible whole, once Upload is about to return, or not at all: what a
	// failed upload sent is taken away again where the origin can be reached.
	Upload(ctx context.Context, key string, body io.ReaderAt, size int64, o UploadOptions) (Info, error)

	// Move gives an object that is of the given version another key, and returns
	// what it is there. It replaces an object of that key; with noReplace it is
	// ErrExists instead. Where the origin cannot rename it copies, by itself,
	// and then deletes: then both keys are there for a moment.
	Move(ctx context.Context, key, version, to string, noReplace bool) (Info, error)

	// MoveDir renames a directory (both without a slash behind) with all that is
	// below it in one step, or is ErrUnsupported.
	MoveDir(ctx context.Context, key, to string) error

	// MakeDir makes an empty directory; ErrExists when there is something.
	MakeDir(ctx context.Context, key string) error

	// RemoveDir removes an empty directory; ErrNotEmpty when it is not.
	RemoveDir(ctx context.Context, key string) error

	// SetMode gives an object other permission bits, which change no version;
	// ErrUnsupported where there are none.
	SetMode(ctx context.Context, key string, mode fs.FileMode) error

	// Delete is Bucket's.
	Delete(ctx context.Context, key string) error
}

// UploadOptions say how an object is stored.
type UploadOptions struct {
	// IfAbsent makes it ErrExists that there is an object of the key, decided by
	// the origin itself at the end of the upload.
	IfAbsent bool
	// Mode is the permission bits, 0 for the origin's default, where it has any.
	Mode fs.FileMode
}

// The errors of an Editor that are no kind of their own for the rest of covey.
var (
	ErrExists      = fmt.Errorf("it exists already: %w", covey.ErrInvalid)
	ErrNotEmpty    = fmt.Errorf("the directory is not empty: %w", covey.ErrInvalid)
	ErrUnsupported = fmt.Errorf("the origin cannot do that: %w", covey.ErrInvalid)
)

// sender sends the single requests of an edit: each is tried again, limited and
// counted as those of the bucket are, and with them.
type sender struct {
	retry   *retried
	limit   *limited
	metrics *Metrics
}

// newSender returns the sender that shares the slots and the throttling of a
// bucket that open has decorated.
func newSender(b Bucket, m *Metrics) sender {
	s := sender{metrics: m}
	s.retry, _ = b.(*retried)
	if s.retry != nil {
		s.limit, _ = s.retry.Bucket.(*limited)
	}
	return s
}

// do makes one request, named by its index in ops, until it succeeds or its
// failure is final.
func (s sender) do(ctx context.Context, op int, key string, try func() error) error {
	return s.retry.attempt(ops[op], key).do(ctx, func() error {
		if err := s.limit.acquire(ctx, ops[op], key); err != nil {
			return err
		}
		defer s.limit.release()
		if s.metrics != nil {
			s.metrics.requests[op].Add(1)
		}
		return try()
	})
}

// editorOf returns the editor of a driver whose decorated bucket is given, or nil.
func editorOf(driver, decorated Bucket, m *Metrics) Editor {
	switch d := driver.(type) {
	case *s3Bucket:
		return &s3Editor{s3Bucket: d, sender: newSender(decorated, m)}
	case *posixBucket:
		return &posixEditor{posixBucket: d, sender: newSender(decorated, m)}
	}
	return nil
}
