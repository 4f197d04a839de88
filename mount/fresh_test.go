package mount

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// TestStatIsAtMostOneAgeBehind has the kernel learn a name late in the life of its
// listing: the kernel's belief must end with that life, not an age later.
func TestStatIsAtMostOneAgeBehind(t *testing.T) {
	const age = 2 * time.Second
	for _, how := range []string{"look-up", "listing"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, "f")
			write := func(text string) {
				t.Helper()
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("old")
			src, err := origin.Open(t.Context(), dir, origin.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = src.Close() }()
			ds := dataset.New(src, dataset.Options{MaxAge: age})
			defer ds.Close()
			m := mountNames(t, ds)

			began := time.Now()
			for _, err := range ds.ReadDir(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(age * 3 / 4)
			if how == "listing" {
				if _, err := os.ReadDir(m); err != nil {
					t.Fatal(err)
				}
			}
			if st, err := os.Stat(filepath.Join(m, "f")); err != nil || st.Size() != 3 {
				t.Fatalf("before the change: %v, %v", st, err)
			}
			write("the new one")
			time.Sleep(time.Until(began.Add(age + 50*time.Millisecond)))
			if st, err := os.Stat(filepath.Join(m, "f")); err != nil || st.Size() != 11 {
				t.Errorf("one age after the listing, stat shows what was there before: %v, %v", st, err)
			}
		})
	}
}

// mountNames mounts a data set over an empty cache and returns where.
func mountNames(t *testing.T, names Names) string {
	t.Helper()
	needFuse(t)
	dir := t.TempDir()
	m, err := New(names, newFakeBlocks(t, newFakeNames()), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- m.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-result; err != nil { // the test's context has ended
			t.Error(err)
		}
	})
	<-m.Ready()
	return dir
}

// TestKernelIsToldOfChanges changes and removes files that the kernel believes in
// for an hour.
func TestKernelIsToldOfChanges(t *testing.T) {
	names := newFakeNames()
	names.opts.MaxAge = time.Hour
	names.file("d/f", "v1", 1000)
	names.file("d/g", "v1", 1000)
	m := start(t, names, Options{})
	old, err := os.Open(m.path("d/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	m.list(t, "d")
	waitFor(t, func() bool {
		names.mu.Lock()
		defer names.mu.Unlock()
		return names.watcher != nil
	})

	was, _ := names.current("d/f")
	names.file("d/f", "v2", 2000)
	now, _ := names.current("d/f")
	names.remove("d/g")
	if st, err := os.Stat(m.path("d/f")); err != nil || st.Size() != 1000 {
		t.Fatalf("the kernel did not believe what it was told: %v, %v", st, err)
	}
	names.watcher("d/f", was, now)
	names.watcher("d/g", was, dataset.Entry{})
	names.watcher("unheard/of", was, now)
	waitFor(t, func() bool {
		st, err := os.Stat(m.path("d/f"))
		return err == nil && st.Size() == 2000
	})
	waitFor(t, func() bool {
		_, err := os.Stat(m.path("d/g"))
		return os.IsNotExist(err)
	})
	if st, err := old.Stat(); err != nil || st.Size() != 1000 {
		t.Errorf("the handle of the old version: %v, %v", st, err)
	}
}
