package origin_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// tree makes a directory with the given files below it.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		path := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// names lists everything in pages of limit.
func names(t *testing.T, b origin.Bucket, req origin.ListRequest) []string {
	t.Helper()
	var all []string
	for {
		page, err := b.List(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var some []string
		for _, o := range page.Objects {
			some = append(some, o.Key)
		}
		some = append(some, page.Prefixes...)
		slices.Sort(some)
		all = append(all, some...)
		if page.Next == "" {
			return all
		}
		req.Token = page.Next
	}
}

func TestPosixNothingLeavesTheRoot(t *testing.T) {
	outside := tree(t, "secret")
	dir := tree(t, "sub/inside", "file")
	for link, target := range map[string]string{
		"out": outside, "up": "../..", "in": "sub", "file-link": "file", "loop": "loop", "dangling": "nowhere",
		"sub/abs": "/etc/passwd",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	b := openSource(t, dir, origin.Options{}).Bucket
	for key, kind := range map[string]error{
		"../" + filepath.Base(outside) + "/secret": covey.ErrInvalid,
		"..": covey.ErrInvalid, "/etc/passwd": covey.ErrInvalid, "sub/../file": covey.ErrInvalid,
		"sub//inside": covey.ErrInvalid, "./file": covey.ErrInvalid, "file\x00": covey.ErrInvalid,
		"out/secret": covey.ErrNotFound, "in/inside": covey.ErrNotFound, "up/x": covey.ErrNotFound,
		"loop/x": covey.ErrNotFound, strings.Repeat("n", 256): covey.ErrNotFound,
	} {
		if _, err := b.Stat(t.Context(), key); !errors.Is(err, kind) {
			t.Errorf("stat %q: %v", key, err)
		}
		if _, err := b.Get(t.Context(), key, "v", covey.Range{Len: 1}); !errors.Is(err, kind) {
			t.Errorf("get %q: %v", key, err)
		}
		if _, err := b.Put(t.Context(), key, strings.NewReader("x"), 1); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("put %q: %v", key, err)
		}
		if err := b.Delete(t.Context(), key); err != nil && !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("delete %q: %v", key, err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
		t.Error(err)
	}
	for _, prefix := range []string{"out/", "in/", "up/", "loop/", "../", "/", "sub/../"} {
		if got := names(t, b, origin.ListRequest{Prefix: prefix}); len(got) != 0 {
			t.Errorf("below %q: %q", prefix, got)
		}
	}
	want := []string{"dangling", "file", "file-link", "in", "loop", "out", "sub/abs", "sub/inside", "up"}
	if got := names(t, b, origin.ListRequest{}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	info, err := b.Stat(t.Context(), "sub/abs")
	if err != nil || info.Link != "/etc/passwd" {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := b.Get(t.Context(), "sub/abs", info.Version, covey.Range{Len: 1}); !errors.Is(err, covey.ErrNotFound) {
		t.Error(err)
	}
}

func TestPosixListing(t *testing.T) {
	dir := tree(t, "file", "bad\xffname", "d/x")
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "empty"), 0o755),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644),
		syscall.Mknod(filepath.Join(dir, "socket"), syscall.S_IFSOCK|0o644, 0),
		os.WriteFile(filepath.Join(dir, ".covey-upload-abandoned"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b := openSource(t, dir, origin.Options{}).Bucket
	want := []string{".hidden", "bad\xffname", "d/", "empty/", "file"}
	if got := names(t, b, origin.ListRequest{Delimiter: "/"}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	want = []string{".hidden", "bad\xffname", "d/x", "file"}
	if got := names(t, b, origin.ListRequest{}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := b.Stat(t.Context(), "fifo"); !errors.Is(err, covey.ErrNotFound) {
		t.Error(err)
	}
	if _, err := b.Get(t.Context(), "fifo", "v", covey.Range{Len: 1}); !errors.Is(err, covey.ErrNotFound) {
		t.Error(err)
	}
	info, err := b.Stat(t.Context(), "file")
	if err != nil || info.Mode != 0o640 {
		t.Errorf("%+v, %v", info, err)
	}
	info, err = b.Stat(t.Context(), "bad\xffname")
	if err != nil || info.Key != "bad\xffname" {
		t.Errorf("%+v, %v", info, err)
	}
}

// A directory larger than a window, in pages, is each name once and in order.
func TestPosixLargeDirectory(t *testing.T) {
	dir := t.TempDir()
	const files, dirs = 800, 120
	var want, deep []string
	for i := range files {
		name := fmt.Sprintf("%05x", i*7919%1_000_003)
		if err := syscall.Mknod(filepath.Join(dir, name), syscall.S_IFREG|0o644, 0); err != nil {
			t.Fatal(err)
		}
		want, deep = append(want, name), append(deep, name)
	}
	for i := range dirs {
		name := fmt.Sprintf("%05x.d", i*8009)
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, below := range []string{"x", "y"} {
			if err := syscall.Mknod(filepath.Join(dir, name, below), syscall.S_IFREG|0o644, 0); err != nil {
				t.Fatal(err)
			}
			deep = append(deep, name+"/"+below)
		}
		want = append(want, name+"/")
	}
	slices.Sort(want)
	slices.Sort(deep)
	for _, window := range []int{3, 50, 300, 100_000} {
		b, done := origin.PosixWindow(dir, window)
		for _, limit := range []int{97, 1000, 1 << 20} {
			if got := names(t, b, origin.ListRequest{Delimiter: "/", Limit: limit}); !slices.Equal(got, want) {
				t.Errorf("window %d, pages of %d: %d names, want %d", window, limit, len(got), len(want))
			}
			if got := names(t, b, origin.ListRequest{Limit: limit}); !slices.Equal(got, deep) {
				t.Errorf("window %d, pages of %d, recursive: %d names, want %d", window, limit, len(got), len(deep))
			}
		}
		if err := done(); err != nil {
			t.Error(err)
		}
	}
}

// fault 24, on a file system: a file changed in place under a reader.
func TestPosixChangedInPlace(t *testing.T) {
	const size = 4 << 20
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	old := bytes.Repeat([]byte("old!"), size/4)
	if err := os.WriteFile(path, old, 0o644); err != nil {
		t.Fatal(err)
	}
	b := openSource(t, dir, origin.Options{}).Bucket
	info, err := b.Stat(t.Context(), "file")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"rewritten": func() error { return os.WriteFile(path, bytes.Repeat([]byte("new!"), size/4), 0o644) },
		"truncated": func() error { return os.Truncate(path, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, old, 0o644); err != nil {
				t.Fatal(err)
			}
			if info, err = b.Stat(t.Context(), "file"); err != nil {
				t.Fatal(err)
			}
			body, err := b.Get(t.Context(), "file", info.Version, covey.Range{Len: size})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if _, err := io.ReadFull(body, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(body)
			if !errors.Is(err, covey.ErrStale) {
				t.Errorf("error %v", err)
			}
			if !bytes.Equal(rest, old[100:100+len(rest)]) {
				t.Error("bytes of two versions")
			}
		})
	}
}

// A file replaced by one of the same size and time is another version.
func TestPosixReplacedWithTheSameTime(t *testing.T) {
	dir := tree(t, "a", "b")
	when := time.Unix(1_000_000_000, 5)
	for _, name := range []string{"a", "b"} {
		if err := os.Chtimes(filepath.Join(dir, name), when, when); err != nil {
			t.Fatal(err)
		}
	}
	b := openSource(t, dir, origin.Options{}).Bucket
	before, err := b.Stat(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), "a", before.Version, covey.Range{Len: 1}); !errors.Is(err, covey.ErrStale) {
		t.Error(err)
	}
}

// A file system that is mounted over the directory after the start is seen.
func TestPosixRootIsReplaced(t *testing.T) {
	parent := tree(t, "mounted/file")
	dir := filepath.Join(parent, "set")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := openSource(t, dir, origin.Options{}).Bucket
	if got := names(t, b, origin.ListRequest{}); len(got) != 0 {
		t.Fatalf("%q", got)
	}
	for _, move := range [][2]string{{dir, dir + ".old"}, {filepath.Join(parent, "mounted"), dir}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if got := names(t, b, origin.ListRequest{}); slices.Equal(got, []string{"file"}) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the new directory is not seen")
		}
	}
}

func TestPosixPutWhereNoFileCanBe(t *testing.T) {
	dir := tree(t, "file", "dir/x")
	b := openSource(t, dir, origin.Options{}).Bucket
	for _, key := range []string{"file/below", "dir", "dir/", strings.Repeat("n", 256), ".covey-upload-x"} {
		if _, err := b.Put(t.Context(), key, strings.NewReader("x"), 1); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%.20q: %v", key, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := b.Delete(t.Context(), "dir"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "dir/x")); err != nil {
		t.Error(err)
	}
}

func TestPosixPermission(t *testing.T) {
	if os.Geteuid() == 0 && os.Getenv("COVEY_TEST_PLAIN_ROOT") == "" {
		runWithoutOverride(t)
		return
	}
	dir := tree(t, "open", "closed/x")
	closed := filepath.Join(dir, "closed")
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Chmod(closed, 0o700); err != nil {
			t.Error(err)
		}
	})
	b := openSource(t, dir, origin.Options{}).Bucket
	if _, err := b.Stat(t.Context(), "closed/x"); !errors.Is(err, covey.ErrDenied) {
		t.Errorf("stat: %v", err)
	}
	// Silence would make the data set smaller than it is.
	if _, err := b.List(t.Context(), origin.ListRequest{}); !errors.Is(err, covey.ErrDenied) {
		t.Errorf("recursive list: %v", err)
	}
	if got := names(t, b, origin.ListRequest{Delimiter: "/"}); !slices.Equal(got, []string{"closed/", "open"}) {
		t.Errorf("list: %q", got)
	}
	_, err := origin.Open(t.Context(), closed, origin.Options{})
	if !errors.Is(err, covey.ErrDenied) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("open: %v", err)
	}
}

// runWithoutOverride runs the calling test again in a process that lacks root's
// right to read everything.
func runWithoutOverride(t *testing.T) {
	t.Helper()
	const prCapbsetDrop, capDACOverride, capDACReadSearch = 24, 1, 2
	type result struct {
		out []byte
		err error
	}
	done := make(chan result)
	go func() {
		// The thread has lost the rights for good and ends with the goroutine.
		runtime.LockOSThread()
		for _, capability := range [...]uintptr{capDACOverride, capDACReadSearch} {
			if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prCapbsetDrop, capability, 0); errno != 0 {
				done <- result{err: errno}
				return
			}
		}
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "COVEY_TEST_PLAIN_ROOT=1")
		out, err := cmd.CombinedOutput()
		done <- result{out, err}
	}()
	if r := <-done; r.err != nil {
		t.Errorf("%v: %s", r.err, r.out)
	}
}
