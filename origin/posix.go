package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/covey-cache/covey"
)

// posixBucket is a directory; an NFS or Lustre mount is one. Keys are paths
// relative to it. No key leads out of it, and symbolic links are told of in
// listings but never followed, not even to a place inside.
//
// A version is size, modification time in nanoseconds and inode number. The
// inode number finds the file that was replaced by a rename that kept size and
// time (rsync -t, a restored backup); clients of one NFS export see the same
// one, its file ID, so their versions agree. A file rewritten in place with its
// old time put back is not noticed: no POSIX call would.
//
// Calls to the kernel cannot be interrupted while a file server is away, so each
// runs aside and is left behind when its time is over; at most maxStuck may be.
type posixBucket struct {
	dir     string
	timeout time.Duration
	log     *slog.Logger
	// stuck holds one value for each kernel call under way.
	stuck chan struct{}

	// mu guards what follows; a leaf lock, but for opening the root.
	mu      sync.Mutex
	root    *os.Root
	checked time.Time // when root was last known to be what dir names
	closed  bool
	windows []*dirWindow // of listings under way, oldest first

	windowNames int // constant but for a test
}

// maxStuck bounds the threads that a file server that went away can hold. It is
// well above what WithLimit lets in, so that it only ever counts stuck ones.
const maxStuck = 512

// uploadPrefix begins the names of files that Put has not finished. Listings
// leave them out, so that a crash leaves nothing that looks like an object.
const uploadPrefix = ".covey-upload-"

func newPosix(dir string, opts Options) *posixBucket {
	return &posixBucket{dir: dir, timeout: opts.Timeout, log: opts.Log, stuck: make(chan struct{}, maxStuck), windowNames: windowNames}
}

func (b *posixBucket) Origin() string { return "file://" + b.dir }

func (b *posixBucket) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.windows = nil
	if b.root == nil {
		return nil
	}
	root := b.root
	b.root = nil
	return root.Close()
}

// open returns the root, which is opened at the first use: a path that is not
// mounted yet when the agent starts may be later.
func (b *posixBucket) open() (*os.Root, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fs.ErrClosed
	}
	if b.root != nil && time.Since(b.checked) > rootAge && !b.rootCurrent() {
		// Calls under way keep the old one open for as long as they take.
		_ = b.root.Close()
		b.root, b.windows = nil, nil
	}
	if b.root == nil {
		root, err := os.OpenRoot(b.dir)
		if err != nil {
			if info, statErr := os.Stat(b.dir); statErr == nil && !info.IsDir() {
				err = syscall.ENOTDIR // os.OpenRoot has a text only
			}
			return nil, rootError{err}
		}
		b.root, b.checked = root, time.Now()
	}
	return b.root, nil
}

// rootAge is how long a root is used before it is compared with the path again.
// A descriptor outlives a mount: without this, an agent that started before its
// NFS mount would see the empty directory below it for ever.
const rootAge = time.Second

// rootCurrent reports whether the path still names the directory that is open.
func (b *posixBucket) rootCurrent() bool {
	named, err1 := os.Stat(b.dir)
	opened, err2 := b.root.Stat(".")
	b.checked = time.Now()
	return err1 == nil && err2 == nil && os.SameFile(named, opened)
}

// rootError says that it is the root that is missing, not a key.
type rootError struct{ error }

func (r rootError) Unwrap() error { return r.error }

// aside runs call, which may hang in the kernel, and returns its result; or an
// error when ctx ends or the timeout passes, leaving the call behind. A call of
// many steps counts them in progress, and the timeout then is for one step. What
// a call that was left behind returns in the end is given to discard, if any.
func aside[T any](ctx context.Context, b *posixBucket, progress *atomic.Int64, call func() (T, error), discard func(T)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	select {
	case b.stuck <- struct{}{}:
	default:
		return zero, errSilent
	}
	type result struct {
		value T
		err   error
	}
	// Without a buffer: the result goes to somebody who waits, or to discard.
	done, left := make(chan result), make(chan struct{})
	go func() {
		defer func() { <-b.stuck }()
		value, err := call()
		select {
		case done <- result{value, err}:
		case <-left:
			if err == nil && discard != nil {
				discard(value)
			}
		}
	}()
	defer close(left)
	timer := time.NewTimer(b.timeout)
	defer timer.Stop()
	for seen := int64(0); ; {
		select {
		case r := <-done:
			return r.value, r.err
		case <-ctx.Done():
			return zero, ctx.Err()
		case <-timer.C:
			if progress == nil || progress.Load() == seen {
				return zero, errSilent
			}
			seen = progress.Load()
			timer.Reset(b.timeout)
		}
	}
}

// fail turns an error of the file system into ours.
func (b *posixBucket) fail(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return ctxError(ctx, op, key, b.Origin())
	}
	var root rootError
	if errors.As(err, &root) {
		return b.failRoot(op, key, root.error)
	}
	var errno syscall.Errno
	detail := err.Error()
	if errors.As(err, &errno) {
		detail = errno.Error()
	}
	if errors.Is(err, errSilent) {
		detail = fmt.Sprintf("the file system was silent for %v", b.timeout)
	}
	return failure(op, key, b.Origin(), detail, posixKind(err))
}

