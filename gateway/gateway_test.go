package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// serve serves a handler until the test ends and checks that it joins.
func serve(t *testing.T, l net.Listener, h http.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, nil) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve did not end with its context")
		}
	})
}

// serveSocket serves an agent on a new socket and returns a client of it.
func serveSocket(t *testing.T, a Agent) *Client {
	t.Helper()
	l, err := ListenUnix(filepath.Join(t.TempDir(), "run", "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, NewHandler(a, HandlerOptions{Gatherer: prometheus.NewRegistry(), Socket: true}))
	c, err := Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// serveTCP serves an agent read-only and returns its URL.
func serveTCP(t *testing.T, a Agent, addr string, reg prometheus.Gatherer) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, NewHandler(a, HandlerOptions{Gatherer: reg}))
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "http://127.0.0.1:" + port
}

func ask(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestClientRoundTrip(t *testing.T) {
	a := &fakeAgent{}
	c := serveSocket(t, a)
	ctx := t.Context()

	s, err := c.Status(ctx)
	if err != nil || s.PeerID != "12D3KooWTest" || s.Fetched.Neighbour != 2 || s.Tiers == nil || s.OriginRequests == nil {
		t.Errorf("Status = %+v, %v", s, err)
	}
	if peers, err := c.Peers(ctx); err != nil || len(peers) != 1 || peers[0].Addresses == nil {
		t.Errorf("Peers = %+v, %v", peers, err)
	}
	// A name with every character that URLs give a meaning to.
	dir := "/mnt/a b&c=d?e#f%2e+ü"
	if m, err := c.Mount(ctx, MountRequest{Source: "s3://b/p?endpoint=http://h:1", Dir: dir}); err != nil || m.Dir != dir {
		t.Fatalf("Mount = %+v, %v", m, err)
	}
	if m, err := c.Mounts(ctx); err != nil || len(m) != 1 || m[0].Dir != dir {
		t.Errorf("Mounts = %+v, %v", m, err)
	}
	if l, err := c.Locate(ctx, dir+"/x"); err != nil || l.Path != dir+"/x" || l.Blocks[0].Holders == nil {
		t.Errorf("Locate = %+v, %v", l, err)
	}
	if err := c.Unmount(ctx, dir); err != nil {
		t.Errorf("Unmount: %v", err)
	}
	if err := c.Unmount(ctx, dir); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("second Unmount: %v, want not found", err)
	}
	j, err := c.Prefetch(ctx, PrefetchRequest{Path: dir, Replicas: 2, Rate: 100})
	if err != nil || j.State != "running" {
		t.Fatalf("Prefetch = %+v, %v", j, err)
	}
	if err := c.CancelJob(ctx, j.ID); err != nil {
		t.Errorf("CancelJob: %v", err)
	}
	if j, err = c.Job(ctx, j.ID); err != nil || j.State != "cancelled" {
		t.Errorf("Job = %+v, %v", j, err)
	}
	if _, err = c.Job(ctx, "nobody"); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("Job of nobody: %v, want not found", err)
	}
}

