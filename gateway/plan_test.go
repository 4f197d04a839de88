package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
)

// fakePlans keeps plans in memory. The zero value works.
type fakePlans struct {
	plans map[string]Plan
}

func (a *fakePlans) AddPlan(_ context.Context, r PlanRequest) (Plan, error) {
	if a.plans == nil {
		a.plans = map[string]Plan{}
	}
	p := Plan{ID: fmt.Sprintf("p%d", len(a.plans)), Job: r.Job, Source: r.Source, State: "resolving",
		LeaseSeconds: int(r.Lease().Seconds())}
	a.plans[p.ID] = p
	return p, nil
}

func (a *fakePlans) Plans() []Plan {
	var all []Plan
	for _, p := range a.plans {
		all = append(all, p)
	}
	return all
}

func (a *fakePlans) Plan(id string) (Plan, error) {
	p, ok := a.plans[id]
	if !ok {
		return p, fmt.Errorf("plan %s: %w", id, covey.ErrNotFound)
	}
	return p, nil
}

func (a *fakePlans) RenewPlan(id string, lease time.Duration) (Plan, error) {
	p, err := a.Plan(id)
	if err == nil && lease != 0 {
		p.LeaseSeconds = int(lease.Seconds())
		a.plans[id] = p
	}
	return p, err
}

func (a *fakePlans) CancelPlan(id string) error {
	_, err := a.Plan(id)
	delete(a.plans, id)
	return err
}

func specOf(t *testing.T, s plan.Spec) string {
	t.Helper()
	b, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

func TestPlanOverTheSocket(t *testing.T) {
	l, err := ListenUnix(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- Serve(ctx, l, NewHandler(&fakeAgent{}, HandlerOptions{Socket: true}), nil) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	c := NewClient(l.Addr().String())
	defer c.Close()

	// Half a million names: what does not fit the other calls fits here.
	files := make([]string, 500_000)
	for i := range files {
		files[i] = fmt.Sprintf("class-%05d/sample-%09d.jpeg", i%1000, i)
	}
	spec := plan.Spec{Samples: uint64(len(files)), World: 8, Shuffle: true}
	p, err := c.AddPlan(ctx, PlanRequest{Source: "/mnt/d", Job: "j", Spec: specOf(t, spec), Ranks: []uint32{0, 7},
		Epochs: 90, Manifest: PlanManifest{Files: files}, LeaseSeconds: 30})
	if err != nil || p.LeaseSeconds != 30 || p.Source != "/mnt/d" {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err = c.RenewPlan(ctx, p.ID, PlanRenewal{LeaseSeconds: 300}); err != nil || p.LeaseSeconds != 300 {
		t.Errorf("renewed: %+v, %v", p, err)
	}
	if _, err := c.RenewPlan(ctx, p.ID, PlanRenewal{LeaseSeconds: 2}); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("a lease of 2 s: %v", err)
	}
	if all, err := c.Plans(ctx); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	if err := c.CancelPlan(ctx, p.ID); err != nil {
		t.Error(err)
	}
	if _, err := c.Plan(ctx, p.ID); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("after it was cancelled: %v", err)
	}
	if _, err := c.RenewPlan(ctx, p.ID, PlanRenewal{}); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("renewed after it was cancelled: %v", err)
	}
}

// Nothing changes over the door that does not say who is asking.
func TestPlanNeedsTheSocket(t *testing.T) {
	h := NewHandler(&fakeAgent{}, HandlerOptions{})
	for _, c := range []call{{"POST", "/api/v1/plans"}, {"DELETE", "/api/v1/plans/p0"}, {"POST", "/api/v1/plans/p0/renew"}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader("{}")))
		if w.Code != http.StatusForbidden {
			t.Errorf("%s %s: %d", c.method, c.path, w.Code)
		}
	}
}

func TestPlanRequestValidate(t *testing.T) {
	spec := specOf(t, plan.Spec{Samples: 10, World: 2})
	good := PlanRequest{Source: "/d", Spec: spec, Ranks: []uint32{0}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	if good.Lease() != time.Minute {
		t.Errorf("lease %v", good.Lease())
	}
	orders := PlanRequest{Source: "/d", Orders: [][]uint32{{3, 1}}, Ranks: []uint32{7}}
	if err := orders.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*PlanRequest){
		"no source":              func(r *PlanRequest) { r.Source = "" },
		"no ranks":               func(r *PlanRequest) { r.Ranks = nil },
		"too many ranks":         func(r *PlanRequest) { r.Ranks = make([]uint32, MaxPlanRanks+1) },
		"a rank twice":           func(r *PlanRequest) { r.Ranks = []uint32{1, 1} },
		"a rank off the world":   func(r *PlanRequest) { r.Ranks = []uint32{2} },
		"no order":               func(r *PlanRequest) { r.Spec = "" },
		"two orders":             func(r *PlanRequest) { r.Orders = [][]uint32{{1}} },
		"spec of another length": func(r *PlanRequest) { r.Spec = "AAAA" },
		"spec that is no base64": func(r *PlanRequest) { r.Spec = "!" },
		"long job":               func(r *PlanRequest) { r.Job = strings.Repeat("j", 257) },
		"short lease":            func(r *PlanRequest) { r.LeaseSeconds = 4 },
		"long lease":             func(r *PlanRequest) { r.LeaseSeconds = 3601 },
		"negative lease":         func(r *PlanRequest) { r.LeaseSeconds = -1 },
		"negative epochs":        func(r *PlanRequest) { r.Epochs = -1 },
		"counts for other files": func(r *PlanRequest) { r.Manifest.Files, r.Manifest.Counts = []string{"a"}, []uint32{1, 2} },
		"suffixes of files":      func(r *PlanRequest) { r.Manifest.Files, r.Manifest.Suffixes = []string{"a"}, []string{".x"} },
		"unknown format":         func(r *PlanRequest) { r.Manifest.Format = "zip" },
		"format and ranges":      func(r *PlanRequest) { r.Manifest.Format, r.Manifest.Ranges = "parquet", "AA==" },
		"ranges and counts":      func(r *PlanRequest) { r.Manifest.Ranges, r.Manifest.Counts = "AA==", []uint32{1} },
		"nodes of another world": func(r *PlanRequest) { r.Nodes = []string{"a"} },
	} {
		r := good
		change(&r)
		if err := r.Validate(); !errors.Is(err, covey.ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	orders.Epochs = 2
	if err := orders.Validate(); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("orders of two epochs: %v", err)
	}
}