func (b *posixBucket) failRoot(op, key string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failure(op, key, b.Origin(), "there is no such directory; check the path and that it is mounted", covey.ErrNotFound)
	case errors.Is(err, syscall.ENOTDIR):
		return failure(op, key, b.Origin(), "it is not a directory; name the directory that holds the data set", covey.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return failure(op, key, b.Origin(), "permission denied; let this user read and enter the directory", covey.ErrDenied)
	}
	return failure(op, key, b.Origin(), err.Error(), posixKind(err))
}

func posixKind(err error) error {
	for _, kind := range [...]error{
		covey.ErrInvalid, covey.ErrNotFound, covey.ErrStale, covey.ErrUnavailable, covey.ErrDenied,
	} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		return covey.ErrNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return covey.ErrDenied
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EINVAL):
		return covey.ErrInvalid
	}
	// EIO, ESTALE of NFS, ENOSPC, EMFILE, a timeout: time may mend it.
	return covey.ErrUnavailable
}

// errLink says that a key leads through or to a symbolic link.
var errLink = fmt.Errorf("it is or lies below a symbolic link, which is not followed: %w", covey.ErrNotFound)

// checkKey refuses what is no path below the root. os.Root would stop most of it
// too; here it gets its own error, and "a//b" does not become "a/b".
func (b *posixBucket) checkKey(key string) error {
	switch {
	case key == "" || len(key) > covey.MaxKeyLen:
		return fmt.Errorf("a key of %d bytes: %w", len(key), covey.ErrInvalid)
	case strings.ContainsRune(key, 0):
		return fmt.Errorf("a NUL byte: %w", covey.ErrInvalid)
	case strings.HasSuffix(key, "/"):
		return fmt.Errorf("a directory is not an object: %w", covey.ErrNotFound)
	case path.Clean(key) != key || key[0] == '/' || key == "." || key == ".." || strings.HasPrefix(key, "../"):
		return fmt.Errorf("a part of the key is empty, %q or %q: %w", ".", "..", covey.ErrInvalid)
	}
	return nil
}

// checkParents makes sure that no directory on the way to key is a symbolic
// link. Swapping one in afterwards gains nothing: os.Root keeps even a followed
// link inside the root.
func checkParents(root *os.Root, key string) error {
	for i, c := range []byte(key) {
		if c != '/' {
			continue
		}
		info, err := root.Lstat(key[:i])
		switch {
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			return errLink
		case !info.IsDir():
			return syscall.ENOTDIR
		}
	}
	return nil
}

func (b *posixBucket) Stat(ctx context.Context, key string) (Info, error) {
	if err := b.checkKey(key); err != nil {
		return Info{}, b.fail(ctx, "stat", key, err)
	}
	info, err := aside(ctx, b, nil, func() (Info, error) {
		root, err := b.open()
		if err != nil {
			return Info{}, err
		}
		if err := checkParents(root, key); err != nil {
			return Info{}, err
		}
		return statAt(root, key)
	}, nil)
	if err != nil {
		return Info{}, b.fail(ctx, "stat", key, err)
	}
	return info, nil
}

// statAt describes a regular file or a link; anything else is fs.ErrNotExist.
func statAt(root *os.Root, key string) (Info, error) {
	info, err := root.Lstat(key)
	if err != nil {
		return Info{}, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		out := posixInfo(key, info)
		out.Link, err = root.Readlink(key)
		return out, err
	}
	if !info.Mode().IsRegular() {
		return Info{}, fs.ErrNotExist
	}
	return posixInfo(key, info), nil
}

func posixInfo(key string, info fs.FileInfo) Info {
	return Info{
		Key: key, Size: info.Size(), Version: posixVersion(info),
		ModTime: info.ModTime(), Mode: info.Mode().Perm(),
	}
}

func posixVersion(info fs.FileInfo) string {
	var inode uint64
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = sys.Ino
	}
	return fmt.Sprintf("%x-%x-%x", info.Size(), info.ModTime().UnixNano(), inode)
}

// Delete removes a file or a link. The directory it was in stays: other programs
// may count on it.
func (b *posixBucket) Delete(ctx context.Context, key string) error {
	if err := b.checkKey(key); err != nil {
		return b.fail(ctx, "delete", key, err)
	}
	_, err := aside(ctx, b, nil, func() (struct{}, error) { return struct{}{}, b.remove(key) }, nil)
	if err != nil {
		return b.fail(ctx, "delete", key, err)
	}
	return nil
}

func (b *posixBucket) remove(key string) error {
	root, err := b.open()
	if err != nil {
		return err
	}
	if err := checkParents(root, key); err != nil {
		return ignoreMissing(err)
	}
	info, err := root.Lstat(key)
	if err != nil {
		return ignoreMissing(err)
	}
	if info.IsDir() {
		return nil // no object of that name
	}
	return ignoreMissing(root.Remove(key))
}

// ignoreMissing drops the errors that say there is no such object.
func ignoreMissing(err error) error {
	if errors.Is(posixKind(err), covey.ErrNotFound) {
		return nil
	}
	return err
}

// errShort marks a body or a file that ended before its size, unchanged.
var errShort = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, covey.ErrUnavailable)
