package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
)

// helperServe mounts a small data set on the directory and serves it until it is
// killed.
func helperServe(dir string) error {
	names := newFakeNames()
	names.file("f", "v1", 3*testBlock)
	cache, err := os.MkdirTemp(filepath.Dir(dir), "cache")
	if err != nil {
		return err
	}
	blocks := newFakeBlocksIn(cache, names)
	m, err := New(names, blocks, dir, Options{})
	if err != nil {
		return err
	}
	go func() {
		<-m.Ready()
		fmt.Println("ready")
	}()
	return m.Run(context.Background())
}

// TestKilledDaemon leaves a dead mount, over which a new one comes up.
func TestKilledDaemon(t *testing.T) { // fault 2
	needFuse(t)
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	daemon := command("serve", dir)
	stdout, _ := daemon.StdoutPipe()
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	if _, err := os.Stat(dir); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("stat of a dead mount: %v, want ENOTCONN", err)
	}
	if fstype, _, ok := Mounted(dir); !ok || fstype != fsType {
		t.Fatalf("dead mount: %v %q", ok, fstype)
	}

	names := newFakeNames()
	names.file("g", "v1", 10)
	var log bytes.Buffer
	m := startOver(t, names, newFakeBlocks(t, names), dir, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	got, err := os.ReadFile(m.path("g"))
	if err != nil || !bytes.Equal(got, wanted("g", "v1", 10)) {
		t.Fatalf("read over a dead mount: %d bytes, %v", len(got), err)
	}
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "took a dead mount away") {
		t.Errorf("the log does not tell of the dead mount: %s", log.String())
	}
}

// TestEndWithOpenFiles ends Run while a passed-through and a served handle are
// open and a read waits: bounded, unmounted, and nothing leaks.
func TestEndWithOpenFiles(t *testing.T) {
	names := newFakeNames()
	names.file("whole", "v1", 9*testBlock)
	names.file("part", "v1", 64*testBlock)
	m := start(t, names, Options{CompleteAtOpen: -1})
	m.blocks.fill(t, "whole")
	whole, err := os.Open(m.path("whole"))
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	part, err := os.Open(m.path("part"))
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	hang := make(chan struct{})
	m.blocks.block(hang)
	waiting := make(chan error, 1)
	go func() {
		_, err := part.ReadAt(make([]byte, 10), 0)
		waiting <- err
	}()
	waitFor(t, func() bool { return m.blocks.waits.Load() > 0 })

	if err := m.Unmount(); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("plain unmount under open files: %v, want EBUSY", err)
	}
	m.isMounted(t)
	passed := m.Status().OpenPassthrough > 0
	began := time.Now()
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %v to end", took)
	}
	if _, _, ok := Mounted(m.dir); ok {
		t.Error("still mounted")
	}
	if err := <-waiting; err == nil {
		t.Error("a read that waited for a block ended without error")
	}
	if _, err := part.ReadAt(make([]byte, 10), 0); err == nil {
		t.Error("a served handle reads on without its daemon")
	}
	if passed {
		p := make([]byte, 100)
		if _, err := whole.ReadAt(p, 0); err != nil || !bytes.Equal(p, wanted("whole", "v1", 100)) {
			t.Errorf("a passed-through handle after the end: %v", err)
		}
	}
}

// TestUnmount ends Run from outside, by the method and as another process would.
func TestUnmount(t *testing.T) {
	for name, unmount := range map[string]func(*mounted) error{
		"method":     func(m *mounted) error { return m.Unmount() },
		"umount":     func(m *mounted) error { return Umount(m.dir, false) },
		"lazy":       func(m *mounted) error { return Umount(m.dir, true) },
		"fusermount": func(m *mounted) error { return fusermountUmount(m.dir, false) },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := fusermount(); err != nil && name == "fusermount" {
				t.Skipf("needs fusermount3: %v", err)
			}
			names := newFakeNames()
			m := start(t, names, Options{})
			if err := unmount(m); err != nil {
				t.Fatal(err)
			}
			select {
			case <-m.served:
			case <-time.After(5 * time.Second):
				t.Fatal("still served 5 s after the unmount")
			}
			if err := m.end(); err != nil {
				t.Fatal(err)
			}
			if err := m.Run(t.Context()); !errors.Is(err, errRunTwice) {
				t.Errorf("second Run: %v", err)
			}
		})
	}
}

