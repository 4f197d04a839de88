package blockstore

import (
	"flag"
	"os"
	"path/filepath"
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

// A store that an earlier release left, never closed, opens and has everything in
// it. When this fails, the format changed: raise formatVersion, or read the old.
func TestGoldenStore(t *testing.T) {
	golden := filepath.Join("testdata", "v1")
	if *updateGolden {
		makeGolden(t, golden)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
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
	if n := len(dump(s)); n != 3 {
		t.Errorf("%d extents, want 3", n)
	}
	n := 0
	for range s.Objects() {
		n++
	}
	if u := s.Usage(); u.Objects != 4 || u.Whole != 3 || u.Blocks != 5 || n != 4 {
		t.Errorf("usage %+v with %d names", u, n)
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
