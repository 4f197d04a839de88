package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

func ino(st os.FileInfo) uint64 { return st.Sys().(*syscall.Stat_t).Ino }

func statusOf(e syscall.Errno) fuse.Status { return fuse.Status(e) }

// TestReadDir lists 10,000 entries: all of them once, in order, and the same
// ones after a seek back.
func TestReadDir(t *testing.T) {
	names := newFakeNames()
	const files = 10_000
	for i := range files {
		names.file(fmt.Sprintf("d/f%05d", i), "v1", int64(i))
	}
	m := start(t, names, Options{})
	all, err := os.ReadDir(m.path("d"))
	if err != nil || len(all) != files {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	for i, e := range all {
		if want := fmt.Sprintf("f%05d", i); e.Name() != want {
			t.Fatalf("entry %d is %q, want %q", i, e.Name(), want)
		}
	}
	info, err := all[4711].Info()
	if err != nil || info.Size() != 4711 || info.Mode() != 0o444 || !info.ModTime().Equal(time.Unix(1_700_000_000, 5)) {
		t.Errorf("attributes of an entry: %v, %v", info, err)
	}

	d, err := os.Open(m.path("d"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	marks := map[int64]string{}
	var order []int64
	for {
		pos, names := direntsAt(t, d, 2000)
		if len(names) == 0 {
			break
		}
		marks[pos] = names[0]
		order = append(order, pos)
	}
	for i := len(order) - 1; i >= 0; i -= 37 {
		if _, err := d.Seek(order[i], io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, names := direntsAt(t, d, 2000); len(names) == 0 || names[0] != marks[order[i]] {
			t.Fatalf("after a seek to %d: %v, want %q first", order[i], names[:min(len(names), 1)], marks[order[i]])
		}
	}
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	again, err := d.Readdirnames(-1)
	if err != nil || len(again) != files {
		t.Errorf("after a rewind: %d entries, %v", len(again), err)
	}
}

// direntsAt reads one buffer of entries and returns the position it began at.
func direntsAt(t *testing.T, d *os.File, size int) (int64, []string) {
	t.Helper()
	pos, err := unix.Seek(int(d.Fd()), 0, io.SeekCurrent)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, size)
	n, err := unix.Getdents(int(d.Fd()), buf)
	if err != nil {
		t.Fatal(err)
	}
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	return pos, names
}

// TestIncompleteListing never shows a directory as complete that is not.
func TestIncompleteListing(t *testing.T) {
	names := newFakeNames()
	for i := range 3000 {
		names.file(fmt.Sprintf("d/f%05d", i), "v1", 1)
	}
	m := start(t, names, Options{})
	names.fail(covey.ErrUnavailable)
	all, err := os.ReadDir(m.path("d"))
	if !isErrno(err, unix.EIO) {
		t.Errorf("%d entries, %v; want EIO", len(all), err)
	}
	if _, err := os.Stat(m.path("never-seen")); !isErrno(err, unix.EIO) {
		t.Errorf("a name that was never seen: %v, want EIO", err)
	}
	if _, err := os.Stat(m.path("d/f00001")); err != nil {
		t.Errorf("a known name: %v", err)
	}
	names.fail(nil)
	if all, err := os.ReadDir(m.path("d")); err != nil || len(all) != 3000 {
		t.Errorf("afterwards: %d entries, %v", len(all), err)
	}
	names.fail(covey.ErrDenied)
	if _, err := os.Stat(m.path("other")); !isErrno(err, unix.EACCES) {
		t.Errorf("refused by the origin: %v, want EACCES", err)
	}
}

// TestOddNames round-trips every name a directory may hold, and keeps the others
// out of it.
func TestOddNames(t *testing.T) {
	names := newFakeNames()
	good := []string{" ", "a b", "new\nline", "\xff\xfe", "ünï", "...", "-rf", "back\\slash", strings.Repeat("n", 255), "Case", "case"}
	for _, name := range good {
		names.file("d/"+name, "v1", 7)
	}
	m := start(t, names, Options{})
	for _, name := range []string{"..", ".", "a/b", "nul\x00", strings.Repeat("n", 256)} {
		names.mu.Lock()
		names.entries["d/"+fmt.Sprintf("bad%q", strings.ReplaceAll(name, "/", "|"))] = dataset.Entry{Name: name, Kind: dataset.File}
		names.mu.Unlock()
	}
	all, err := os.ReadDir(m.path("d"))
	if err != nil || len(all) != len(good) {
		t.Fatalf("%d entries, %v; want %d", len(all), err, len(good))
	}
	for _, name := range good {
		got, err := os.ReadFile(m.path("d/" + name))
		if err != nil || !bytes.Equal(got, wanted("d/"+name, "v1", 7)) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := os.Stat(m.path(strings.Repeat("n", 256))); !isErrno(err, unix.ENAMETOOLONG) {
		t.Errorf("256-byte name: %v", err)
	}
	if _, err := os.Stat(m.path("d/none")); !isErrno(err, unix.ENOENT) {
		t.Errorf("missing name: %v", err)
	}
	if _, err := os.Stat(m.path("d/Case/x")); !isErrno(err, unix.ENOTDIR) {
		t.Errorf("name below a file: %v", err)
	}
}

// TestAttributes covers stat, statfs, readlink and access.
func TestAttributes(t *testing.T) {
	names := newFakeNames()
	names.put("f", dataset.Entry{Kind: dataset.File, Size: 1000, Version: "v", Mode: 0o640, ModTime: time.Unix(-5, 250)})
	names.put("link", dataset.Entry{Kind: dataset.Symlink, Link: "f"})
	names.put("f2", dataset.Entry{Kind: dataset.File, Size: 1, Version: "v"})
	uid, gid := uint32(1234), uint32(4321)
	m := start(t, names, Options{UID: &uid, GID: &gid})
	var st unix.Stat_t
	if err := unix.Stat(m.path("link"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode != unix.S_IFREG|0o640 || st.Size != 1000 || st.Uid != uid || st.Gid != gid || st.Nlink != 1 ||
		st.Mtim.Sec != -5 || st.Mtim.Nsec != 250 || st.Blocks != 2 {
		t.Errorf("stat: %+v", st)
	}
	if err := unix.Lstat(m.path("link"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Size != 1 {
		t.Errorf("lstat: %+v, %v", st, err)
	}
	if to, err := os.Readlink(m.path("link")); err != nil || to != "f" {
		t.Errorf("readlink: %q, %v", to, err)
	}
	if _, err := os.Readlink(m.path("f")); !isErrno(err, unix.EINVAL) {
		t.Errorf("readlink of a file: %v", err)
	}
	if err := unix.Stat(m.dir, &st); err != nil || st.Mode != unix.S_IFDIR|0o555 || st.Ino != 1 {
		t.Errorf("root: %+v, %v", st, err)
	}
	if err := unix.Access(m.path("f2"), unix.R_OK); err != nil {
		t.Errorf("access: %v", err)
	}
	if err := unix.Access(m.path("f"), unix.W_OK); !isErrno(err, unix.EROFS) {
		t.Errorf("access for writing: %v, want EROFS", err)
	}
	if _, err := unix.Getxattr(m.path("f"), "user.x", make([]byte, 10)); !isErrno(err, unix.EOPNOTSUPP) {
		t.Errorf("getxattr: %v, want EOPNOTSUPP", err)
	}
	if n, err := unix.Listxattr(m.path("f"), make([]byte, 10)); n != 0 && err == nil {
		t.Errorf("listxattr: %d, %v", n, err)
	}
	var fsst unix.Statfs_t
	if err := unix.Statfs(m.path("f"), &fsst); err != nil || fsst.Namelen != 255 || fsst.Bavail == 0 || fsst.Flags&unix.ST_RDONLY == 0 ||
		fsst.Flags&unix.ST_NOSUID == 0 || fsst.Flags&unix.ST_NODEV == 0 {
		t.Errorf("statfs: %+v, %v", fsst, err)
	}
}

// TestSeekAndSync covers the calls the kernel answers by itself.
func TestSeekAndSync(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 3*testBlock)
	for _, complete := range []int64{-1, 1 << 20} {
		m := start(t, names, Options{CompleteAtOpen: complete})
		f, err := os.Open(m.path("f"))
		if err != nil {
			t.Fatal(err)
		}
		if pos, err := f.Seek(10, unix.SEEK_DATA); err != nil || pos != 10 {
			t.Errorf("SEEK_DATA: %d, %v", pos, err)
		}
		if pos, err := f.Seek(10, unix.SEEK_HOLE); err != nil || pos != 3*testBlock {
			t.Errorf("SEEK_HOLE: %d, %v", pos, err)
		}
		if err := f.Sync(); err != nil {
			t.Errorf("fsync: %v", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("flock: %v", err)
		}
		f.Close()
	}
}

// TestWritesAreRefused tries every call that would change something.
func TestWritesAreRefused(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 100)
	names.file("d/g", "v1", 100)
	m := start(t, names, Options{})
	f, d := m.path("f"), m.path("d")
	open := func(flags int) error {
		fd, err := unix.Open(f, flags, 0)
		if err == nil {
			return unix.Close(fd)
		}
		return err
	}
	for name, call := range map[string]func() error{
		"open O_WRONLY": func() error { return open(unix.O_WRONLY) },
		"open O_RDWR":   func() error { return open(unix.O_RDWR) },
		"open O_TRUNC":  func() error { return open(unix.O_TRUNC) },
		"create": func() error {
			w, err := os.Create(m.path("new"))
			if err == nil {
				w.Close()
			}
			return err
		},
		"mkdir":    func() error { return os.Mkdir(m.path("new"), 0o755) },
		"mknod":    func() error { return unix.Mknod(m.path("new"), unix.S_IFREG, 0) },
		"unlink":   func() error { return unix.Unlink(f) },
		"rmdir":    func() error { return unix.Rmdir(d) },
		"rename":   func() error { return os.Rename(f, m.path("new")) },
		"link":     func() error { return os.Link(f, m.path("new")) },
		"symlink":  func() error { return os.Symlink("f", m.path("new")) },
		"chmod":    func() error { return os.Chmod(f, 0o600) },
		"chown":    func() error { return os.Chown(f, 1, 1) },
		"utimes":   func() error { return os.Chtimes(f, time.Now(), time.Now()) },
		"truncate": func() error { return os.Truncate(f, 0) },
		"setxattr": func() error { return unix.Setxattr(f, "user.x", []byte("y"), 0) },
		"rmxattr":  func() error { return unix.Removexattr(f, "user.x") },
	} {
		if err := call(); !isErrno(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
	}
	if got, err := os.ReadFile(f); err != nil || !bytes.Equal(got, wanted("f", "v1", 100)) {
		t.Errorf("the file afterwards: %v", err)
	}
}

// TestForget empties the node table once the kernel drops its caches.
func TestForget(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which dropping the kernel's caches needs; run the tests as root, as .ci/run does")
	}
	names := newFakeNames()
	for i := range 500 {
		names.file(fmt.Sprintf("d%d/f%d", i%10, i), "v1", 10)
	}
	m := start(t, names, Options{})
	if err := filepath.WalkDir(m.dir, func(_ string, _ os.DirEntry, err error) error { return err }); err != nil {
		t.Fatal(err)
	}
	if n := m.tree.nodes.len(); n != 511 {
		t.Errorf("%d nodes after a walk, want 511", n)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
		t.Skipf("drop caches: %v", err)
	}
	waitFor(t, func() bool { return m.tree.nodes.len() < 20 })
	if got, err := os.ReadFile(m.path("d3/f13")); err != nil || !bytes.Equal(got, wanted("d3/f13", "v1", 10)) {
		t.Errorf("read after a forget: %v", err)
	}
}

// TestNodes walks the table through versions, collisions and forgets.
func TestNodes(t *testing.T) {
	tab := newNodes(time.Now())
	file := func(name, version string) dataset.Entry {
		return dataset.Entry{Name: name, Kind: dataset.File, Version: version, Size: 1}
	}
	attr := new(fuse.Attr)
	a := tab.enter(tab.root, file("a", "1"), attr)
	if again := tab.enter(tab.root, file("a", "1"), attr); again != a || a.lookups != 2 {
		t.Error("one version is two nodes")
	}
	b := tab.enter(tab.root, file("a", "2"), attr)
	if b == a || b.id == a.id || b.ino != a.ino {
		t.Error("a new version must be a new node with the same st_ino")
	}
	tab.forget(a.id, 2)
	if tab.get(a.id) != nil || tab.enter(tab.root, file("a", "2"), attr) != b {
		t.Error("forgetting the old version disturbed the new one")
	}
	tab.forget(b.id, 1)
	if tab.get(b.id) != b {
		t.Error("forgotten with a reference left")
	}
	dir := tab.enter(tab.root, dataset.Entry{Name: "a", Kind: dataset.Dir}, attr)
	if dir == b || dir.kind != dataset.Dir {
		t.Error("a directory in the place of a file must be a new node")
	}
	tab.forget(tab.root.id, 1000)
	if tab.get(tab.root.id) == nil {
		t.Error("the root was forgotten")
	}

	// Two paths with one st_ino stay two nodes.
	c1 := tab.enter(dir, file("x", "1"), attr)
	tab.mu.Lock()
	c2 := tab.add(dir, c1.ino, file("y", "1"))
	tab.byName.remove(c1)
	if tab.byName.find(dir, c1.ino, "y") != c2 || tab.byName.find(dir, c1.ino, "x") != nil {
		t.Error("two names of one hash after one of them went")
	}
	tab.mu.Unlock()
	if got := c1.path(); got != "a/x" {
		t.Errorf("path %q", got)
	}
}

func TestErrnoTable(t *testing.T) {
	for _, c := range []struct {
		err          error
		want, opened syscall.Errno
	}{
		{covey.ErrNotFound, unix.ENOENT, unix.ESTALE},
		{covey.ErrStale, unix.ESTALE, unix.ESTALE},
		{covey.ErrDenied, unix.EACCES, unix.EACCES},
		{covey.ErrThrottled, unix.EIO, unix.EIO},
		{covey.ErrUnavailable, unix.EIO, unix.EIO},
		{covey.ErrCorrupt, unix.EIO, unix.EIO},
		{covey.ErrFull, unix.EIO, unix.EIO},
		{covey.ErrReadOnly, unix.EROFS, unix.EROFS},
		{covey.ErrInvalid, unix.EINVAL, unix.EINVAL},
		{errInterrupted, unix.EINTR, unix.EINTR},
		{errors.New("anything else"), unix.EIO, unix.EIO},
		{nil, 0, 0},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("read x from y: %w", err)
		}
		if got := errno(t.Context(), err); got != statusOf(c.want) {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if got := errnoOpened(t.Context(), err); got != statusOf(c.opened) {
			t.Errorf("%v of an opened object: %v, want %v", c.err, got, c.opened)
		}
	}
}
