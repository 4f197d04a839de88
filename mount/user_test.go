package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is a user without any privilege.
const nobody = 65534

// helperBecomeUser opens /dev/fuse to everybody, as distributions do, and puts aside
// what the machine's fuse.conf allows, in a mount namespace of its own, and goes on
// as a user.
func helperBecomeUser(dir string) error {
	device, conf := dir+".fuse", dir+".conf"
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 229))),
		os.Chmod(device, 0o666),
		unix.Mount(device, "/dev/fuse", "", unix.MS_BIND, ""),
		os.WriteFile(conf, nil, 0o644),
	} {
		if err != nil {
			return err
		}
	}
	if err := unix.Mount(conf, "/etc/fuse.conf", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	c := exec.Command(os.Args[0], dir)
	c.Dir = filepath.Dir(dir)
	c.Env = append(os.Environ(), helperEnv+"=user")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return c.Run()
}

// helperUser mounts as whoever runs it, reads a file and says how that went.
func helperUser(dir string) error {
	names := newFakeNames()
	names.file("f", "v1", 3*testBlock)
	cache := dir + ".cache"
	if err := os.Mkdir(cache, 0o700); err != nil {
		return err
	}
	if _, err := New(names, nil, dir, Options{AllowOther: true}); err == nil || !strings.Contains(err.Error(), "user_allow_other") {
		return fmt.Errorf("allow_other without leave: %w", err)
	}
	m, err := New(names, newFakeBlocksIn(cache, names), dir, Options{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	select {
	case <-m.Ready():
	case <-time.After(10 * time.Second):
		return errors.New("not ready")
	}
	if s := m.Status(); s.Passthrough || !strings.Contains(s.PassthroughWhy, "CAP_SYS_ADMIN") {
		return fmt.Errorf("status before the first open: passthrough %v, %q", s.Passthrough, s.PassthroughWhy)
	}
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, wanted("f", "v1", 3*testBlock)) {
		return fmt.Errorf("%d bytes: %w", len(got), err)
	}
	if err := m.Unmount(); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount under an open file: %w", err)
	}
	f.Close()
	fstype, _, _ := Mounted(dir)
	s := m.Status()
	fmt.Printf("%s, passed through %d, served %d: %s\n", fstype, s.OpenPassthrough, s.OpenDaemon, s.PassthroughWhy)
	cancel()
	if err := <-ended; err != nil {
		return err
	}
	if _, _, ok := Mounted(dir); ok {
		return errors.New("still mounted")
	}
	return nil
}

// TestUnprivileged mounts by fusermount3 as a user without privilege: nothing is
// passed through, everything works, and the status says why.
func TestUnprivileged(t *testing.T) {
	needFuse(t)
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which becoming another user needs; run the tests as root, as .ci/run does")
	}
	bin, err := fusermount()
	if err != nil {
		t.Skipf("needs fusermount3: %v", err)
	}
	if st, err := os.Stat(bin); err != nil || st.Mode()&os.ModeSetuid == 0 {
		t.Skipf("%s is not set-user-ID root, so users cannot mount", bin)
	}
	base := t.TempDir()
	dir := filepath.Join(base, "mnt")
	exe := filepath.Join(base, "helper")
	for _, err := range []error{
		copyFile(os.Args[0], exe),
		os.Mkdir(dir, 0o755),
		os.Chown(dir, nobody, nobody), os.Chown(base, nobody, nobody),
		os.Chmod(filepath.Dir(base), 0o755), os.Chmod(base, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := exec.Command(exe, dir)
	c.Env = append(os.Environ(), helperEnv+"=becomeUser")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, stderr.String())
	}
	for _, want := range []string{fsType, "passed through 0, served 1", "CAP_SYS_ADMIN"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q: want %q in it", out, want)
		}
	}
}

func copyFile(from, to string) error {
	p, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, p, 0o755)
}
