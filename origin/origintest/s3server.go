package origintest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/origin"
)

// S3Options are how the server is started. The zero value works inside the
// repository.
type S3Options struct {
	// Dir holds the buckets, one directory each, and the server's log. "" means
	// a temporary directory that Close removes.
	Dir string
	// Port is the loopback port, 0 for a free one.
	Port int
	// Binary is the server to start; "" means $COVEY_S3_SERVER, else
	// bin/versitygw of the repository, which is built when it is missing.
	Binary string
}

// S3 is a running S3 server (versitygw over a directory) on a loopback port. Its
// methods may be called concurrently, except Start, Stop and Close.
type S3 struct {
	binary  string
	dir     string // everything of this server
	ownsDir bool
	addr    string
	counter *byteCounter

	access, secret string

	// healthPath is known to this server alone, so that another one that took
	// the port first is not taken for it.
	healthPath string

	// process of the running server, nil while it is stopped.
	process *exec.Cmd
	exited  chan struct{}
}

// Bounds of starting and stopping.
const (
	// startTimeout is generous: the server needs 0.1 s on an idle machine, and
	// two busy cores with the race detector have been seen to take 3 s.
	startTimeout = 30 * time.Second
	// stopTimeout is how long a graceful end may take before it is killed.
	stopTimeout = 3 * time.Second
)

// StartS3 is RunS3 for a test: it fails the test on error and ends the server
// when the test ends. The server's own output is logged when the test failed.
func StartS3(tb testing.TB, opts ...S3Options) *S3 {
	tb.Helper()
	var o S3Options
	if len(opts) > 0 {
		o = opts[0]
	}
	if o.Dir == "" {
		o.Dir = tb.TempDir()
	}
	s, err := RunS3(context.Background(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
		if tb.Failed() {
			tb.Logf("s3 server said: %s", s.Output())
		}
	})
	return s
}

// RunS3 starts a server and returns when it answers. The caller ends it with
// Close; ctx only bounds the start (and the build of the server, when its binary
// is missing).
func RunS3(ctx context.Context, opts S3Options) (*S3, error) {
	s := &S3{dir: opts.Dir, access: "coveytest", secret: "covey-test-secret-canary", healthPath: "/_health-" + rand.Text()}
	var err error
	if s.binary, err = serverBinary(ctx, opts.Binary); err != nil {
		return nil, err
	}
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "covey-s3-"); err != nil {
			return nil, fmt.Errorf("start s3 server: %w", err)
		}
		s.ownsDir = true
	}
	if s.addr, err = loopbackAddr(opts.Port); err == nil {
		err = os.MkdirAll(s.root(), 0o755)
	}
	if err == nil {
		s.counter, err = newByteCounter()
	}
	if err == nil {
		err = s.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start s3 server: %w", err), s.Close())
	}
	return s, nil
}