// TestUnmountWithoutRun gives back what New made.
func TestUnmountWithoutRun(t *testing.T) {
	needFuse(t)
	names := newFakeNames()
	dir := t.TempDir()
	m, err := New(names, newFakeBlocks(t, names), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := Mounted(dir); ok {
		t.Error("still mounted")
	}
}

// TestRunUnderEndedContext mounts and leaves at once.
func TestRunUnderEndedContext(t *testing.T) {
	needFuse(t)
	names := newFakeNames()
	dir := t.TempDir()
	m, err := New(names, newFakeBlocks(t, names), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := Mounted(dir); ok {
		t.Error("still mounted")
	}
}

// TestNewRefuses says in one line what is wrong with a mount point.
func TestNewRefuses(t *testing.T) {
	needFuse(t)
	names := newFakeNames()
	busy := start(t, names, Options{})
	base := t.TempDir()
	full := filepath.Join(base, "full")
	if err := os.MkdirAll(filepath.Join(full, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(busy.dir, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dir, want string }{
		{filepath.Join(base, "missing"), "does not exist; make it first (mkdir -p "},
		{file, "not a directory"},
		{full, "not empty"},
		{busy.dir, "already a mount point (fuse.covey)"},
		{link, "already a mount point (fuse.covey)"},
		{"/proc", "already a mount point (proc)"},
	} {
		_, err := New(names, busy.blocks, c.dir, Options{})
		if err == nil {
			t.Fatalf("%s: mounted", c.dir)
		}
		msg := err.Error()
		if !strings.Contains(msg, c.want) || strings.Contains(msg, "\n") ||
			!strings.HasPrefix(msg, "mount fake:///data on "+c.dir+": ") {
			t.Errorf("%s: %q, want one line with %q", c.dir, msg, c.want)
		}
	}
}

// TestUmountRefuses leaves alone what is not ours.
func TestUmountRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := Umount(dir, false); err == nil || !strings.Contains(err.Error(), "not a mount point") {
		t.Errorf("a plain directory: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which mounting a tmpfs needs; run the tests as root, as .ci/run does")
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	if err := Umount(dir, true); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("a tmpfs: %v", err)
	}
	if _, _, ok := Mounted(dir); !ok {
		t.Error("the tmpfs is gone")
	}
}

// TestTwoMounts shows one data set twice, from one cache.
func TestTwoMounts(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 5*testBlock)
	a := start(t, names, Options{})
	b := startOver(t, names, a.blocks, t.TempDir(), Options{})
	for _, m := range []*mounted{a, b} {
		got, err := os.ReadFile(m.path("f"))
		if err != nil || !bytes.Equal(got, wanted("f", "v1", 5*testBlock)) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(b.path("f")); err != nil {
		t.Errorf("the other mount after one is gone: %v", err)
	}
}

// TestUnmountAboveAMount names the mount that is in the way.
func TestUnmountAboveAMount(t *testing.T) {
	names := newFakeNames()
	names.put("empty", dataset.Entry{Kind: dataset.Dir, Mode: 0o755 | fs.ModeDir})
	above := start(t, names, Options{})
	below := startOver(t, names, above.blocks, above.path("empty"), Options{})
	err := Umount(above.dir, false)
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), below.dir+" is mounted below it") {
		t.Errorf("unmount above a mount: %v", err)
	}
	if err := below.end(); err != nil {
		t.Fatal(err)
	}
	if err := Umount(above.dir, false); err != nil {
		t.Errorf("unmount once nothing is below: %v", err)
	}
	if err := above.end(); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedPassthrough lets the kernel refuse registrations, and what that
// says of other files.
func TestRefusedPassthrough(t *testing.T) {
	for _, c := range []struct {
		errno      syscall.Errno
		on, status bool
	}{
		{unix.EPERM, false, false},
		{unix.ENOTTY, false, false},
		{unix.ELOOP, true, false},
		{unix.ENOMEM, true, true},
	} {
		t.Run(c.errno.Error(), func(t *testing.T) {
			names := newFakeNames()
			for i := range 3 {
				names.file(fmt.Sprint("f", i), "v1", 2*testBlock)
			}
			var calls atomic.Int32
			refuseFirst := func(m *Mount) {
				register := m.tree.passthrough.open
				m.tree.passthrough.open = func(fd int32) (int32, unix.Errno) {
					if fd < 0 || calls.Add(1) > 1 { // below 0 it is the probe at the start
						return register(fd)
					}
					return 0, c.errno
				}
			}
			m := startOver(t, names, newFakeBlocks(t, names), t.TempDir(), Options{}, refuseFirst)
			m.needPassthrough(t)
			for i := range 3 {
				name := fmt.Sprint("f", i)
				got, err := os.ReadFile(m.path(name))
				if err != nil || !bytes.Equal(got, wanted(name, "v1", 2*testBlock)) {
					t.Fatalf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			s := m.Status()
			if m.tree.passthrough.on() != c.on || s.Passthrough != c.status || s.Passthrough != (s.PassthroughWhy == "") {
				t.Errorf("passthrough on %v, status %v %q", m.tree.passthrough.on(), s.Passthrough, s.PassthroughWhy)
			}
			want := uint64(0)
			if c.status {
				want = 2
			}
			if s.OpenPassthrough != want {
				t.Errorf("passed through %d, want %d", s.OpenPassthrough, want)
			}
		})
	}
}

// TestIdleBackings keeps no more registrations than allowed, and none of what
// the kernel has forgotten.
func TestIdleBackings(t *testing.T) {
	names := newFakeNames()
	const files, limit = 100, 60
	for i := range files {
		names.file(fmt.Sprintf("f%04d", i), "v1", 10)
	}
	lower := func(m *Mount) { m.tree.passthrough.limit = limit }
	m := startOver(t, names, newFakeBlocks(t, names), t.TempDir(), Options{}, lower)
	m.needPassthrough(t)
	for i := range files {
		if _, err := os.ReadFile(m.path(fmt.Sprintf("f%04d", i))); err != nil {
			t.Fatal(err)
		}
	}
	r := &m.tree.passthrough
	waitFor(t, func() bool { return len(r.parked()) == limit })
	r.mu.Lock()
	if r.bytes != 10*limit || len(r.elems) != limit {
		t.Errorf("%d bytes in %d idle registrations", r.bytes, len(r.elems))
	}
	r.mu.Unlock()
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
	if n := len(r.parked()); n != 0 {
		t.Errorf("%d registrations are left", n)
	}
}

// TestReadahead checks that the kernel asks for 8 MiB ahead, in requests of 1 MiB.
func TestReadahead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which widening the readahead needs; run the tests as root, as .ci/run does")
	}
	names := newFakeNames()
	names.file("f", "v1", 64<<20)
	m := start(t, names, Options{CompleteAtOpen: -1})
	kb, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", m.number))
	if err != nil || strings.TrimSpace(string(kb)) != "8192" {
		t.Errorf("read_ahead_kb is %q, %v", kb, err)
	}
	if got, err := os.ReadFile(m.path("f")); err != nil || len(got) != 64<<20 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := m.Status().Reads; n > 100 {
		t.Errorf("64 MiB took %d requests", n)
	}
}
