package origin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// editors runs a test over each driver that can be written to, on a place of its
// own.
func editors(t *testing.T, test func(t *testing.T, s *origin.Source, isS3 bool)) {
	t.Run("posix", func(t *testing.T) { test(t, openSource(t, t.TempDir(), origin.Options{}), false) })
	t.Run("s3", func(t *testing.T) {
		server := origintest.StartS3(t)
		if err := server.CreateBucket("edit"); err != nil {
			t.Fatal(err)
		}
		test(t, openSource(t, server.URL("edit", ""), server.Options()), true)
	})
}

func random(n int) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(p)
	return p
}

func readBack(t *testing.T, s *origin.Source, info origin.Info) []byte {
	t.Helper()
	if info.Size == 0 {
		return nil
	}
	rc, err := s.Bucket.Get(t.Context(), info.Key, info.Version, covey.Range{Len: info.Size})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	p, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEditorUpload(t *testing.T) {
	editors(t, func(t *testing.T, s *origin.Source, _ bool) {
		// Empty, one request, and three parts, the last of them short.
		for _, size := range []int{0, 1, 5 << 20, 40<<20 + 3} {
			body := random(size)
			info, err := s.Editor.Upload(t.Context(), "dir/up", bytes.NewReader(body), int64(size), origin.UploadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			now, err := s.Bucket.Stat(t.Context(), "dir/up")
			if err != nil || now.Version != info.Version || now.Size != int64(size) {
				t.Fatalf("%d bytes: uploaded %+v, stat %+v, %v", size, info, now, err)
			}
			if !bytes.Equal(readBack(t, s, now), body) {
				t.Fatalf("%d bytes: other bytes came back", size)
			}
		}
		for _, size := range []int{3, 20 << 20} {
			body := bytes.NewReader(random(size))
			o := origin.UploadOptions{IfAbsent: true}
			if _, err := s.Editor.Upload(t.Context(), "dir/up", body, int64(size), o); !errors.Is(err, origin.ErrExists) {
				t.Errorf("upload of %d bytes if absent over an object: %v", size, err)
			}
			if _, err := s.Editor.Upload(t.Context(), strings.Repeat("n", 1+size%5), body, int64(size), o); err != nil {
				t.Errorf("upload of %d bytes if absent: %v", size, err)
			}
		}
	})
}

// TestEditorUploadEnds leaves nothing visible when the body cannot be read or the
// caller gives up.
func TestEditorUploadEnds(t *testing.T) {
	editors(t, func(t *testing.T, s *origin.Source, _ bool) {
		for _, size := range []int64{1 << 20, 48 << 20} {
			short := bytes.NewReader(random(int(size - 1)))
			if _, err := s.Editor.Upload(t.Context(), "short", short, size, origin.UploadOptions{}); !errors.Is(err, covey.ErrInvalid) {
				t.Errorf("short body of %d: %v", size, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cut := readerAtFunc(func(p []byte, off int64) (int, error) {
				if off >= size/2 {
					cancel()
				}
				return len(p), nil
			})
			if _, err := s.Editor.Upload(ctx, "cut", cut, size, origin.UploadOptions{}); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled upload of %d: %v", size, err)
			}
		}
		for _, key := range []string{"short", "cut"} {
			if info, err := s.Bucket.Stat(t.Context(), key); !errors.Is(err, covey.ErrNotFound) {
				t.Errorf("%s is there: %+v, %v", key, info, err)
			}
		}
		page, err := s.Bucket.List(t.Context(), origin.ListRequest{})
		if err != nil || len(page.Objects) > 0 {
			t.Errorf("left: %+v, %v", page.Objects, err)
		}
	})
}

type readerAtFunc func(p []byte, off int64) (int, error)

func (f readerAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestEditorMove(t *testing.T) {
	editors(t, func(t *testing.T, s *origin.Source, isS3 bool) {
		ctx, e := t.Context(), s.Editor
		put := func(key, body string) origin.Info {
			t.Helper()
			info, err := e.Upload(ctx, key, strings.NewReader(body), int64(len(body)), origin.UploadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return info
		}
		a, b := put("odd a+%41 ü", "first"), put("b", "second one")
		if _, err := e.Move(ctx, a.Key, a.Version, "b", true); !errors.Is(err, origin.ErrExists) {
			t.Errorf("move onto an object, no replace: %v", err)
		}
		if _, err := e.Move(ctx, a.Key, b.Version, "c", false); !errors.Is(err, covey.ErrStale) {
			t.Errorf("move of another version: %v", err)
		}
		moved, err := e.Move(ctx, a.Key, a.Version, "b", false)
		if err != nil || string(readBack(t, s, moved)) != "first" {
			t.Fatalf("move onto an object: %+v, %v", moved, err)
		}
		if now, err := s.Bucket.Stat(ctx, "b"); err != nil || now.Version != moved.Version {
			t.Errorf("moved %+v, stat %+v, %v", moved, now, err)
		}
		if _, err := s.Bucket.Stat(ctx, a.Key); !errors.Is(err, covey.ErrNotFound) {
			t.Errorf("the old key: %v", err)
		}
		if moved, err = e.Move(ctx, "b", moved.Version, "new", true); err != nil || string(readBack(t, s, moved)) != "first" {
			t.Errorf("move, no replace: %+v, %v", moved, err)
		}
		if _, err := e.Move(ctx, "b", b.Version, "x", false); !errors.Is(err, covey.ErrNotFound) {
			t.Errorf("move of what is gone: %v", err)
		}
		put("d/x", "in a directory")
		err = e.MoveDir(ctx, "d", "d2")
		if isS3 != errors.Is(err, origin.ErrUnsupported) || !isS3 && err != nil {
			t.Errorf("move a directory: %v", err)
		}
	})
}

func TestEditorDirs(t *testing.T) {
	editors(t, func(t *testing.T, s *origin.Source, _ bool) {
		ctx, e := t.Context(), s.Editor
		if err := e.MakeDir(ctx, "d"); err != nil {
			t.Fatal(err)
		}
		page, err := s.Bucket.List(ctx, origin.ListRequest{Delimiter: "/"})
		if err != nil || len(page.Prefixes) != 1 || page.Prefixes[0] != "d/" {
			t.Errorf("list: %+v, %v", page, err)
		}
		if _, err := e.Upload(ctx, "d/f", strings.NewReader("x"), 1, origin.UploadOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := e.RemoveDir(ctx, "d"); !errors.Is(err, origin.ErrNotEmpty) {
			t.Errorf("remove a directory with a file: %v", err)
		}
		if err := e.Delete(ctx, "d/f"); err != nil {
			t.Fatal(err)
		}
		if err := e.RemoveDir(ctx, "d"); err != nil {
			t.Fatal(err)
		}
		if page, err = s.Bucket.List(ctx, origin.ListRequest{Delimiter: "/"}); err != nil || len(page.Prefixes) != 0 {
			t.Errorf("list after the removal: %+v, %v", page, err)
		}
	})
}

// TestEditorRetries rides out answers of a busy server, and counts them.
func TestEditorRetries(t *testing.T) {
	server := origintest.StartS3(t)
	if err := server.CreateBucket("edit"); err != nil {
		t.Fatal(err)
	}
	fault := origintest.StartFault(t, server)
	opts := server.Options()
	opts.Metrics = origin.NewMetrics(nil)
	s := openSource(t, fault.URL("edit", ""), opts)
	fault.Script("put", origintest.Answer(503, "SlowDown"), nil, origintest.Answer(500, "InternalError"))
	body := random(33 << 20)
	info, err := s.Editor.Upload(t.Context(), "f", bytes.NewReader(body), int64(len(body)), origin.UploadOptions{})
	if err != nil || !bytes.Equal(readBack(t, s, info), body) {
		t.Fatalf("upload through faults: %+v, %v", info, err)
	}
	// Begin, three parts, complete; and two that failed.
	if n := opts.Metrics.Requests()["put"]; n != 7 {
		t.Errorf("%d puts counted, want 7", n)
	}
}

// TestEditorMode keeps permission bits where the origin has them.
func TestEditorMode(t *testing.T) {
	dir := t.TempDir()
	s := openSource(t, dir, origin.Options{})
	if _, err := s.Editor.Upload(t.Context(), "x", strings.NewReader("#!"), 2, origin.UploadOptions{Mode: 0o751}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "x")); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
