package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// uploaders is how many files are uploaded at once: enough to keep a server on
// the same two cores busy.
const uploaders = 16

// compareBuffer is how much is read at a time when comparing: the largest
// request that the kernel sends to a FUSE server.
const compareBuffer = 1 << 20

// Tree is a directory of real files that serves as a data set. It is read-only
// once made.
type Tree struct {
	Root  string
	Files []TreeFile // in walking order
	Bytes int64
}

// TreeFile is one regular file, its path relative to the root.
type TreeFile struct {
	Path string
	Size int64
}

// ReadTree lists the regular files below root.
func ReadTree(root string) (*Tree, error) {
	t := &Tree{Root: root}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		t.Files = append(t.Files, TreeFile{Path: filepath.ToSlash(rel), Size: info.Size()})
		t.Bytes += info.Size()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", root, err)
	}
	if len(t.Files) == 0 {
		return nil, fmt.Errorf("%s has no files; name another tree", root)
	}
	return t, nil
}

// GoRoot returns the directory of the installed Go toolchain, or "" when there
// is none: a tree of real files that every developer has.
func GoRoot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// Upload puts every file into the bucket, under its path.
func (t *Tree) Upload(ctx context.Context, s3 *origintest.S3, bucket string) error {
	to, err := origin.Open(ctx, s3.URL(bucket, ""), s3.Options())
	if err != nil {
		return err
	}
	puts, ctx := errgroup.WithContext(ctx)
	puts.SetLimit(uploaders)
	for _, f := range t.Files {
		if ctx.Err() != nil {
			break
		}
		puts.Go(func() error { return t.put(ctx, to.Bucket, f) })
	}
	return puts.Wait()
}

func (t *Tree) put(ctx context.Context, to origin.Bucket, f TreeFile) error {
	body, err := os.Open(filepath.Join(t.Root, f.Path))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = to.Put(ctx, f.Path, body, f.Size)
	return err
}

// Compare reads every file below dir, in the tree's order with several readers,
// and compares it byte for byte with the source; it also checks that dir has no
// other files. It returns the first difference.
func (t *Tree) Compare(ctx context.Context, dir string, readers int) error {
	if err := t.compareNames(dir); err != nil {
		return err
	}
	reads, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range readers {
		reads.Go(func() error {
			a, b := make([]byte, compareBuffer), make([]byte, compareBuffer)
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(t.Files) {
					return nil
				}
				f := t.Files[i].Path
				if err := compareFiles(filepath.Join(t.Root, f), filepath.Join(dir, f), a, b); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return reads.Wait()
}

func (t *Tree) compareNames(dir string) error {
	got, err := ReadTree(dir)
	if err != nil {
		return err
	}
	if len(got.Files) != len(t.Files) || got.Bytes != t.Bytes {
		return fmt.Errorf("%s shows %d files with %d bytes, the source has %d with %d",
			dir, len(got.Files), got.Bytes, len(t.Files), t.Bytes)
	}
	for i, f := range got.Files {
		if f != t.Files[i] {
			return fmt.Errorf("%s shows %s with %d bytes where the source has %s with %d",
				dir, f.Path, f.Size, t.Files[i].Path, t.Files[i].Size)
		}
	}
	return nil
}

func compareFiles(want, got string, a, b []byte) error {
	w, err := os.Open(want)
	if err != nil {
		return err
	}
	defer w.Close()
	g, err := os.Open(got)
	if err != nil {
		return err
	}
	defer g.Close()
	for off := int64(0); ; {
		n, errW := io.ReadFull(w, a)
		m, errG := io.ReadFull(g, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("%s differs from its source within [%d, %d): %d and %d bytes read", got, off, off+int64(len(a)), m, n)
		}
		off += int64(n)
		switch endW, endG := atEnd(errW), atEnd(errG); {
		case endW && endG:
			return nil
		case errW != nil && !endW:
			return errW
		case errG != nil && !endG:
			return errG
		}
	}
}

func atEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// needFUSE says in one line what mounting needs and this machine lacks.
func needFUSE() error {
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return errors.New("/dev/fuse is not open to this user; open it (chmod 666 /dev/fuse), as package fuse3 does")
	case err != nil:
		return errors.New("/dev/fuse is missing; load the fuse module (modprobe fuse) or give the container the device")
	}
	device.Close()
	if _, err := exec.LookPath("fusermount3"); err != nil && os.Geteuid() != 0 {
		return errors.New("fusermount3 is missing and this is not root; install it (apt-get install fuse3)")
	}
	return nil
}
