package testnet_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/testnet"
)

func requireNotMounted(t *testing.T, dir string) {
	t.Helper()
	if fstype, _, ok := mount.Mounted(dir); ok {
		t.Errorf("%s is still mounted (%s)", dir, fstype)
	}
}

// failingAgent runs an agent that is to end by itself and returns its exit code
// and what it wrote on standard error.
func failingAgent(t *testing.T, m *mesh, env []string, args ...string) (code int, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	all := []string{
		"agent", "--state", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0", "--http", "off",
		"--api", "unix://" + filepath.Join(m.dir, "bad.sock"), "--log-level", "error",
	}
	if !strings.Contains(strings.Join(args, " "), "--cache") {
		args = append(args, "--cache", filepath.Join(dir, "cache")+":1GiB")
	}
	c := exec.CommandContext(ctx, coveyBinary, append(all, args...)...)
	c.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	c.Stderr = &out
	err := c.Run()
	if ctx.Err() != nil {
		t.Fatalf("covey agent %v is still running: %s", args, out.String())
	}
	if err == nil {
		t.Fatalf("covey agent %v ended without an error", args)
	}
	return c.ProcessState.ExitCode(), out.String()
}

// Each fault in what a person gives an agent ends it with exit code 1 or 2 and
// one line that names what was wrong.
func TestBadInputToAnAgent(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 10})
	running := m.agent(t)
	full := filepath.Join(m.dir, "notempty")
	writeFiles(t, full, map[string]int{"there": 1})
	empty := filepath.Join(m.dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.dir, "file")
	writeFiles(t, m.dir, map[string]int{"file": 1})
	foreign := filepath.Join(m.dir, "foreign")
	writeFiles(t, foreign, map[string]int{"FORMAT": 100, "format": 100, "VERSION": 100})
	good := m.s3.URL(bucket, "")
	endpoint := m.s3.Endpoint()
	wrongKey := []string{"AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY=wrong"}
	for _, c := range []struct {
		name string
		env  []string
		args []string
		code int
		says string
	}{
		{"unknown scheme", nil, []string{"--mount", "ftp://host/x=" + empty}, 2, "ftp"},
		{"malformed URL", nil, []string{"--mount", "s3://=" + empty}, 2, "s3://"},
		{"missing bucket", nil, []string{"--mount", "s3://no-such-bucket?endpoint=" + endpoint + "=" + empty}, 1, "no-such-bucket"},
		{"wrong credentials", wrongKey, []string{"--mount", good + "=" + empty}, 1, "access key"},
		{"missing path", nil, []string{"--mount", "/no/such/path=" + empty}, 1, "/no/such/path"},
		{"mount point missing", nil, []string{"--mount", good + "=/no/such/dir"}, 1, "/no/such/dir"},
		{"mount point not empty", nil, []string{"--mount", good + "=" + full}, 1, full},
		{"mount point a file", nil, []string{"--mount", good + "=" + file}, 1, file},
		{"already mounted", nil, []string{"--mount", good + "=" + running.Mount()}, 1, running.Mount()},
		{"cache owned by a running agent", nil, []string{"--cache", running.CacheDir() + ":1GiB"}, 1, running.CacheDir()},
		{"cache is a file", nil, []string{"--cache", file + ":1GiB"}, 1, file},
		{"malformed mount", nil, []string{"--mount", "nothing"}, 2, "nothing"},
		{"bad size", nil, []string{"--cache", empty + ":1XB"}, 2, ""},
		{"join without a key", nil, []string{"--join", "127.0.0.1:1"}, 2, "--cluster-key"},
		{"key file missing", nil, []string{"--cluster-key", "/no/such/key"}, 1, "/no/such/key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := m.s3.Env()
			if c.env != nil {
				env = append(env, c.env...)
			}
			code, stderr := failingAgent(t, m, env, c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr)
			}
			if n := strings.Count(stderr, "\n"); n != 1 {
				t.Errorf("%d lines on stderr, want one:\n%s", n, stderr)
			}
			if !strings.Contains(stderr, c.says) {
				t.Errorf("the line does not name %q: %s", c.says, stderr)
			}
			if strings.Contains(stderr, "wrong") && c.env != nil && strings.Contains(stderr, "SECRET") {
				t.Errorf("a secret in the line: %s", stderr)
			}
		})
	}
	m.compare(t, running)
	requireNotMounted(t, empty)
}

// A peer with another cluster's key is refused, and the mesh does not notice.
func TestPeerWithoutTheClusterKey(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 10})
	member := m.agent(t)
	strangers, err := testnet.NewCluster(testnet.ClusterOptions{Binary: coveyBinary, Dir: t.TempDir(), Env: m.s3.Env()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := strangers.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stranger, err := strangers.Start(ctx, testnet.AgentSpec{Join: []string{member.Listen()}})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*testnet.Process{"member": member, "stranger": stranger} {
		s, err := p.Client().Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if s.Peers != 0 {
			t.Errorf("the %s has %d peers, want none", name, s.Peers)
		}
		log, err := os.ReadFile(p.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(log), "refused") {
			t.Errorf("the %s's log says nothing of a refusal:\n%s", name, log)
		}
	}
}

// fault 15: a cache directory on a read-only file system, or on a full one
// (fault 10): the agent starts without a cache, says so, and serves.
func TestCacheDirectoryThatCannotBeWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which mounting a small tmpfs needs; run the tests as root, as .ci/run does")
	}
	for name, options := range map[string]string{"read-only": "ro", "full": "size=16k"} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, map[string]int{"a": 3*blockSize + 1, "b": 100})
			dir := filepath.Join(m.dir, "a1", "cache")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount("covey-test", dir, "tmpfs", 0, strings.TrimPrefix(options, "ro")); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			if options == "ro" {
				if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
			}
			p := m.agentWith(t, testnet.AgentSpec{CacheSize: "8KiB"})
			m.compare(t, p)
			s, err := p.Client().Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !s.Tiers[0].ReadOnly || s.Tiers[0].State != "off" || s.Tiers[0].Why == "" || s.Tiers[1].Dir != "memory" {
				t.Errorf("status does not say that the cache is read-only: %+v", s.Tiers[0])
			}
			log, err := os.ReadFile(p.LogFile())
			if err != nil || !strings.Contains(string(log), "cannot be used") {
				t.Errorf("the log says nothing: %v", err)
			}
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A cache directory that cannot be written leaves the mount working.
func TestCacheWithoutRoom(t *testing.T) {
	m := newMesh(t, map[string]int{"a": 3*blockSize + 1, "b": 100, "c": blockSize})
	p := m.agentWith(t, testnet.AgentSpec{CacheSize: "4MiB"})
	m.compare(t, p)
	m.compare(t, p)
}
