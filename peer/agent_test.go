package peer

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/gateway"
)

// newAgent makes an agent that does not run, with a directory to mount from.
func newAgent(t *testing.T) (a *Agent, source string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing; load the module (modprobe fuse), as .ci/run does")
	}
	source = t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "f"), []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := NewAgent(AgentOptions{Cache: []CacheDir{{Dir: t.TempDir(), Size: 1 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a, source
}

// mountedOn reports whether a file system is mounted on the directory.
func mountedOn(t *testing.T, dir string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+dir+" ")
}

// An agent that leaves while it is asked to mount does not leave a mount behind,
// however late the mount comes about.
func TestMountWhileLeaving(t *testing.T) {
	a, source := newAgent(t)
	dir := t.TempDir()
	e, err := a.mounts.reserve(dir)
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan struct{})
	go func() {
		a.unmountAll()
		close(left)
	}()
	eventually(t, "the agent is leaving", a.mounts.leaving)
	if err := a.mount(t.Context(), e, gateway.MountRequest{Source: source, Dir: e.dir}); err == nil {
		t.Error("an agent that was leaving has mounted")
	}
	select {
	case <-left:
	case <-time.After(2 * unmountTimeout):
		t.Fatal("leaving waits for a mount that has failed")
	}
	if mountedOn(t, dir) {
		t.Error("a mount was left behind")
	}
	if _, err := a.Mount(t.Context(), gateway.MountRequest{Source: source, Dir: dir}); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("mount after leaving: %v, want unavailable", err)
	}
}

// Whoever mounts and unmounts one directory at the same time: a mount that was
// reported is known until it is unmounted, and none is left in the end.
func TestMountAndUnmountAtOnce(t *testing.T) {
	a, source := newAgent(t)
	dir := t.TempDir()
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 15 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+worker)%3 == 0 {
					// Gives up at some moment of the mounting.
					time.AfterFunc(time.Duration(i)*200*time.Microsecond, cancel)
				}
				_, err := a.Mount(ctx, gateway.MountRequest{Source: source, Dir: dir})
				cancel()
				if err != nil {
					continue
				}
				// Nobody else unmounts what this worker mounted.
				if e, known := a.mounts.get(dir); !known {
					t.Error("a mount that was reported is not known")
				} else if len(a.Mounts()) != 1 || !mountedOn(t, dir) {
					t.Error("a mount that was reported does not serve", e.dir)
				}
				var twice sync.WaitGroup
				for range 2 {
					twice.Go(func() {
						if err := a.Unmount(t.Context(), dir); err != nil && !errors.Is(err, covey.ErrNotFound) {
							t.Errorf("unmount: %v", err)
						}
					})
				}
				twice.Wait()
			}
		})
	}
	all.Wait()
	if list := a.Mounts(); len(list) != 0 || mountedOn(t, dir) {
		t.Errorf("left: %v", list)
	}
}

// A start that fails at its last step gives back all that came before it.
func TestNewAgentFailsWhole(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := AgentOptions{
		Cache: []CacheDir{{Dir: t.TempDir(), Size: 1 << 20}}, StateDir: t.TempDir(),
		API: filepath.Join(t.TempDir(), "s"), HTTP: taken.Addr().String(),
	}
	if _, err := NewAgent(o); err == nil || !strings.Contains(err.Error(), "--http") {
		t.Fatalf("HTTP address in use: %v, want an error that names --http", err)
	}
	taken.Close()
	// The cache's lock, the socket and the address are free again.
	a, err := NewAgent(o)
	if err != nil {
		t.Fatal(err)
	}
	a.close()
}
