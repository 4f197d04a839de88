package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/origin"
)

// TestWritesAgainstReference does the same random changes to a mount that may write
// and to a plain directory, and compares what both say and have. What a mount does
// not do (see SEMANTICS.md) is done to neither.
func TestWritesAgainstReference(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, served := range []bool{false, true} {
		rng := rand.New(rand.NewPCG(seed, 4))
		source, ref := t.TempDir(), t.TempDir()
		w := startWritable(t, source, origin.Options{}, served)
		steps := 1500
		if testing.Short() {
			steps = 300
		}
		type pair struct{ want, got *os.File }
		open := map[string]pair{}
		closeOne := func(name string) error {
			p, ok := open[name]
			if !ok {
				return nil
			}
			delete(open, name)
			return errors.Join(p.want.Close(), p.got.Close())
		}
		pick := func() string {
			name := fmt.Sprint("f", rng.IntN(12))
			if rng.IntN(2) == 0 {
				name = filepath.Join(fmt.Sprint("d", rng.IntN(3)), name)
			}
			return name
		}
		for step := range steps {
			name := pick()
			fail := func(what string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d, served %v, step %d, %s: %s", seed, served, step, name, fmt.Sprintf(what, args...))
			}
			both := func(what string, want, got error) {
				t.Helper()
				var a, b unix.Errno
				errors.As(want, &a)
				errors.As(got, &b)
				if a != b || (want == nil) != (got == nil) {
					fail("%s: %v, want %v", what, got, want)
				}
			}
			wantPath, gotPath := filepath.Join(ref, name), w.path(name)
			switch op := rng.IntN(14); {
			case op < 3: // a file at once, over whatever is there
				both("close", nil, closeOne(name))
				data := noise(rng.IntN(200_000), rng.Uint64())
				both("write file", os.WriteFile(wantPath, data, 0o644), writeAgain(t, gotPath, data))
			case op < 6: // a file in pieces, at any offset
				p, ok := open[name]
				if !ok {
					var wantErr, gotErr error
					p.want, wantErr = os.OpenFile(wantPath, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
					p.got, gotErr = os.OpenFile(gotPath, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
					both("create", wantErr, gotErr)
					if wantErr != nil {
						break
					}
					open[name] = p
				}
				data, off := noise(1+rng.IntN(50_000), rng.Uint64()), rng.Int64N(300_000)
				_, wantErr := p.want.WriteAt(data, off)
				_, gotErr := p.got.WriteAt(data, off)
				both("pwrite", wantErr, gotErr)
				if rng.IntN(4) == 0 {
					size := rng.Int64N(200_000)
					both("ftruncate", p.want.Truncate(size), p.got.Truncate(size))
				}
			case op < 7:
				both("close", nil, closeOne(name))
			case op < 9:
				want, wantErr := os.ReadFile(wantPath)
				got, gotErr := os.ReadFile(gotPath)
				both("read", wantErr, gotErr)
				if !bytes.Equal(want, got) {
					fail("read %d bytes, want %d", len(got), len(want))
				}
			case op < 10:
				both("unlink", unix.Unlink(wantPath), unix.Unlink(gotPath))
				both("close", nil, closeOne(name))
			case op < 12:
				to := pick()
				if _, busy := open[to]; busy || to == name {
					break
				}
				both("rename", unix.Rename(wantPath, filepath.Join(ref, to)), unix.Rename(gotPath, w.path(to)))
				if p, ok := open[name]; ok {
					delete(open, name)
					open[to] = p
				}
			case op < 13:
				dir := fmt.Sprint("d", rng.IntN(3))
				if rng.IntN(2) == 0 {
					both("mkdir", unix.Mkdir(filepath.Join(ref, dir), 0o755), unix.Mkdir(w.path(dir), 0o755))
				} else {
					both("rmdir", unix.Rmdir(filepath.Join(ref, dir)), unix.Rmdir(w.path(dir)))
				}
			default:
				both("tree", nil, sameTree(ref, w.dir))
			}
		}
		for name := range open {
			if err := closeOne(name); err != nil {
				t.Error(err)
			}
		}
		w.quiet()
		if err := sameTree(ref, source); err != nil {
			t.Errorf("seed %d, served %v: the origin in the end: %v", seed, served, err)
		}
	}
}

// sameTree compares names, kinds, sizes and bytes.
func sameTree(want, got string) error {
	read := func(root string) (map[string]string, error) {
		all := map[string]string{}
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(root, path)
			if d.IsDir() {
				all[rel] = "directory"
				return nil
			}
			data, err := os.ReadFile(path)
			all[rel] = "file " + string(data)
			return err
		})
		return all, err
	}
	a, errA := read(want)
	b, errB := read(got)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	for name := range a {
		if a[name] != b[name] {
			return fmt.Errorf("%s is %.20q of %d bytes, want %.20q of %d", name, b[name], len(b[name]), a[name], len(a[name]))
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			return fmt.Errorf("%s is there, %.20q of %d bytes", name, b[name], len(b[name]))
		}
	}
	return nil
}

// writeAgain writes a file, once more after ESTALE: the kernel looks a name up twice
// in one open, and a name that changes in between both times is ESTALE to the program
// (SEMANTICS.md).
func writeAgain(t *testing.T, path string, data []byte) error {
	err := os.WriteFile(path, data, 0o644)
	if errors.Is(err, unix.ESTALE) {
		t.Logf("%s: %v, once more", path, err)
		err = os.WriteFile(path, data, 0o644)
	}
	return err
}
