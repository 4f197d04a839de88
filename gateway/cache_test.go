package gateway

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

func TestCacheCalls(t *testing.T) {
	a := &fakeAgent{}
	c := serveSocket(t, a)
	ctx := t.Context()
	path := "/mnt/a b&c=d?e#f%2e+ü"

	if s, err := c.Stat(ctx, path); err != nil || s.Path != path || s.Size != 5 {
		t.Errorf("Stat = %+v, %v", s, err)
	}
	if d, err := c.Du(ctx, path); err != nil || d.Total.Source != path || d.Sources == nil {
		t.Errorf("Du = %+v, %v", d, err)
	}
	if d, err := c.Du(ctx, ""); err != nil || d.Total.Source != "" || d.Total.Used != 4096 {
		t.Errorf("Du of everything = %+v, %v", d, err)
	}
	if p, err := c.Pin(ctx, path); err != nil || p.Files != 2 || p.Changed != 1 {
		t.Errorf("Pin = %+v, %v", p, err)
	}
	if _, err := c.Pin(ctx, "/big"); !errors.Is(err, covey.ErrFull) || !strings.Contains(err.Error(), "42 bytes") {
		t.Errorf("Pin without room: %v, want full and the number", err)
	}
	if p, err := c.Unpin(ctx, path); err != nil || p.Changed != 1 {
		t.Errorf("Unpin = %+v, %v", p, err)
	}
	if e, err := c.Evict(ctx, path); err != nil || e.Freed != 4096 {
		t.Errorf("Evict = %+v, %v", e, err)
	}
	if j, err := c.Verify(ctx, ""); err != nil || j.Kind != "verify" || j.Path != "" {
		t.Errorf("Verify = %+v, %v", j, err)
	}
	if l, err := c.Tiers(ctx); err != nil || len(l) != 1 || l[0].State != "ok" {
		t.Errorf("Tiers = %+v, %v", l, err)
	}
	if err := c.ReviveTier(ctx, "/fast"); err != nil {
		t.Error(err)
	}
	if err := c.ReviveTier(ctx, "/none"); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("ReviveTier of none: %v", err)
	}
	if err := c.ReviveTier(ctx, ""); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("ReviveTier without one: %v", err)
	}
	want := []string{"pin " + path, "unpin " + path, "evict " + path, "verify ", "revive /fast"}
	if !slices.Equal(a.changes, want) {
		t.Errorf("the agent was asked for %q, want %q", a.changes, want)
	}
}

// What was left out of a request does not mean everything.
func TestCacheCallsNeedAPath(t *testing.T) {
	a := &fakeAgent{}
	c := serveSocket(t, a)
	for _, call := range []string{"pin", "unpin", "evict"} {
		err := c.call(t.Context(), http.MethodPost, "/api/v1/"+call, struct{}{}, nil)
		if !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%s without a path: %v, want invalid", call, err)
		}
	}
	if _, err := c.Stat(t.Context(), ""); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("Stat without a path: %v, want invalid", err)
	}
	if len(a.changes) != 0 {
		t.Errorf("the agent was asked for %q", a.changes)
	}
}

func TestCacheOverTCPOnlyReads(t *testing.T) {
	a := &fakeAgent{mounts: []Mount{{Source: "s", Dir: "/data"}}}
	url := serveTCP(t, a, "127.0.0.1:0", prometheus.NewRegistry())
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/api/v1/stat?path=/data/x", 200},
		{"GET", "/api/v1/stat?path=/etc/passwd", 403},
		{"GET", "/api/v1/stat", 400},
		{"GET", "/api/v1/du", 200},
		{"GET", "/api/v1/du?path=/data", 200},
		{"GET", "/api/v1/du?path=s3://b/k?endpoint=http://169.254.169.254", 403},
		{"POST", "/api/v1/pin", 403},
		{"POST", "/api/v1/unpin", 403},
		{"POST", "/api/v1/evict", 403},
		{"POST", "/api/v1/verify", 403},
		{"GET", "/api/v1/tiers", 200},
		{"POST", "/api/v1/tiers/revive", 403},
		{"GET", "/api/v1/evict", 405},
	} {
		if status, body := ask(t, tc.method, url+tc.path, `{"path":"/data"}`); status != tc.status {
			t.Errorf("%s %s: %d %s, want %d", tc.method, tc.path, status, body, tc.status)
		}
	}
	if len(a.changes) != 0 {
		t.Errorf("requests over TCP asked the agent for %q", a.changes)
	}
}
