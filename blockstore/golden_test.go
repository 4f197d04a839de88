package blockstore

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
)

var updateGolden = flag.Bool("update", false, "make the golden store anew")

// goldenObjects are what the golden store holds, whole but for the last block of
// the last one.
var goldenObjects = []covey.Object{
	object("empty", 0), object("byte", 1), object("dir/two blocks", testBlock+1), object("part", 3*testBlock),
}

// goldenCoded are what the store of version 2 holds besides, one compressed, one
// encrypted, one both.
var goldenCoded = []covey.Object{object("text/zstd", testBlock+9), object("sealed", 100), object("text/sealed", testBlock)}

// Stores that earlier releases left, never closed, open and have everything in
// them. When this fails, the format changed: raise formatVersion, or read the old.
func TestGoldenStore(t *testing.T) {
	golden := filepath.Join("testdata", "v"+strconv.Itoa(formatVersion))
	if *updateGolden {
		makeGolden(t, golden)
	}
	t.Run("v1", func(t *testing.T) { checkGolden(t, filepath.Join("testdata", "v1"), nil) })
	t.Run("v2", func(t *testing.T) { checkGolden(t, filepath.Join("testdata", "v2"), goldenCoded) })
}

func checkGolden(t *testing.T, golden string, coded []covey.Object) {
	opts := Options{Dir: t.TempDir(), Budget: 1 << 30, Keys: testKeys(t, 9, 1)}
	if err := os.CopyFS(opts.Dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time as this release left it
		s := mustOpen(t, opts)
		checkGoldenRaw(t, s)
		blocks := 5
		for _, o := range coded {
			for j := range o.Blocks() {
				wantBlock(t, s, o.Block(j))
				blocks++
			}
			if f, err := s.OpenWhole(o); err == nil {
				f.Close()
				t.Errorf("%s was given away", o.Key)
			}
		}
		n := 0
		for range s.Objects() {
			n++
		}
		if u := s.Usage(); u.Objects != 4+len(coded) || u.Whole != 3+len(coded) || u.Blocks != blocks || n != u.Objects {
			t.Errorf("usage %+v with %d names", u, n)
		}
		if n := len(dump(s)); n != 3+len(coded) {
			t.Errorf("%d extents, want 3 and %d", n, len(coded))
		}
		mustClose(t, s)
	}
}

func checkGoldenRaw(t *testing.T, s *tier) {
	for i, o := range goldenObjects {
		last := i == len(goldenObjects)-1
		for j := range o.Blocks() {
			if last && j == o.Blocks()-1 {
				wantMissing(t, s, o.Block(j))
			} else {
				wantBlock(t, s, o.Block(j))
			}
		}
		if !last {
			wantWhole(t, s, o)
		}
	}
}

func makeGolden(t *testing.T, golden string) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
	for _, o := range goldenObjects {
		if o.Size == 0 {
			if err := s.PutEmpty(o); err != nil {
				t.Fatal(err)
			}
		}
		for j := range o.Blocks() {
			if o.Key != "part" || j != o.Blocks()-1 {
				put(t, s, o.Block(j))
			}
		}
		// Some of it in tables, some of it in the log only.
		if o.Key == "byte" {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := s.index.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	for i, how := range []Options{{Compress: compression(t, "zstd")}, {Keys: testKeys(t, 1)}, {Compress: compression(t, "zstd"), Keys: testKeys(t, 1)}} {
		how.Dir, how.Budget = dir, 1<<30
		s = mustOpen(t, how)
		putAll(t, s, goldenCoded[i])
		if i < 2 {
			mustClose(t, s)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(golden, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{nameLock, nameIndex + "/LOCK"} {
		if err := os.Remove(filepath.Join(golden, filepath.FromSlash(n))); err != nil && !strings.Contains(err.Error(), "no such") {
			t.Fatal(err)
		}
	}
}
