package dataset_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// edited runs a test over each origin that can be written to, with listings that
// are believed for an hour.
func edited(t *testing.T, test func(t *testing.T, d *dataset.Dataset, isS3 bool)) {
	run := func(t *testing.T, url string, opts origin.Options, isS3 bool) {
		src, err := origin.Open(t.Context(), url, opts)
		if err != nil {
			t.Fatal(err)
		}
		d := dataset.New(src, dataset.Options{MaxAge: 3600e9})
		defer func() { d.Close(); _ = src.Close() }()
		test(t, d, isS3)
	}
	t.Run("posix", func(t *testing.T) { run(t, t.TempDir(), origin.Options{}, false) })
	t.Run("s3", func(t *testing.T) {
		s := origintest.StartS3(t)
		if err := s.CreateBucket("edit"); err != nil {
			t.Fatal(err)
		}
		run(t, s.URL("edit", "set"), s.Options(), true)
	})
}

func namesIn(t *testing.T, d *dataset.Dataset, dir string) (names []string) {
	t.Helper()
	for e, err := range d.ReadDir(t.Context(), dir) {
		if err != nil {
			t.Fatalf("list %q: %v", dir, err)
		}
		names = append(names, e.Name+":"+e.Kind.String())
	}
	return names
}

// TestOwnChangesShowAtOnce changes a data set and sees each change in lookups and
// listings that are otherwise believed for an hour.
func TestOwnChangesShowAtOnce(t *testing.T) {
	edited(t, func(t *testing.T, d *dataset.Dataset, isS3 bool) {
		ctx := t.Context()
		put := func(path, body string) dataset.Entry {
			t.Helper()
			e, err := d.Upload(ctx, path, strings.NewReader(body), int64(len(body)), origin.UploadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		put("old", "x")
		if got := namesIn(t, d, ""); !slices.Equal(got, []string{"old:file"}) {
			t.Fatalf("at first: %q", got)
		}
		if _, err := d.MakeDir(ctx, "dir"); err != nil {
			t.Fatal(err)
		}
		e := put("dir/f", "hello")
		put("old", "other")
		want := []string{"dir:directory", "old:file"}
		if got := namesIn(t, d, ""); !slices.Equal(got, want) {
			t.Errorf("after mkdir: %q, want %q", got, want)
		}
		if got, err := d.Lookup(ctx, "old"); err != nil || got.Size != 5 {
			t.Errorf("an overwritten file: %+v, %v", got, err)
		}
		if got, err := d.Lookup(ctx, "dir/f"); err != nil || got.Version != e.Version {
			t.Errorf("a new file: %+v, %v", got, err)
		}
		moved, err := d.Rename(ctx, "dir/f", e, "dir/g", false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Lookup(ctx, "dir/f"); !errors.Is(err, covey.ErrNotFound) {
			t.Errorf("the old name: %v", err)
		}
		if got, err := d.Lookup(ctx, "dir/g"); err != nil || got.Version != moved.Version {
			t.Errorf("the new name: %+v, %v", got, err)
		}
		if got := namesIn(t, d, "dir"); !slices.Equal(got, []string{"g:file"}) {
			t.Errorf("after the rename: %q", got)
		}
		err = d.RenameDir(ctx, "dir", "dir2")
		if isS3 {
			if !errors.Is(err, origin.ErrUnsupported) {
				t.Errorf("rename a directory: %v", err)
			}
		} else {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Lookup(ctx, "dir/g"); !errors.Is(err, covey.ErrNotFound) {
				t.Errorf("below the directory's old name: %v", err)
			}
			if err := d.RenameDir(ctx, "dir2", "dir"); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.RemoveDir(ctx, "dir"); !errors.Is(err, origin.ErrNotEmpty) {
			t.Errorf("remove a directory with a file: %v", err)
		}
		if err := d.Remove(ctx, "dir/g"); err != nil {
			t.Fatal(err)
		}
		if err := d.RemoveDir(ctx, "dir"); err != nil {
			t.Fatal(err)
		}
		if got := namesIn(t, d, ""); !slices.Equal(got, []string{"old:file"}) {
			t.Errorf("in the end: %q", got)
		}
	})
}

// TestReadOnlyDataset refuses what must not change.
func TestReadOnlyDataset(t *testing.T) {
	src, err := origin.Open(t.Context(), t.TempDir(), origin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	d := dataset.New(src, dataset.Options{Immutable: true})
	defer d.Close()
	if err := d.Writable(); !errors.Is(err, covey.ErrReadOnly) {
		t.Errorf("an immutable data set: %v", err)
	}
	if err := d.Remove(t.Context(), "x"); !errors.Is(err, covey.ErrReadOnly) {
		t.Errorf("remove: %v", err)
	}
	w := dataset.New(src, dataset.Options{})
	defer w.Close()
	for _, path := range []string{"", "../x", "a//b", strings.Repeat("x", 256), strings.Repeat("d/", 512) + "x"} {
		if _, err := w.Upload(t.Context(), path, strings.NewReader(""), 0, origin.UploadOptions{}); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("upload to %q: %v", path, err)
		}
	}
}
