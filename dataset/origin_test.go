package dataset_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// tree is what both real origins hold: more than one page in one directory,
// names on both sides of the slash in byte order, odd bytes.
func tree() map[string]int {
	files := map[string]int{
		"a.txt": 1, "a-1": 2, "a0": 3, "a/x": 4, "a/b/c": 5, "empty": 0,
		"odd/new\nline": 6, "odd/space plus+%41&": 7, "odd/" + strings.Repeat("n", 255): 8,
		"odd/Case": 9, "odd/case": 10, "deep/" + strings.Repeat("d/", 100) + "x": 11,
		"large": 17 * int(covey.MinBlockSize),
	}
	for i := range 1200 {
		files[fmt.Sprintf("shard/train-%05d-of-01200", i)] = i%3 + 1
	}
	files["shard/train/x"] = 12
	return files
}

// check compares everything that a data set shows with the tree.
func check(t *testing.T, d *dataset.Dataset, files map[string]int) {
	t.Helper()
	got := map[string]dataset.Entry{}
	var last string
	for f, err := range d.Walk(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if f.Path <= last {
			t.Fatalf("%q behind %q", f.Path, last)
		}
		last = f.Path
		if f.Entry.Kind == dataset.File {
			got[f.Path] = f.Entry
		}
	}
	for path, size := range files {
		e, ok := got[path]
		if !ok || int(e.Size) != size || e.Version == "" || e.ModTime.IsZero() {
			t.Errorf("%q: %+v, want %d bytes", path, e, size)
		}
		if size == 0 {
			continue
		}
		x, slot, err := d.Extent(t.Context(), path, e, 0)
		if err != nil || x.Blocks[slot] != d.Object(path, e).Block(0) {
			t.Errorf("extent of %q: %v", path, err)
		}
	}
	if len(got) != len(files) {
		t.Errorf("%d files shown, want %d", len(got), len(files))
	}
	var top []string
	for e, err := range d.ReadDir(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		top = append(top, e.Name)
	}
	if !slices.IsSorted(top) {
		t.Errorf("root is not in the order of the names: %q", top)
	}
	for _, path := range []string{"nope", "a/nope", "a.txt/x", "nope/x/y", "../x", "a//x"} {
		if e, err := d.Lookup(t.Context(), path); !errors.Is(err, covey.ErrNotFound) {
			t.Errorf("lookup %q: %+v, %v", path, e, err)
		}
	}
	for _, err := range d.ReadDir(t.Context(), "nope") {
		if !errors.Is(err, covey.ErrNotFound) {
			t.Errorf("a directory that is not there: %v", err)
		}
	}
}

// checkChange overwrites and deletes a file and sees both, by listing and by
// name.
func checkChange(t *testing.T, d *dataset.Dataset) {
	t.Helper()
	ctx := t.Context()
	asking := dataset.New(&origin.Source{Bucket: d.Bucket(), Prefix: d.Prefix(), URL: d.Name()}, dataset.Options{MaxAge: -1})
	defer asking.Close()
	for _, path := range []string{"a/x", "shard/train-00007-of-01200"} {
		old, err := d.Lookup(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		key := d.Object(path, old).Key
		info, err := d.Bucket().Put(ctx, key, strings.NewReader("changed"), 7)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := d.Lookup(ctx, path); err != nil || e.Version != old.Version {
			t.Errorf("%q before its age: %+v, %v", path, e, err)
		}
		d.Invalidate(path)
		for _, set := range []*dataset.Dataset{asking, d} {
			if e, err := set.Lookup(ctx, path); err != nil || e.Version != info.Version || e.Size != 7 || e.Version == old.Version {
				t.Errorf("%q after a change: %+v, %v; want version %q", path, e, err, info.Version)
			}
		}
		if err := d.Bucket().Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		d.Invalidate(path)
		for _, set := range []*dataset.Dataset{asking, d} {
			if e, err := set.Lookup(ctx, path); !errors.Is(err, covey.ErrNotFound) {
				t.Errorf("%q after it was deleted: %+v, %v", path, e, err)
			}
		}
	}
	if e, err := asking.Lookup(ctx, "deep/d/d"); err != nil || e.Kind != dataset.Dir {
		t.Errorf("a directory by name: %+v, %v", e, err)
	}
}

func add(t *testing.T, opts origin.Options, url string) *dataset.Dataset {
	t.Helper()
	table := dataset.NewTable(func(ctx context.Context, url string) (*origin.Source, error) {
		return origin.Open(ctx, url, opts)
	}, dataset.Options{BlockSize: covey.MinBlockSize})
	t.Cleanup(table.Close)
	d, err := table.Add(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPosix(t *testing.T) {
	dir := t.TempDir()
	files := tree()
	files["odd/\xff\xfe"] = 13
	for name, size := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, size), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"void", "many/void"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	d := add(t, origin.Options{}, dir)
	check(t, d, files)

	if e, err := d.Lookup(t.Context(), "a.txt"); err != nil || e.Mode != 0o640 {
		t.Errorf("permissions: %v, %v", e.Mode, err)
	}
	if e, err := d.Lookup(t.Context(), "link"); err != nil || e.Kind != dataset.Symlink || e.Link != "../../etc/passwd" {
		t.Errorf("link: %+v, %v", e, err)
	}
	if e, err := d.Lookup(t.Context(), "link/x"); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("below a link: %+v, %v", e, err)
	}
	asking := dataset.New(&origin.Source{Bucket: d.Bucket(), URL: d.Name()}, dataset.Options{MaxAge: -1})
	defer asking.Close()
	for _, sub := range []string{"void", "many/void"} {
		for _, set := range []*dataset.Dataset{d, asking} {
			if e, err := set.Lookup(t.Context(), sub); err != nil || e.Kind != dataset.Dir {
				t.Errorf("empty directory %s: %+v, %v", sub, e, err)
			}
			for e, err := range set.ReadDir(t.Context(), sub) {
				t.Errorf("in an empty directory %s: %+v, %v", sub, e, err)
			}
		}
	}
	checkChange(t, d)
}

func TestS3(t *testing.T) {
	s3 := origintest.StartS3(t)
	if err := s3.CreateBucket("data"); err != nil {
		t.Fatal(err)
	}
	d := add(t, s3.Options(), s3.URL("data", "set/"))
	files := tree()
	for name, size := range files {
		key := d.Object(name, dataset.Entry{}).Key
		if _, err := d.Bucket().Put(t.Context(), key, bytes.NewReader(make([]byte, size)), int64(size)); err != nil {
			t.Fatal(err)
		}
	}
	check(t, d, files)
	checkChange(t, d)

	// fault 28
	if err := s3.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if e, err := d.Lookup(ctx, "a.txt"); err != nil || e.Size != 1 {
		t.Errorf("known, while the server is down: %+v, %v", e, err)
	}
}
