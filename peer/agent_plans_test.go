package peer

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
	"github.com/covey-cache/covey/gateway"
)

// planned makes an agent that does not run, and a data set of n files.
func planned(t *testing.T, n int) (*Agent, string) {
	t.Helper()
	source := t.TempDir()
	for i := range n {
		if err := os.WriteFile(filepath.Join(source, fmt.Sprintf("f%03d.JPG", i)), bytes.Repeat([]byte{byte(i)}, 100+i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(source, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := NewAgent(AgentOptions{Cache: []CacheDir{{Dir: t.TempDir(), Size: 1 << 20}}, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a, source
}

func planOf(t *testing.T, source string, samples uint64, ranks ...uint32) gateway.PlanRequest {
	t.Helper()
	spec, err := plan.Spec{Samples: samples, World: 4, Shuffle: true}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return gateway.PlanRequest{
		Job: "job", Source: source, Spec: base64.StdEncoding.EncodeToString(spec), Ranks: ranks, Epochs: 2,
		Manifest: gateway.PlanManifest{Suffixes: []string{".jpg"}},
	}
}

// await polls a plan until it is in the state.
func await(t *testing.T, a *Agent, id, state string) gateway.Plan {
	t.Helper()
	var p gateway.Plan
	eventually(t, "the plan is "+state, func() bool {
		var err error
		p, err = a.Plan(id)
		return err == nil && p.State == state
	})
	return p
}

func TestPlanFollowsItsCursor(t *testing.T) {
	a, source := planned(t, 10)
	p, err := a.AddPlan(t.Context(), planOf(t, source, 10, 3, 1))
	if err != nil {
		t.Fatal(err)
	}
	p = await(t, a, p.ID, planActive)
	if p.Files != 10 || p.Samples != 10 || p.Bytes != 10*100+45 || p.World != 4 || p.Ranks[0].Samples != 6 {
		t.Errorf("%+v", p)
	}
	f, err := os.OpenFile(p.Cursor, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, 64+2*8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Munmap(mem) }()
	head := []byte("COVEYCUR\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00")
	if want := append(head, make([]byte, 64+16-len(head))...); !bytes.Equal(mem, want) {
		t.Errorf("cursor file %x, want %x", mem, want)
	}
	binary.LittleEndian.PutUint64(mem[64:], 5)
	binary.LittleEndian.PutUint64(mem[72:], 4)
	eventually(t, "the counters are read", func() bool {
		p, err = a.Plan(p.ID)
		return err == nil && p.Ranks[0].Position == 5 && p.Ranks[1].Position == 4
	})
	// A counter does not go back, and a file that is cut short harms nobody.
	binary.LittleEndian.PutUint64(mem[64:], 1)
	time.Sleep(3 * cursorTick)
	if p, err = a.Plan(p.ID); err != nil || p.Ranks[0].Position != 5 {
		t.Errorf("position %d, %v", p.Ranks[0].Position, err)
	}
	if err := a.CancelPlan(p.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plan is gone", func() bool {
		_, err := a.Plan(p.ID)
		return errors.Is(err, covey.ErrNotFound)
	})
	if mem[16] != 1 {
		t.Error("whoever has the cursor file mapped is not told that the plan has ended")
	}
	if _, err := os.Stat(p.Cursor); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cursor file after the end: %v", err)
	}
}

func TestTruncatedCursorHarmsNobody(t *testing.T) {
	a, source := planned(t, 3)
	p, err := a.AddPlan(t.Context(), planOf(t, source, 3, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p.Cursor, 3); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * cursorTick)
	if p := await(t, a, p.ID, planActive); p.Ranks[0].Position != 0 {
		t.Errorf("%+v", p)
	}
}

// The plan of a job that died goes away; that of one that makes progress, or
// renews, stays.
func TestPlanLease(t *testing.T) {
	a, source := planned(t, 3)
	r := planOf(t, source, 3, 0)
	r.LeaseSeconds = 1
	ids := map[string]string{}
	for _, name := range []string{"dead", "moving", "renewed"} {
		r.Job = name
		p, err := a.AddPlan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = p.ID
	}
	moving, err := a.Plan(ids["moving"])
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(moving.Cursor, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range byte(10) {
		if _, err := f.WriteAt([]byte{i + 1}, 64); err != nil {
			t.Fatal(err)
		}
		if _, err := a.RenewPlan(ids["renewed"], 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	if _, err := a.Plan(ids["dead"]); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("a dead job's plan after its lease: %v", err)
	}
	for _, name := range []string{"moving", "renewed"} {
		if _, err := a.Plan(ids[name]); err != nil {
			t.Errorf("the plan that is %s: %v", name, err)
		}
	}
}

func TestPlanThatContradictsItsManifest(t *testing.T) {
	a, source := planned(t, 10)
	for want, change := range map[string]func(*gateway.PlanRequest){
		"manifest has 10": func(r *gateway.PlanRequest) { *r = planOf(t, source, 11, 0) },
		`"gone"`:          func(r *gateway.PlanRequest) { r.Manifest = gateway.PlanManifest{Files: []string{"gone"}} },
		"2 counts":        func(r *gateway.PlanRequest) { r.Manifest.Counts = []uint32{5, 5} },
		"malformed":       func(r *gateway.PlanRequest) { r.Manifest.Ranges = base64.StdEncoding.EncodeToString([]byte{0x80}) },
		"behind its end": func(r *gateway.PlanRequest) {
			r.Manifest.Ranges = base64.StdEncoding.EncodeToString([]byte{0, 99, 2})
		},
		"has sample 10": func(r *gateway.PlanRequest) { r.Spec, r.Epochs, r.Orders = "", 0, [][]uint32{{3, 10}} },
	} {
		r := planOf(t, source, 10, 0)
		change(&r)
		p, err := a.AddPlan(t.Context(), r)
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		p = await(t, a, p.ID, planFailed)
		if !strings.Contains(p.Reason, want) {
			t.Errorf("reason %q, want %q in it", p.Reason, want)
		}
	}
}

func TestPlansAreBounded(t *testing.T) {
	a, source := planned(t, 1)
	for range maxPlans {
		if _, err := a.AddPlan(t.Context(), planOf(t, source, 1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.AddPlan(t.Context(), planOf(t, source, 1, 0)); !errors.Is(err, covey.ErrFull) {
		t.Errorf("one plan too many: %v", err)
	}
	if n := len(a.Status().Plans); n != maxPlans {
		t.Errorf("status shows %d plans", n)
	}
	a.plans.cancelAll()
	left, err := os.ReadDir(a.plans.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("cursor files left: %v, %v", left, err)
	}
	if _, err := a.AddPlan(t.Context(), planOf(t, source, 1, 0)); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("plan for an agent that leaves: %v", err)
	}
}

func TestOrdersAreBounded(t *testing.T) {
	a, source := planned(t, 1)
	if _, err := a.AddPlan(t.Context(), planOf(t, source, 1<<29, 0)); !errors.Is(err, covey.ErrFull) {
		t.Errorf("an order of 2 GiB, twice: %v", err)
	}
}

// The ranks of a node that post a plan each share one order.
func TestRanksShareAnOrder(t *testing.T) {
	a, source := planned(t, 1)
	var held []*heldPlan
	for rank := range uint32(3) {
		// Each order needs a third of what all may need, and a little more.
		p, err := a.AddPlan(t.Context(), planOf(t, source, maxOrderBytes/8/3+1, rank))
		if err != nil {
			t.Fatal(err)
		}
		q, err := a.plans.get(p.ID)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, q)
	}
	if held[0].order != held[1].order || held[1].order != held[2].order {
		t.Error("three ranks have orders of their own")
	}
	for i := range 3 {
		_, err := a.AddPlan(t.Context(), planOf(t, source, maxOrderBytes/8/3+2+uint64(i), 0))
		if full := errors.Is(err, covey.ErrFull); full != (i > 0) {
			t.Errorf("order %d more: %v", i+1, err)
		}
	}
}

// What an agent that died has left is removed by the next.
func TestStaleCursorsAreRemoved(t *testing.T) {
	state := t.TempDir()
	c, err := newCursorFile(filepath.Join(state, "plans"), "x", 1)
	if err != nil {
		t.Fatal(err)
	}
	c.file.Close()
	newPlanTable(state)
	if _, err := os.Stat(c.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stale cursor file: %v", err)
	}
}