func TestReady(t *testing.T) {
	a := &fakeAgent{ready: errStarting}
	c := serveSocket(t, a)
	err := c.Ready(t.Context())
	if !errors.Is(err, covey.ErrUnavailable) || err.Error() != "mount /data is not mounted yet" {
		t.Errorf("Ready while starting: %v", err)
	}
	if s, e := c.Status(t.Context()); e != nil || s.Ready || s.NotReady != err.Error() {
		t.Errorf("status while starting: %+v, %v", s, e)
	}
	a.setReady(nil)
	if s, err := c.Status(t.Context()); err != nil || !s.Ready || s.NotReady != "" {
		t.Errorf("status when ready: %+v, %v", s, err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// Every error kind must come out of the client as it went into the API, with
// its text and without a second line.
func TestErrorKindsSurvive(t *testing.T) {
	kinds := []error{covey.ErrNotFound, covey.ErrStale, covey.ErrDenied, covey.ErrThrottled, covey.ErrUnavailable,
		covey.ErrCorrupt, covey.ErrFull, covey.ErrReadOnly, covey.ErrInvalid}
	var give error
	c := serveSocket(t, &fakeAgent{locate: func(context.Context, string) (Location, error) { return Location{}, give }})
	for _, kind := range kinds {
		give = fmt.Errorf("stat a\nb: %w", kind)
		_, err := c.Locate(t.Context(), "/x")
		for _, k := range kinds {
			if same := errors.Is(kind, k); errors.Is(err, k) != same {
				t.Errorf("%v arrived as %v: Is(%v) = %v", kind, err, k, !same)
			}
		}
		if want := "stat a b: " + kind.Error(); err == nil || err.Error() != want {
			t.Errorf("%v reads %v, want %q", kind, err, want)
		}
	}
	give = errors.New("what nobody expected")
	_, err := c.Locate(t.Context(), "/x")
	var r *ResponseError
	if !errors.As(err, &r) || r.Status != http.StatusInternalServerError || r.Message != give.Error() {
		t.Errorf("an error of no kind arrived as %v", err)
	}
}

func TestTCPOnlyReads(t *testing.T) {
	a := &fakeAgent{mounts: []Mount{{Source: "s", Dir: "/data"}}}
	url := serveTCP(t, a, "127.0.0.1:0", prometheus.NewRegistry())
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/healthz", 200},
		{"GET", "/readyz", 200},
		{"GET", "/api/v1/status", 200},
		{"HEAD", "/api/v1/status", 200},
		{"GET", "/api/v1/peers", 200},
		{"GET", "/api/v1/mounts", 200},
		{"GET", "/api/v1/locate?path=/data/x", 200},
		{"GET", "/api/v1/locate?path=/data", 200},
		{"GET", "/api/v1/locate", 400},
		{"GET", "/api/v1/locate?path=/database/x", 403},
		{"GET", "/api/v1/locate?path=/data/../etc/passwd", 403},
		{"GET", "/api/v1/locate?path=s3://b/k?endpoint=http://169.254.169.254", 403},
		{"POST", "/api/v1/mounts", 403},
		{"DELETE", "/api/v1/mounts?dir=/data", 403},
		{"POST", "/api/v1/prefetch", 403},
		{"DELETE", "/api/v1/jobs/1", 403},
		{"GET", "/api/v1/jobs/1", 404},
		{"PUT", "/api/v1/mounts", 405},
		{"GET", "/api/v1/prefetch", 405},
		{"GET", "/api/v1/nothing", 404},
		{"GET", "/nothing", 404},
		{"GET", "/debug/pprof/cmdline", 200},
	} {
		status, body := ask(t, tc.method, url+tc.path, `{"source":"s","dir":"/d","path":"/d"}`)
		if status != tc.status {
			t.Errorf("%s %s: %d %s, want %d", tc.method, tc.path, status, body, tc.status)
		}
		if strings.HasPrefix(tc.path, "/api/") && status >= 400 && !strings.HasPrefix(body, `{"error":"`) {
			t.Errorf("%s %s: the error is no JSON: %s", tc.method, tc.path, body)
		}
	}
	if len(a.Mounts()) != 1 || len(a.jobs) != 0 {
		t.Error("a request over TCP changed the agent")
	}
}

func TestProfilesStayOnThisHost(t *testing.T) {
	open := serveTCP(t, &fakeAgent{}, "0.0.0.0:0", prometheus.NewRegistry())
	if status, _ := ask(t, "GET", open+"/debug/pprof/cmdline", ""); status != http.StatusForbidden {
		t.Errorf("on a listener for all addresses: %d, want 403", status)
	}
	loopback := serveTCP(t, &fakeAgent{}, "127.0.0.1:0", prometheus.NewRegistry())
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, loopback+"/debug/pprof/cmdline", nil)
	req.Host = "rebound.example.org"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("by another host's name: %d, want 403", resp.StatusCode)
	}
}

