package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// TestWriteReadBack writes files of many sizes, finds them at the origin once
// they are closed, and reads them back without asking it.
func TestWriteReadBack(t *testing.T) {
	writable(t, func(t *testing.T, w *written) {
		if err := os.Mkdir(w.path("d"), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, size := range []int{0, 1, 4095, 4 << 20, 4<<20 + 1, 37 << 20} {
			name, want := fmt.Sprintf("d/f%d", i), noise(size, uint64(i))
			f, err := os.Create(w.path(name))
			if err != nil {
				t.Fatal(err)
			}
			for p := want; len(p) > 0; {
				n := min(len(p), 1<<20)
				if _, err := f.Write(p[:n]); err != nil {
					t.Fatal(err)
				}
				p = p[n:]
			}
			if st, err := f.Stat(); err != nil || st.Size() != int64(size) {
				t.Errorf("%s while open: %v, %v", name, st, err)
			}
			if got, err := os.ReadFile(w.path(name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s while open: %d bytes, %v", name, len(got), err)
			}
			if _, err := w.atOrigin(name); !errors.Is(err, covey.ErrNotFound) {
				t.Errorf("%s is at the origin before its close: %v", name, err)
			}
			if err := f.Sync(); err != nil {
				t.Errorf("fsync: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			if got, err := w.atOrigin(name); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s at the origin: %d bytes, %v", name, len(got), err)
			}
			w.quiet()
			before := w.metrics.Requests()["get"]
			got, err := os.ReadFile(w.path(name))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s read back: %d bytes, %v", name, len(got), err)
			}
			if n := w.metrics.Requests()["get"]; n != before {
				t.Errorf("%s: %d requests to read it back", name, n-before)
			}
			if st, err := os.Stat(w.path(name)); err != nil || st.Size() != int64(size) {
				t.Errorf("%s afterwards: %v, %v", name, st, err)
			}
		}
		names, err := os.ReadDir(w.path("d"))
		if err != nil || len(names) != 6 {
			t.Errorf("listing: %v, %v", names, err)
		}
		if s := w.Status(); s.Passthrough && s.OpenPassthrough == 0 {
			t.Error("nothing was passed through")
		}
	})
}

// TestWriteCalls goes through every call that changes something, and those that
// are refused.
func TestWriteCalls(t *testing.T) {
	writable(t, func(t *testing.T, w *written) {
		put := func(name, body string) {
			t.Helper()
			if err := os.WriteFile(w.path(name), []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		is := func(name, want string) {
			t.Helper()
			if got, err := os.ReadFile(w.path(name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v; want %q", name, got, err, want)
			}
			if got, err := w.atOrigin(name); err != nil || string(got) != want {
				t.Errorf("%s at the origin: %q, %v; want %q", name, got, err, want)
			}
		}
		gone := func(name string) {
			t.Helper()
			if _, err := os.Lstat(w.path(name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := w.atOrigin(name); !errors.Is(err, covey.ErrNotFound) {
				t.Errorf("%s at the origin: %v", name, err)
			}
		}
		wants := func(what string, err error, want syscall.Errno) {
			t.Helper()
			if !isErrno(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		put("a", "first")
		is("a", "first")
		old, err := os.Open(w.path("a"))
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		put("a", "second one") // O_TRUNC of an object
		is("a", "second one")
		if got, err := io.ReadAll(old); err != nil || string(got) != "first" {
			t.Errorf("the old version, which is open: %q, %v", got, err)
		}
		_, err = os.OpenFile(w.path("a"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		wants("O_EXCL of a file that is there", err, unix.EEXIST)
		w.quiet()
		_, err = os.OpenFile(w.path("a"), os.O_WRONLY|os.O_APPEND, 0)
		wants("append to an object", err, unix.EOPNOTSUPP)
		_, err = os.OpenFile(w.path("a"), os.O_RDWR, 0)
		wants("write into an object", err, unix.EOPNOTSUPP)
		wants("cut an object", os.Truncate(w.path("a"), 3), unix.EOPNOTSUPP)
		if err := os.Truncate(w.path("a"), 0); err != nil {
			t.Errorf("truncate to zero: %v", err)
		}
		is("a", "")
		put("a", "third")

		// Rename: of an object, over an object, of a file that is being written.
		put("b", "to be replaced")
		w.quiet()
		if err := os.Rename(w.path("a"), w.path("b")); err != nil {
			t.Fatal(err)
		}
		is("b", "third")
		gone("a")
		f, err := os.Create(w.path("ckpt.tmp"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteString("half ")
		if err := os.Rename(w.path("ckpt.tmp"), w.path("ckpt")); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("and half"); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		is("ckpt", "half and half")
		gone("ckpt.tmp")
		put("x.tmp", "committed")
		if err := os.Rename(w.path("x.tmp"), w.path("x")); err != nil {
			t.Fatal(err)
		}
		is("x", "committed")
		gone("x.tmp")
		wants("no replace", unix.Renameat2(unix.AT_FDCWD, w.path("x"), unix.AT_FDCWD, w.path("b"), unix.RENAME_NOREPLACE), unix.EEXIST)
		wants("exchange", unix.Renameat2(unix.AT_FDCWD, w.path("x"), unix.AT_FDCWD, w.path("b"), unix.RENAME_EXCHANGE), unix.EINVAL)

		// Append to a file that is being written; writing in it.
		f, err = os.OpenFile(w.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			fmt.Fprintf(f, "line %d\n", i)
		}
		g, err := os.OpenFile(w.path("log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(g, "other")
		if err := errors.Join(g.Close(), f.Close()); err != nil {
			t.Error(err)
		}
		is("log", "line 0\nline 1\nline 2\nother\n")

		// Unlink: of an object, of one that is open, of a draft.
		if err := os.Remove(w.path("x")); err != nil {
			t.Fatal(err)
		}
		gone("x")
		f, _ = os.Create(w.path("draft"))
		_, _ = f.WriteString("nobody wants it")
		if err := os.Remove(w.path("draft")); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		gone("draft")
		wants("unlink of nothing", os.Remove(w.path("never")), unix.ENOENT)

		// Directories.
		if err := os.MkdirAll(w.path("p/q"), 0o755); err != nil {
			t.Fatal(err)
		}
		wants("mkdir of what is there", os.Mkdir(w.path("p"), 0o755), unix.EEXIST)
		put("p/q/f", "below")
		wants("rmdir with a file", unix.Rmdir(w.path("p/q")), unix.ENOTEMPTY)
		f, _ = os.Create(w.path("p/draft"))
		wants("rmdir with a draft", unix.Rmdir(w.path("p")), unix.ENOTEMPTY)
		if names, err := os.ReadDir(w.path("p")); err != nil || len(names) != 2 {
			t.Errorf("listing with a draft: %v, %v", names, err)
		}
		f.Close()
		if err := errors.Join(os.Remove(w.path("p/draft")), os.Remove(w.path("p/q/f")), os.Remove(w.path("p/q")), os.Remove(w.path("p"))); err != nil {
			t.Error(err)
		}
		gone("p")

		// What is refused.
		wants("link", os.Link(w.path("b"), w.path("b2")), unix.EPERM)
		wants("symlink", os.Symlink("b", w.path("b2")), unix.EPERM)
		wants("mkfifo", unix.Mkfifo(w.path("fifo"), 0o644), unix.EPERM)
		if err := os.Chmod(w.path("b"), 0o711); err != nil {
			t.Errorf("chmod: %v", err)
		}
		is("b", "third")
		wants("chown", os.Chown(w.path("b"), 12345, -1), unix.EPERM)
		wants("utimes", os.Chtimes(w.path("b"), time.Now(), time.Unix(1, 0)), unix.EOPNOTSUPP)
		wants("a long name", os.Mkdir(w.path(strings.Repeat("n", 256)), 0o755), unix.ENAMETOOLONG)
		long := strings.Repeat("d", 250)
		for range 4 {
			long += "/" + strings.Repeat("d", 250)
		}
		if _, err := os.Create(w.path(long)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file in a directory that is not there: %v", err)
		}
		w.quiet()
	})
}

// TestOtherClosesUploadNothing closes descriptors that are not the last, and that
// a child has inherited, while the file is half written.
func TestOtherClosesUploadNothing(t *testing.T) {
	w := startWritable(t, t.TempDir(), origin.Options{}, false)
	f, err := os.Create(w.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString("half")
	dup, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(dup)
	if _, err := w.atOrigin("f"); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("after the close of a duplicate: %v", err)
	}
	child := exec.Command("true")
	child.ExtraFiles = []*os.File{f}
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.atOrigin("f"); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("after the close of an inherited descriptor: %v", err)
	}
	_, _ = f.WriteString(" and half")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := w.atOrigin("f"); err != nil || string(got) != "half and half" {
		t.Errorf("at the end: %q, %v", got, err)
	}
	puts := w.metrics.Requests()["put"]
	if out, err := exec.Command("sh", "-c", "echo from a shell > "+w.path("g")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitFor(t, func() bool { got, err := w.atOrigin("g"); return err == nil && string(got) == "from a shell\n" })
	if n := w.metrics.Requests()["put"] - puts; n != 1 {
		t.Errorf("a redirected command took %d uploads", n)
	}
	// The opener is gone, and its child closes the last descriptor.
	if out, err := exec.Command("sh", "-c", "exec 3> "+w.path("h")+"; (sleep 0.2; echo late >&3) & ").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitFor(t, func() bool { got, err := w.atOrigin("h"); return err == nil && string(got) == "late\n" })
	w.quiet()
}

// TestReadOnlyRefuses mounts without writes, and a data set that cannot be written
// to with them.
func TestReadOnlyRefuses(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 10)
	m := start(t, names, Options{})
	for what, err := range map[string]error{
		"create": os.WriteFile(m.path("new"), nil, 0o644), "mkdir": os.Mkdir(m.path("d"), 0o755),
		"unlink": os.Remove(m.path("f")), "truncate": os.Truncate(m.path("f"), 0),
		"rename": os.Rename(m.path("f"), m.path("g")), "chmod": os.Chmod(m.path("f"), 0o600),
	} {
		if !isErrno(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	src, err := origin.Open(t.Context(), t.TempDir(), origin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	ds := dataset.New(src, dataset.Options{Immutable: true})
	defer ds.Close()
	_, err = New(ds, m.blocks, t.TempDir(), Options{Write: &WriteOptions{Edits: ds}})
	if !errors.Is(err, covey.ErrReadOnly) || strings.Contains(err.Error(), "\n") {
		t.Errorf("an immutable data set: %v", err)
	}
}

// TestModes gives what its origin has no permissions for those of the mount.
func TestModes(t *testing.T) {
	umask := uint32(0o027)
	w := startWritable(t, t.TempDir(), origin.Options{}, false, func(o *Options) { o.Umask = &umask })
	if got := []uint16{w.tree.nodes.modes.file, w.tree.nodes.modes.dir}; !slices.Equal(got, []uint16{0o640, 0o750}) {
		t.Errorf("modes %o", got)
	}
	if err := os.WriteFile(w.path("x"), []byte("#!"), 0o750); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	if st, err := os.Stat(w.path("x")); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("the mode of a file at a posix origin: %v, %v", st, err)
	}
}
