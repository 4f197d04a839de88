package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"github.com/covey-cache/covey"
)

// posixEditor writes below a directory.
type posixEditor struct {
	*posixBucket
	sender
}

func (b *posixEditor) Upload(ctx context.Context, key string, body io.ReaderAt, size int64, o UploadOptions) (info Info, err error) {
	err = b.do(ctx, opPut, key, func() (err error) {
		if err := b.checkPut(key, size); err != nil {
			return b.fail(ctx, "put", key, err)
		}
		up := &upload{
			bucket: b.posixBucket, ctx: ctx, key: key, size: size,
			body: io.NewSectionReader(body, 0, size), options: o,
		}
		info, err = aside(ctx, b.posixBucket, &up.progress, up.run, nil)
		if o.IfAbsent && errors.Is(err, syscall.EEXIST) {
			return failure("put", key, b.Origin(), "a file was there first", ErrExists)
		}
		if err != nil {
			return b.fail(ctx, "put", key, putError(err))
		}
		return nil
	})
	return info, err
}

// edit runs a change of names that is told by its key, and turns its error into
// ours.
func (b *posixEditor) edit(ctx context.Context, op int, key string, change func(root *os.Root) error) error {
	return b.do(ctx, op, key, func() error {
		if err := b.checkKey(key); err != nil {
			return b.fail(ctx, ops[op], key, err)
		}
		_, err := aside(ctx, b.posixBucket, nil, func() (struct{}, error) {
			root, err := b.open()
			if err == nil {
				err = checkParents(root, key)
			}
			if err == nil {
				err = change(root)
			}
			return struct{}{}, err
		}, nil)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrExists), errors.Is(err, syscall.EEXIST):
			return failure(ops[op], key, b.Origin(), "something of that name is there", ErrExists)
		case errors.Is(err, syscall.ENOTEMPTY):
			return failure(ops[op], key, b.Origin(), "files are in it", ErrNotEmpty)
		case errors.Is(err, syscall.EXDEV):
			return failure(ops[op], key, b.Origin(), "it lies on another file system", ErrUnsupported)
		}
		return b.fail(ctx, ops[op], key, err)
	})
}

// Move renames, in one step.
func (b *posixEditor) Move(ctx context.Context, key, version, to string, noReplace bool) (info Info, err error) {
	if err := b.checkPut(to, 0); err != nil {
		return Info{}, b.fail(ctx, "put", to, err)
	}
	err = b.edit(ctx, opPut, key, func(root *os.Root) error {
		now, err := statAt(root, key)
		if err != nil {
			return err
		}
		if now.Version != version {
			return fmt.Errorf("it is another version by now: %w", covey.ErrStale)
		}
		if err := checkParents(root, to); err != nil {
			return err
		}
		if err := rename(root, key, to, noReplace); err != nil {
			return err
		}
		info, err = statAt(root, to)
		return err
	})
	return info, err
}

// rename moves a file. A link and a removal are how to do it without replacing
// anything; in between both names are there, of one file.
func rename(root *os.Root, key, to string, noReplace bool) error {
	var err error
	if noReplace {
		if err = root.Link(key, to); err == nil {
			err = root.Remove(key)
		}
	} else {
		err = root.Rename(key, to)
	}
	if err != nil {
		return err
	}
	return syncDir(root, path.Dir(to))
}

// MoveDir renames the directory; what is there must be an empty directory, and is
// removed just before.
func (b *posixEditor) MoveDir(ctx context.Context, key, to string) error {
	if err := b.checkPut(to, 0); err != nil {
		return b.fail(ctx, "put", to, err)
	}
	return b.edit(ctx, opPut, key, func(root *os.Root) error {
		info, err := root.Lstat(key)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return syscall.ENOTDIR
		}
		if err := checkParents(root, to); err != nil {
			return err
		}
		if there, err := root.Lstat(to); err == nil && there.IsDir() {
			if err := root.Remove(to); err != nil {
				return err
			}
		}
		if err := root.Rename(key, to); err != nil {
			return err
		}
		return syncDir(root, path.Dir(to))
	})
}

// SetMode changes a file's permissions. A symbolic link is not followed.
func (b *posixEditor) SetMode(ctx context.Context, key string, mode fs.FileMode) error {
	return b.edit(ctx, opPut, key, func(root *os.Root) error {
		if info, err := root.Lstat(key); err != nil {
			return err
		} else if info.Mode()&fs.ModeSymlink != 0 {
			return errLink
		}
		return root.Chmod(key, mode.Perm())
	})
}

// MakeDir makes the directory, but none above it.
func (b *posixEditor) MakeDir(ctx context.Context, key string) error {
	return b.edit(ctx, opPut, key, func(root *os.Root) error {
		if err := root.Mkdir(key, 0o777); err != nil {
			return err
		}
		return syncDir(root, path.Dir(key))
	})
}

// RemoveDir removes the directory.
func (b *posixEditor) RemoveDir(ctx context.Context, key string) error {
	return b.edit(ctx, opDelete, key, func(root *os.Root) error {
		info, err := root.Lstat(key)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return syscall.ENOTDIR
		}
		if err := root.Remove(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// Delete is the bucket's, tried again.
func (b *posixEditor) Delete(ctx context.Context, key string) error {
	return b.do(ctx, opDelete, key, func() error { return b.posixBucket.Delete(ctx, key) })
}
