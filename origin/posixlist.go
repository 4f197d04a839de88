package origin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/covey-cache/covey"
)

// defaultListLimit is S3's, so that callers see pages of one size everywhere;
// maxPosixLimit bounds the memory of a page that somebody asks for.
const (
	defaultListLimit = 1000
	maxPosixLimit    = 64 << 10
)

// List walks the tree in the order of S3 keys, in which a directory is its name
// with a slash: "a-b" comes before "a/x", and that before "a0". The token is the
// last name of the page before, so a listing survives a restart, and names that
// come and go between pages disturb nobody else. Fifos, sockets and devices are
// left out, and so is a path too long to be a key, which is logged.
func (b *posixBucket) List(ctx context.Context, req ListRequest) (Page, error) {
	if req.Delimiter != "" && req.Delimiter != "/" {
		return Page{}, failure("list", req.Prefix, b.Origin(), fmt.Sprintf("delimiter %q", req.Delimiter), covey.ErrInvalid)
	}
	l := &lister{bucket: b, ctx: ctx, deep: req.Delimiter == "", prefix: req.Prefix, after: req.Token, limit: defaultListLimit}
	if req.Limit > 0 {
		l.limit = min(req.Limit, maxPosixLimit)
	}
	_, err := aside(ctx, b, &l.progress, func() (struct{}, error) { return struct{}{}, l.run() }, nil)
	if err != nil {
		// l belongs to the call that may have been left behind.
		return Page{}, b.fail(ctx, "list", req.Prefix, err)
	}
	return l.page, nil
}

// lister makes one page.
type lister struct {
	bucket *posixBucket
	ctx    context.Context
	prefix string
	deep   bool   // no delimiter
	after  string // only names behind this one
	limit  int

	page     Page
	last     string // the last name in page
	progress atomic.Int64
}

// errPageFull ends the walk.
var errPageFull = errors.New("page is full")

func (l *lister) run() error {
	root, err := l.bucket.open()
	if err != nil {
		return err
	}
	dir, name := path.Split(l.prefix)
	if dir != "" {
		if root, err = openDir(root, strings.TrimSuffix(dir, "/")); err != nil {
			return ignoreMissing(err)
		}
		defer closeRoot(root)
	}
	err = l.walk(root, dir, name)
	if errors.Is(err, errPageFull) {
		l.page.Next = l.last
		return nil
	}
	return err
}

// openDir opens a directory below the root. The errors for one that is no
// directory, not there, or behind a link, are of the kind ErrNotFound.
func openDir(root *os.Root, dir string) (*os.Root, error) {
	if path.Clean(dir) != dir || path.IsAbs(dir) || dir == ".." || strings.HasPrefix(dir, "../") || strings.ContainsRune(dir, 0) {
		return nil, fs.ErrNotExist // nothing here has such a key
	}
	if err := checkParents(root, dir+"/"); err != nil {
		return nil, err
	}
	return root.OpenRoot(dir)
}

// closeRoot closes a directory that was only read, which cannot fail in a way
// that matters.
func closeRoot(root *os.Root) { _ = root.Close() }

// walk adds what is in the directory at key ("" or with a slash behind) and has
// a name that begins with prefix.
func (l *lister) walk(dir *os.Root, key, prefix string) error {
	from := l.start(key)
	for {
		w, err := l.bucket.window(l, dir, key, prefix, from)
		if err != nil {
			return err
		}
		for i, e := range w.names {
			if err := l.visit(dir, key, e); err != nil {
				l.bucket.keepWindow(w, i)
				return err
			}
		}
		if !w.more {
			return nil
		}
		// The next name there can be.
		from = w.names[len(w.names)-1].sortKey() + "\x00"
	}
}

// start returns the first name of the directory at key that may not have been
// on an earlier page.
func (l *lister) start(key string) string {
	if !strings.HasPrefix(l.after, key) {
		return ""
	}
	from := l.after[len(key):]
	if i := strings.IndexByte(from, '/'); l.deep && i >= 0 {
		from = from[:i+1] // the page ended inside of that directory
	}
	return from
}

// visit adds one name of the directory at key, or what is below it.
func (l *lister) visit(dir *os.Root, key string, e dirName) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	l.progress.Add(1)
	full := key + e.sortKey()
	if len(full) > covey.MaxKeyLen {
		l.bucket.log.LogAttrs(l.ctx, slog.LevelWarn, "path is too long for a key and left out",
			slog.String("origin", l.bucket.Origin()), slog.String("key", full[:64]+"..."))
		return nil
	}
	if e.dir && l.deep {
		return l.descend(dir, full, e.name)
	}
	if full <= l.after {
		return nil
	}
	if e.dir {
		return l.add(full, func() { l.page.Prefixes = append(l.page.Prefixes, full) })
	}
	info, err := statAt(dir, e.name)
	if err != nil {
		return ignoreMissing(err) // gone since, or neither file nor link
	}
	info.Key = full
	return l.add(full, func() { l.page.Objects = append(l.page.Objects, info) })
}

func (l *lister) add(name string, appendIt func()) error {
	if len(l.page.Objects)+len(l.page.Prefixes) >= l.limit {
		return errPageFull
	}
	appendIt()
	l.last = name
	return nil
}

// descend walks a directory unless all of it comes before the token.
func (l *lister) descend(dir *os.Root, key, name string) error {
	if key <= l.after && !strings.HasPrefix(l.after, key) {
		return nil
	}
	child, err := dir.OpenRoot(name)
	if err != nil {
		if errors.Is(err, syscall.EACCES) {
			// Silence would make a data set smaller than it is.
			return fmt.Errorf("%q: %w", key, err)
		}
		return ignoreMissing(err)
	}
	defer closeRoot(child)
	return l.walk(child, key, "")
}
