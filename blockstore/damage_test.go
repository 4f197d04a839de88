package blockstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

// damages are what can happen to a file.
var damages = map[string]func(path string, size int64) error{
	"gone":      func(p string, _ int64) error { return os.Remove(p) },
	"cut short": func(p string, n int64) error { return os.Truncate(p, n/2) },
	"emptied":   func(p string, _ int64) error { return os.Truncate(p, 0) },
	"flipped": func(p string, n int64) error {
		b, err := os.ReadFile(p)
		if err != nil || n == 0 {
			return err
		}
		b[n/2] ^= 0x10
		return os.WriteFile(p, b, 0o600)
	},
	"garbage": func(p string, _ int64) error { return os.WriteFile(p, []byte("\xff\x00garbage\n"), 0o600) },
}

// fault 8: any file of the store is damaged or gone, each in turn: index, data,
// version, lock. The store opens, at once, and serves no wrong byte; what it does
// not serve can be admitted again.
func TestEachFileDamaged(t *testing.T) {
	whole := Options{Dir: t.TempDir(), Budget: 1 << 30, Compress: compression(t, "auto"), Keys: testKeys(t, 1)}
	raw := Options{Dir: t.TempDir(), Budget: 1 << 30}
	objects := []covey.Object{object("a", 2*testBlock+5), object("text/b", 3*testBlock), object("c", 100), object("d", 1)}
	all := []Options{whole, raw}
	if testing.Short() || raceEnabled {
		all = all[:1]
	}
	for _, opts := range all {
		s := mustOpen(t, opts)
		for i, o := range objects {
			putAll(t, s, o)
			if i == 1 {
				if err := errors.Join(s.Sync(), s.index.db.Flush()); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustPin(t, s, objects[0])
		mustClose(t, s)
		damageEach(t, opts, objects)
	}
}

func damageEach(t *testing.T, golden Options, objects []covey.Object) {
	var files []string
	err := filepath.WalkDir(golden.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path[len(golden.Dir)+1:])
		}
		return err
	})
	if err != nil || len(files) < 8 || !slices.Contains(files, nameFormat) {
		t.Fatalf("files %v: %v", files, err)
	}
	served, missing := 0, 0
	for _, file := range files {
		for what, harm := range damages {
			opts := golden
			opts.Dir = t.TempDir()
			if err := os.CopyFS(opts.Dir, os.DirFS(golden.Dir)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(opts.Dir, file)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(path, info.Size()); err != nil {
				t.Fatal(err)
			}
			s, m := afterDamage(t, fmt.Sprintf("%s %s", file, what), opts, objects)
			served, missing = served+s, missing+m
		}
	}
	t.Logf("%d files, %d blocks served and %d missing", len(files), served, missing)
	if served == 0 || missing == 0 {
		t.Errorf("%d blocks served, %d missing: the damage proves nothing", served, missing)
	}
}

func afterDamage(t *testing.T, what string, opts Options, objects []covey.Object) (served, missing int) {
	t.Helper()
	began := time.Now()
	s, err := openTier(opts)
	if err != nil {
		t.Errorf("%s: open: %v", what, err)
		return 0, 0
	}
	defer func() { _ = s.Close() }() // it may have found the damage
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("%s: open took %v", what, d)
	}
	for _, o := range objects {
		for i := range o.Blocks() {
			h, err := s.Get(o.Block(i))
			if err != nil {
				missing++
				continue
			}
			h.Release()
			wantBlock(t, s, o.Block(i))
			served++
		}
	}
	if s.Usage().ReadOnly {
		return served, missing // the next start is a cold one
	}
	for _, o := range objects {
		putAll(t, s, o)
		for i := range o.Blocks() {
			wantBlock(t, s, o.Block(i))
		}
	}
	return served, missing
}