// loopbackAddr returns 127.0.0.1 with the port, or with one that was free a
// moment ago.
func loopbackAddr(port int) (string, error) {
	if port != 0 {
		return fmt.Sprintf("127.0.0.1:%d", port), nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Start starts the server again after Stop, on the same port with the same
// buckets, and returns when it answers.
func (s *S3) Start(ctx context.Context) error {
	if s.process != nil {
		return errors.New("s3 server is running already")
	}
	out, err := os.OpenFile(s.path("output"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(s.binary, s.args()...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.access, "ROOT_SECRET_KEY="+s.secret)
	cmd.Stdout, cmd.Stderr = out, out
	// The server dies with the program that started it, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	exited := make(chan struct{})
	if err := startPinned(cmd, exited); err != nil {
		return err
	}
	s.process, s.exited = cmd, exited
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.awaitHealth(ctx); err != nil {
		return errors.Join(fmt.Errorf("%w; it said: %s", err, s.Output()), s.Stop())
	}
	return nil
}

func (s *S3) args() []string {
	args := []string{
		"--port", s.addr, "--keep-alive", "--quiet", "--health", s.healthPath,
		"--access-log", s.path("access.log"),
		"--metrics-statsd-servers", s.counter.addr(),
		"posix",
	}
	if !hasXattrs(s.dir) {
		args = append(args, "--sidecar", s.path("sidecar"))
		// The server insists on finding it.
		_ = os.MkdirAll(s.path("sidecar"), 0o755)
	}
	return append(args, s.root())
}

// hasXattrs reports whether the file system keeps user attributes, where the
// server stores ETags; a tmpfs of an older kernel does not.
func hasXattrs(dir string) bool {
	return syscall.Setxattr(dir, "user.covey.probe", []byte("1"), 0) == nil
}

func (s *S3) awaitHealth(ctx context.Context) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint()+s.healthPath, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("it answered %s", resp.Status)
		}
		select {
		case <-s.exited:
			return fmt.Errorf("s3 server at %s ended: %w", s.addr, err)
		case <-ctx.Done():
			return fmt.Errorf("s3 server at %s does not answer: %w", s.addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the server and keeps its buckets, port and counts. It returns when
// the process is gone. Stopping a stopped server does nothing.
func (s *S3) Stop() error {
	if s.process == nil {
		return nil
	}
	p := s.process.Process
	_ = p.Signal(syscall.SIGTERM) // it may have gone already
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		_ = p.Kill()
		<-s.exited
	}
	s.process = nil
	return nil
}

// Close stops the server for good and removes the directory if RunS3 made it.
func (s *S3) Close() error {
	err := s.Stop()
	if s.counter != nil {
		s.counter.close()
	}
	if s.ownsDir {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// Endpoint returns the server's base URL.
func (s *S3) Endpoint() string { return "http://" + s.addr }

// URL returns the source URL of a prefix, which may be "", of a bucket.
func (s *S3) URL(bucket, prefix string) string { return sourceURL(s.Endpoint(), bucket, prefix) }

func sourceURL(endpoint, bucket, prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=us-east-1", bucket, prefix, endpoint)
}

// Env returns the variables that give a child process the server's credentials
// and nothing else of this machine's.
func (s *S3) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.access,
		"AWS_SECRET_ACCESS_KEY=" + s.secret,
		"AWS_SESSION_TOKEN=",
		"AWS_REGION=us-east-1",
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=" + os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
	}
}

// Options returns origin options with the server's credentials, for code in
// this process.
func (s *S3) Options() origin.Options {
	return origin.Options{Credentials: &origin.Credentials{AccessKey: s.access, SecretKey: s.secret}}
}

// CreateBucket makes a bucket. One that exists is left as it is.
func (s *S3) CreateBucket(name string) error {
	return os.MkdirAll(s.BucketDir(name), 0o755)
}

// BucketDir is the directory that holds the objects of a bucket as files. A file
// put there directly is an object without an ETag.
func (s *S3) BucketDir(name string) string { return filepath.Join(s.root(), name) }

// Output returns what the server printed.
func (s *S3) Output() string {
	b, err := os.ReadFile(s.path("output"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

func (s *S3) root() string            { return s.path("buckets") }
func (s *S3) path(name string) string { return filepath.Join(s.dir, name) }

// buildMu keeps tests of one process from building the server at once.
var buildMu sync.Mutex

// serverBinary finds the server, or builds it into bin of the repository.
func serverBinary(ctx context.Context, binary string) (string, error) {
	if binary == "" {
		binary = os.Getenv("COVEY_S3_SERVER")
	}
	if binary != "" {
		return binary, nil
	}
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	binary = filepath.Join(root, "bin", "versitygw")
	buildMu.Lock()
	defer buildMu.Unlock()
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	// Built beside its place and renamed, because packages are tested by several
	// processes at once.
	temp := fmt.Sprintf("%s.%d", binary, os.Getpid())
	build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "testnet", "tools", "s3server"),
		"-o", temp, "github.com/versity/versitygw/cmd/versitygw")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the s3 server: %w: %s", err, out)
	}
	return binary, os.Rename(temp, binary)
}

var moduleLine = regexp.MustCompile(`(?m)^module github\.com/covey-cache/covey$`)

// repoRoot walks up from the working directory to covey's go.mod.
func repoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && moduleLine.Match(b) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("s3 server: not inside the covey repository; name the binary in COVEY_S3_SERVER")
		}
		dir = filepath.Dir(dir)
	}
}