func TestBadBodies(t *testing.T) {
	c := serveSocket(t, &fakeAgent{})
	post := func(body string) (int, string) {
		resp, err := c.http.Post("http://localhost/api/v1/mounts", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	for body, want := range map[string]int{
		`{"source":"s","dir":"/d"}`:                  200,
		`{"source":"bad://","dir":"/d"}`:             400,
		`{"source":"s","dir":"relative"}`:            400,
		`{"source":"s"}`:                             400,
		`{"source":"s","dir":"/d","later_option":1}`: 400,
		`{"source":"s","dir":"/d"} {}`:               400,
		`{`:                                          400,
		``:                                           400,
		`{"source":"` + strings.Repeat("x", maxBody) + `"`: 413,
	} {
		if status, text := post(body); status != want {
			t.Errorf("body %.40q: %d %s, want %d", body, status, text, want)
		}
	}
	for _, r := range []PrefetchRequest{{}, {Path: "/p", Replicas: -1}, {Path: "/p", Rate: -1}} {
		if _, err := c.Prefetch(t.Context(), r); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("Prefetch(%+v): %v, want invalid", r, err)
		}
	}
}

func TestPageAndMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	n := prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_test_total", Help: "h"})
	reg.MustRegister(n)
	n.Inc()
	url := serveTCP(t, &fakeAgent{}, "127.0.0.1:0", reg)
	if status, body := ask(t, "GET", url+"/metrics", ""); status != 200 || !strings.Contains(body, "covey_test_total 1") {
		t.Errorf("/metrics: %d %s", status, body)
	}
	_, html := ask(t, "GET", url+"/", "")
	for _, file := range []string{"/page.css", "/page.js"} {
		if !strings.Contains(html, file) {
			t.Errorf("the page does not use %s", file)
		}
		if status, body := ask(t, "GET", url+file, ""); status != 200 || strings.Contains(body, "http://") || strings.Contains(body, "https://") {
			t.Errorf("%s: %d, or it names another host", file, status)
		}
	}
}

func TestNoAgent(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	leaveStale(t, stale)
	for _, socket := range []string{filepath.Join(dir, "none.sock"), stale} {
		_, err := Dial(t.Context(), socket)
		want := "no agent answers on " + socket + "; start one with `covey agent`"
		if !errors.Is(err, ErrNoAgent) || !errors.Is(err, covey.ErrUnavailable) || err.Error() != want {
			t.Errorf("Dial: %v, want %s", err, want)
		}
		c := NewClient(socket)
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrNoAgent) || err.Error() != want {
			t.Errorf("Status: %v, want %s", err, want)
		}
	}
}

// leaveStale makes the socket file of a listener that is gone.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestListenUnix(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "agent.sock")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, path: 0o600 | os.ModeSocket} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	if _, err := ListenUnix(path); !errors.Is(err, covey.ErrUnavailable) || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a live socket: %v", err)
	}
	l.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket outlives its listener: %v", err)
	}

	leaveStale(t, path)
	l, err = ListenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l.Close()

	foreign, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("a socket that another program answers on: %v", err)
	}
	foreign.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("a file in the way: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Error("the file in the way was changed")
	}
	for _, bad := range []string{"relative.sock", "/" + strings.Repeat("x", 108)} {
		if _, err := ListenUnix(bad); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("ListenUnix(%.20q): %v", bad, err)
		}
	}
}

// A request that does not end by itself must end with the server's context, and
// Serve must not return before its handler has.
func TestServeJoinsRequests(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	a := &fakeAgent{locate: func(ctx context.Context, _ string) (Location, error) {
		close(entered)
		<-ctx.Done()
		close(left)
		return Location{}, ctx.Err()
	}}
	l, err := ListenUnix(filepath.Join(t.TempDir(), "a.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, NewHandler(a, HandlerOptions{Socket: true}), nil) }()
	c := NewClient(l.Addr().String())
	defer c.Close()
	asked := make(chan error, 1)
	go func() { _, err := c.Locate(t.Context(), "/x"); asked <- err }()
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	select {
	case <-left:
	default:
		t.Error("Serve returned before the request had ended")
	}
	if err := <-asked; err == nil {
		t.Error("the interrupted request succeeded")
	}
}

// A client that never finishes its request must not hold a connection for ever,
// and no more than maxConns may be open.
func TestLimitedConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limited := limitConns(l, 1)
	defer limited.Close()
	first, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	accepted, err := limited.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		c, err := limited.Accept()
		if err == nil {
			c.Close()
		}
		second <- err
	}()
	other, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	select {
	case err := <-second:
		t.Fatal("a second connection was accepted past the limit", err)
	case <-time.After(20 * time.Millisecond):
	}
	accepted.Close()
	accepted.Close() // closing twice must free one place only
	if err := <-second; err != nil {
		t.Errorf("Accept after a close: %v", err)
	}

	full := limitConns(l, 1).(*limitListener)
	full.slots <- struct{}{}
	_ = full.Close()
	if _, err := full.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept on a closed full listener: %v", err)
	}
}
