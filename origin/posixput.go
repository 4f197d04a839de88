package origin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/covey-cache/covey"
)

// Put writes a file beside its place, syncs it, renames it and syncs the
// directory, so that after a crash there is the old object or the new one.
// Missing directories are made. A name too long for the file system is
// ErrInvalid, as is a key whose parent is a file or that is a directory.
func (b *posixBucket) Put(ctx context.Context, key string, body io.Reader, size int64) (Info, error) {
	if err := b.checkPut(key, size); err != nil {
		return Info{}, b.fail(ctx, "put", key, err)
	}
	up := &upload{bucket: b, ctx: ctx, key: key, body: body, size: size}
	info, err := aside(ctx, b, &up.progress, up.run, nil)
	if err != nil {
		return Info{}, b.fail(ctx, "put", key, putError(err))
	}
	return info, nil
}

// checkPut refuses what cannot be the name or the size of a file.
func (b *posixBucket) checkPut(key string, size int64) error {
	err := b.checkKey(key)
	switch {
	case errors.Is(err, covey.ErrNotFound) || strings.HasPrefix(path.Base(key), uploadPrefix):
		return fmt.Errorf("it cannot be the name of a file: %w", covey.ErrInvalid)
	case err == nil && size < 0:
		return fmt.Errorf("%d bytes: %w", size, covey.ErrInvalid)
	}
	return err
}

// putError turns what would mean "no such object" into what it means for a
// write: the name cannot be had.
func putError(err error) error {
	for _, errno := range [...]syscall.Errno{syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.EISDIR, syscall.EEXIST, syscall.ENOTEMPTY} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", errno, covey.ErrInvalid)
		}
	}
	if errors.Is(err, errLink) {
		return fmt.Errorf("it lies below a symbolic link: %w", covey.ErrInvalid)
	}
	return err
}

// upload is one Put.
type upload struct {
	bucket   *posixBucket
	ctx      context.Context
	key      string
	body     io.Reader
	size     int64
	options  UploadOptions
	progress atomic.Int64
}

func (u *upload) run() (Info, error) {
	root, err := u.bucket.open()
	if err != nil {
		return Info{}, err
	}
	dir := path.Dir(u.key)
	if err := checkParents(root, u.key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Info{}, err
	}
	if err := root.MkdirAll(dir, 0o777); err != nil {
		return Info{}, err
	}
	temp := path.Join(dir, uploadPrefix+rand.Text())
	info, err := u.write(root, temp)
	if err == nil {
		err = rename(root, temp, u.key, u.options.IfAbsent)
	}
	if err != nil {
		return Info{}, errors.Join(err, ignoreMissing(root.Remove(temp)))
	}
	info.Key = u.key
	return info, nil
}

// write makes the temporary file and describes it; a rename changes none of it.
func (u *upload) write(root *os.Root, temp string) (Info, error) {
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	n, err := io.Copy(f, &uploadBody{upload: u, rest: u.size})
	if err == nil && n != u.size {
		err = fmt.Errorf("the body ended %d bytes early: %w", u.size-n, covey.ErrInvalid)
	}
	if err == nil && u.options.Mode != 0 {
		err = f.Chmod(u.options.Mode.Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return Info{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	return posixInfo(temp, info), nil
}

func syncDir(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// uploadBody passes on at most rest bytes, counts the steps, and ends with the
// context.
type uploadBody struct {
	upload *upload
	rest   int64
}

func (u *uploadBody) Read(p []byte) (int, error) {
	if err := u.upload.ctx.Err(); err != nil {
		return 0, err
	}
	u.upload.progress.Add(1)
	if u.rest == 0 {
		return 0, io.EOF
	}
	n, err := u.upload.body.Read(p[:min(int64(len(p)), u.rest)])
	u.rest -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read the body: %w: %w", err, covey.ErrInvalid)
	}
	return n, err
}
