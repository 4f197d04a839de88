package mount

import (
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

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// helperEnv makes the test binary another process that uses a mount: page faults
// on a mapped file must not come from the process that serves them.
const helperEnv = "COVEY_MOUNT_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		if err := helper(what, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func helper(what string, args []string) error {
	switch what {
	case "mmap":
		return helperMmap(args)
	case "serve":
		return helperServe(args[0])
	case "becomeUser":
		return helperBecomeUser(args[0])
	case "user":
		return helperUser(args[0])
	case "serveHeld":
		return helperServeHeld(args[0], args[1], args[2])
	case "writeInSteps":
		return helperWriteInSteps(args[0])
	case "hold":
		return helperHold(args[0])
	case "cat":
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		return err
	}
	return fmt.Errorf("no helper %q", what)
}

// helperMmap writes the digest of each file, read through a mapping, to stdout.
func helperMmap(files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		var p []byte
		if st.Size() > 0 {
			p, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				return fmt.Errorf("map %s: %w", name, err)
			}
		}
		f.Close()
		fmt.Println(covey.Sum(p))
	}
	return nil
}

// mapped has another process map the files, and returns their digests.
func mapped(t testing.TB, files ...string) []string {
	t.Helper()
	return strings.Fields(string(run(t, "mmap", files...)))
}

// helperHold opens the file, says so, and keeps it open until stdin ends; then
// it reads it once more to stdout.
func helperHold(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "open")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, f)
	return err
}

// command returns the helper as a command.
func command(what string, args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), helperEnv+"="+what)
	return c
}

// run returns what the helper writes.
func run(t testing.TB, what string, args ...string) []byte {
	t.Helper()
	c := command(what, args...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("helper %s %v: %v", what, args, err)
	}
	return out
}

// mounted is one mount under test.
type mounted struct {
	*Mount
	names  *fakeNames
	blocks *fakeBlocks
	dir    string
	end    func() error // ends Run and returns its error; idempotent
}

func needFuse(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing; load the module (modprobe fuse), as .ci/run does")
	}
}

// start mounts the fakes and asserts, now and at the end, that the directory is
// really a mount of ours and then no longer is.
func start(t testing.TB, names *fakeNames, opts Options) *mounted {
	t.Helper()
	return startOver(t, names, newFakeBlocks(t, names), t.TempDir(), opts)
}

// startOver is start over given blocks and directory; before is done to the
// mount ahead of its Run.
func startOver(t testing.TB, names *fakeNames, blocks *fakeBlocks, dir string, opts Options, before ...func(*Mount)) *mounted {
	t.Helper()
	needFuse(t)
	m, err := New(names, blocks, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range before {
		f(m)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- m.Run(ctx) }()
	var ended bool
	var runErr error
	s := &mounted{Mount: m, names: names, blocks: blocks, dir: dir}
	s.end = func() error {
		if !ended {
			ended = true
			cancel()
			select {
			case runErr = <-result:
			case <-time.After(10 * time.Second):
				t.Fatal("Run did not end within 10 s")
			}
		}
		return runErr
	}
	t.Cleanup(func() {
		if !ended {
			s.isMounted(t)
		}
		if err := s.end(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if _, _, ok := Mounted(dir); ok {
			t.Errorf("%s is still mounted", dir)
		}
		if n := blocks.open.Load(); n != 0 {
			t.Errorf("%d block handles were never released", n)
		}
	})
	select {
	case <-m.Ready():
	case err := <-result:
		t.Fatalf("Run ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready within 10 s")
	}
	s.isMounted(t)
	return s
}

func (m *mounted) isMounted(t testing.TB) {
	t.Helper()
	fstype, source, ok := Mounted(m.dir)
	if !ok || fstype != fsType || source != fsName {
		t.Fatalf("%s: mounted %v, type %q, source %q", m.dir, ok, fstype, source)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil || st.Type != unix.FUSE_SUPER_MAGIC {
		t.Fatalf("%s: statfs type %#x, %v", m.dir, st.Type, err)
	}
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

// needPassthrough skips where the kernel has none; the daemon's path is tested
// by itself.
func (m *mounted) needPassthrough(t testing.TB) {
	t.Helper()
	if s := m.Status(); !s.Passthrough {
		t.Skipf("no passthrough here: %s", s.PassthroughWhy)
	}
}

func isErrno(err error, want syscall.Errno) bool {
	var e syscall.Errno
	return errors.As(err, &e) && e == want
}
