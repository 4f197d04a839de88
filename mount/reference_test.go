package mount

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// reference is a plain directory with the same content as a data set.
type reference struct {
	dir         string
	files, dirs []string
}

func newReference(t *testing.T, rng *rand.Rand, names *fakeNames) *reference {
	r := &reference{dir: t.TempDir(), dirs: []string{""}}
	for i := range 12 {
		parent := r.dirs[rng.IntN(len(r.dirs))]
		dir := path.Join(parent, fmt.Sprintf("dir %d", i))
		names.file(path.Join(dir, "first"), "v1", 1)
		r.dirs = append(r.dirs, dir)
		r.add(t, names, path.Join(dir, "first"), "v1", 1)
	}
	for i := range 120 {
		size := rng.Int64N(1 << (4 + rng.IntN(16)))
		r.add(t, names, path.Join(r.dirs[rng.IntN(len(r.dirs))], fmt.Sprintf("file-%d", i)), "v1", size)
	}
	return r
}

func (r *reference) add(t *testing.T, names *fakeNames, name, version string, size int64) {
	t.Helper()
	names.file(name, version, size)
	full := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	// A new file, not new bytes in the old one: whoever has it open keeps it.
	_ = os.Remove(full)
	if err := os.WriteFile(full, wanted(name, version, size), 0o444); err != nil {
		t.Fatal(err)
	}
	if e, ok := names.current(name); ok {
		if err := os.Chtimes(full, e.ModTime, e.ModTime); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Contains(r.files, name) {
		r.files = append(r.files, name)
	}
}

// pair is one file, open in the reference and through the mount.
type pair struct{ want, got *os.File }

// TestAgainstReference does the same random operations to a mount and to a plain
// directory with the same files, some of which change meanwhile. Every result
// must be the same, but that a read of a served file that has changed may be
// ESTALE.
func TestAgainstReference(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	names := newFakeNames()
	ref := newReference(t, rng, names)
	m := start(t, names, Options{CompleteAtOpen: 2 * testBlock})
	open := map[string]*pair{}
	changed := map[string]bool{} // since its pair was opened
	closePair := func(name string) {
		if p := open[name]; p != nil {
			p.want.Close()
			p.got.Close()
			delete(open, name)
		}
	}
	defer func() {
		for name := range open {
			closePair(name)
		}
	}()
	steps := 2500
	if testing.Short() {
		steps = 500
	}
	for step := range steps {
		name := ref.files[rng.IntN(len(ref.files))]
		native, ours := filepath.Join(ref.dir, name), m.path(name)
		fail := func(what string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, step %d, %s: %s", seed, step, name, fmt.Sprintf(what, args...))
		}
		switch op := rng.IntN(20); {
		case op < 4: // open, read, close
			want, _ := os.ReadFile(native)
			if got, err := os.ReadFile(ours); err != nil || !bytes.Equal(got, want) {
				fail("read %d bytes, %v; want %d", len(got), err, len(want))
			}
		case op < 10: // pread on a handle that stays open
			p := open[name]
			if p == nil {
				p = &pair{}
				var err, err2 error
				p.want, err = os.Open(native)
				p.got, err2 = os.Open(ours)
				if err != nil || err2 != nil {
					fail("open: %v, %v", err, err2)
				}
				open[name], changed[name] = p, false
			}
			off, n := rng.Int64N(1<<19), 1+rng.IntN(200_000)
			a, b := make([]byte, n), make([]byte, n)
			na, erra := p.want.ReadAt(a, off)
			nb, errb := p.got.ReadAt(b, off)
			stale := isErrno(errb, 116) && changed[name]
			if !stale && (na != nb || (erra == io.EOF) != (errb == io.EOF) || !bytes.Equal(a[:na], b[:nb])) {
				fail("pread %d at %d: %d, %v; want %d, %v", n, off, nb, errb, na, erra)
			}
		case op < 11:
			closePair(name)
		case op < 14: // stat, of names that exist and that do not
			if rng.IntN(3) == 0 {
				name += "x"
			}
			a, erra := os.Lstat(filepath.Join(ref.dir, name))
			b, errb := os.Lstat(m.path(name))
			if os.IsNotExist(erra) != os.IsNotExist(errb) {
				fail("stat: %v, want %v", errb, erra)
			}
			if erra == nil && (errb != nil || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime()) || a.Mode() != b.Mode()) {
				fail("stat: %v, %v", b, errb)
			}
		case op < 17: // list
			dir := ref.dirs[rng.IntN(len(ref.dirs))]
			a, _ := os.ReadDir(filepath.Join(ref.dir, dir))
			b, err := os.ReadDir(m.path(dir))
			if err != nil || len(a) != len(b) {
				fail("list %q: %d entries, %v; want %d", dir, len(b), err, len(a))
			}
			for i := range a {
				if a[i].Name() != b[i].Name() || a[i].Type() != b[i].Type() {
					fail("list %q: entry %d is %v, want %v", dir, i, b[i], a[i])
				}
			}
		case op < 18: // the origin changes
			ref.add(t, names, name, fmt.Sprintf("v-%d", step), rng.Int64N(1<<19))
			changed[name] = true
		case op < 19: // the cache loses the object
			e, _ := names.current(name)
			m.blocks.evict(names.Object(name, e))
		default: // or gets it whole by somebody else's reads
			m.blocks.fill(t, name)
		}
	}
	var native, ours []string
	for _, name := range ref.files {
		native, ours = append(native, filepath.Join(ref.dir, name)), append(ours, m.path(name))
	}
	if !slices.Equal(mapped(t, ours...), mapped(t, native...)) {
		t.Fatalf("seed %d: mapped files differ", seed)
	}
	s := m.Status()
	t.Logf("passed through %d, served %d, reads %d", s.OpenPassthrough, s.OpenDaemon, s.Reads)
}
