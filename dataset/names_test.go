package dataset

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// shown is the rule of NAMES.md for one key by itself: the path it shows as, and
// whether as a directory.
func shown(key string) (path string, dir, ok bool) {
	path, dir = strings.CutSuffix(key, "/")
	for _, part := range strings.Split(path, "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 || strings.Contains(part, "\x00") {
			return "", false, false
		}
	}
	return path, dir, len(key) < 1024 || !dir && len(key) == 1024
}

// A key alone in a bucket shows as exactly what the rule says, in listings, in
// lookups by listing and in lookups by name.
func FuzzKeyToPath(f *testing.F) {
	for _, key := range []string{
		"a", "a/b", "/a", "a//b", "a/", "/", "//", ".", "..", "../x", "a/../b", "a/.", "./a", "a\x00b", "a\nb", "\xff/\xfe",
		strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("d/", 200) + "x",
		strings.Repeat("d/", 511) + "xx", strings.Repeat("d/", 511) + "xxx", strings.Repeat("d/", 512), "a-b/c.d/e",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if key == "" || len(key) > 2000 {
			return
		}
		b := newBucket(key)
		d := New(&origin.Source{Bucket: b, URL: "mem://bucket"}, Options{})
		defer d.Close()
		asking := New(&origin.Source{Bucket: b, URL: "mem://bucket"}, Options{MaxAge: -1})
		defer asking.Close()

		path, dir, ok := shown(key)
		var want []string
		if ok && !dir {
			want = []string{path}
		}
		var got []string
		for at, err := range d.Walk(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, at.Path)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("key %q shows %q, want %q", key, got, want)
		}
		for _, set := range []*Dataset{d, asking} {
			e, err := set.Lookup(t.Context(), strings.TrimSuffix(key, "/"))
			switch {
			case strings.TrimSuffix(key, "/") == "":
			case !ok:
				if !errors.Is(err, covey.ErrNotFound) {
					t.Fatalf("hidden key %q: %v, %v", key, e, err)
				}
			case err != nil || (e.Kind == Dir) != dir || e.Name != path[strings.LastIndexByte(path, '/')+1:]:
				t.Fatalf("key %q: %+v, %v", key, e, err)
			}
		}
	})
}
