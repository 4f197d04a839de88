package mount

import (
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/origin"
)

// An open with O_TRUNC that still names the draft of what has been uploaded since
// begins the new draft at once: the kernel looks up a second time and not a third.
func TestTruncatingOpenOfAFinishedDraft(t *testing.T) {
	w := startWritable(t, t.TempDir(), origin.Options{}, false)
	f, err := os.Create(w.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	// Something that keeps the node without being an open of the file.
	held, err := unix.Open(w.path("a"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(held) }()
	n := w.tree.nodes.walk("a")
	if n == nil || !isDraft(n.version) {
		t.Fatalf("the file that is written is no draft: %+v", n)
	}
	if _, err := f.WriteString("old"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); w.tree.draftAt("a") != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the draft does not end")
		}
	}
	in := &fuse.OpenIn{Flags: unix.O_WRONLY | unix.O_TRUNC}
	in.NodeId, in.Pid = n.id, uint32(os.Getpid())
	if status := w.tree.Open(nil, in, &fuse.OpenOut{}); status != fuse.Status(unix.ESTALE) {
		t.Fatalf("open: %v, want ESTALE", status)
	}
	if w.tree.draftAt("a") == nil {
		t.Fatal("no draft: the kernel's second and last try would fail, too")
	}
	if err := os.WriteFile(w.path("a"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(w.path("a")); err != nil || string(got) != "new" {
		t.Fatalf("%q, %v", got, err)
	}
}

// A create with O_TRUNC of what is there after all, which the kernel took for absent,
// is the truncating open of it.
func TestTruncatingCreateOfWhatIsThere(t *testing.T) {
	w := startWritable(t, t.TempDir(), origin.Options{}, false)
	if err := os.WriteFile(w.path("a"), []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); w.tree.draftAt("a") != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the draft does not end")
		}
	}
	in := &fuse.CreateIn{Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC, Mode: 0o600}
	in.NodeId, in.Pid = fuse.FUSE_ROOT_ID, uint32(os.Getpid())
	var out fuse.CreateOut
	if status := w.tree.Create(nil, in, "a", &out); status != fuse.OK {
		t.Fatalf("create: %v", status)
	}
	if n := w.tree.nodes.get(out.NodeId); n == nil || !isDraft(n.version) {
		t.Fatalf("created %+v, want a draft", n)
	}
	w.tree.Release(nil, &fuse.ReleaseIn{InHeader: in.InHeader, Fh: out.Fh})
	in.Flags = unix.O_WRONLY | unix.O_CREAT
	if err := os.WriteFile(w.path("b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in.Flags |= unix.O_EXCL
	if status := w.tree.Create(nil, in, "b", &out); status != fuse.Status(unix.EEXIST) {
		t.Fatalf("exclusive create of what is there: %v", status)
	}
}

// The node of a file that was renamed has the old path until the kernel hears of it.
// A truncating open of it must not touch who has that path now.
func TestTruncatingOpenOfARenamedFile(t *testing.T) {
	w := startWritable(t, t.TempDir(), origin.Options{}, false)
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(w.path(name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); w.tree.draftAt(name) != nil; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the draft does not end")
			}
		}
	}
	write("a", "first")
	held, err := unix.Open(w.path("a"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(held) }()
	n := w.tree.nodes.walk("a")
	if n == nil {
		t.Fatal("no node")
	}
	if err := os.Rename(w.path("a"), w.path("b")); err != nil {
		t.Fatal(err)
	}
	write("a", "second")
	in := &fuse.OpenIn{Flags: unix.O_WRONLY | unix.O_TRUNC}
	in.NodeId, in.Pid = n.id, uint32(os.Getpid())
	if status := w.tree.Open(nil, in, &fuse.OpenOut{}); status != fuse.Status(unix.ESTALE) {
		t.Fatalf("open of the node that a was: %v, want ESTALE", status)
	}
	if w.tree.draftAt("a") != nil {
		t.Fatal("the file that has the name now was truncated")
	}
	for name, want := range map[string]string{"a": "second", "b": "first"} {
		if got, err := os.ReadFile(w.path(name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}
