package mount

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// TestFailedUpload makes close fail, and keeps the bytes.
func TestFailedUpload(t *testing.T) { // fault 18, 26
	s := origintest.StartS3(t)
	if err := s.CreateBucket("rw-set"); err != nil {
		t.Fatal(err)
	}
	fault := origintest.StartFault(t, s)
	opts := s.Options()
	opts.Retry = origin.Retry{Tries: 2, Base: time.Millisecond}
	w := startWritable(t, fault.URL("rw-set", ""), opts, false)
	for _, c := range []struct {
		act  origintest.Act
		want syscall.Errno
	}{
		{origintest.Answer(503, "SlowDown"), unix.EIO},
		{origintest.Answer(403, "AccessDenied"), unix.EACCES},
	} {
		f, err := os.Create(w.path("f"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteString("precious")
		fault.Always("put", c.act)
		if err := f.Close(); !isErrno(err, c.want) {
			t.Fatalf("close: %v, want %v", err, c.want)
		}
		fault.Always("put", nil)
		waitFor(t, func() bool {
			list := w.staging.List()
			return len(list) == 1 && list[0].State == StagedFailed && w.staging.Retry("?", nil) != nil && !draftsLeft(w)
		})
		left := w.staging.List()[0]
		if left.Path != "f" || left.Size != 8 || left.Error == "" || left.Source != w.ds.Name() {
			t.Errorf("in staging: %+v", left)
		}
		if _, err := os.Lstat(w.path("f")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the name of what was not uploaded: %v", err)
		}
		waitFor(t, func() bool {
			err = w.staging.Retry(left.ID, func(i Staged, f *os.File) error {
				_, err := w.ds.Upload(t.Context(), i.Path, f, i.Size, origin.UploadOptions{})
				return err
			})
			return !errors.Is(err, ErrStagedBusy) // its last handle may still be on its way out
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(w.path("f")); err != nil || string(got) != "precious" {
			t.Errorf("after the second try: %q, %v", got, err)
		}
		if len(w.staging.List()) != 0 {
			t.Errorf("still staged: %+v", w.staging.List())
		}
		if err := os.Remove(w.path("f")); err != nil {
			t.Fatal(err)
		}
	}
	w.end()
	if !strings.Contains(w.log.String(), "upload failed") {
		t.Error("the log says nothing of it")
	}
}

func draftsLeft(w *written) bool {
	w.tree.writes.mu.Lock()
	defer w.tree.writes.mu.Unlock()
	return len(w.tree.writes.byVersion) > 0
}

// TestStagingSurvives ends a mount over a file that is being written and finds it
// in staging afterwards, as a later agent would.
func TestStagingSurvives(t *testing.T) {
	w := startWritable(t, t.TempDir(), origin.Options{}, false)
	f, err := os.Create(w.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("half"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	w.end()
	s, err := OpenStaging(w.staging.dir, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	list := s.List()
	if len(list) != 1 || list[0].State != StagedInterrupted || list[0].Path != "f" || list[0].Size != 4 {
		t.Fatalf("staged: %+v", list)
	}
	if err := s.Drop(list[0].ID); err != nil {
		t.Fatal(err)
	}
	if names, _ := os.ReadDir(w.staging.dir); len(names) != 0 {
		t.Errorf("left in the directory: %v", names)
	}
}

// TestStagingFull refuses new files and, where the daemon writes, new bytes.
func TestStagingFull(t *testing.T) {
	w := startWritable(t, t.TempDir(), origin.Options{}, true)
	limit := func(n int64) {
		w.staging.mu.Lock()
		defer w.staging.mu.Unlock()
		w.staging.limit, w.staging.counted = n, time.Time{}
	}
	limit(1 << 20)
	f, err := os.Create(w.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for err == nil && n < 64 {
		_, err = f.Write(make([]byte, 256<<10))
		n++
	}
	if !isErrno(err, unix.ENOSPC) || n < 3 {
		t.Fatalf("write %d: %v, want ENOSPC", n, err)
	}
	limit(1)
	if _, err := os.Create(w.path("g")); !isErrno(err, unix.ENOSPC) {
		t.Errorf("create: %v, want ENOSPC", err)
	}
}
