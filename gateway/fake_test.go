package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAgent keeps mounts and jobs in memory. Its errors are the test's to set.
type fakeAgent struct {
	fakePlans

	mu     sync.Mutex
	mounts []Mount
	jobs   map[string]Job
	ready  error
	// changes are the pins, unpins, evictions and verifications asked for.
	changes []string
	locate  func(ctx context.Context, path string) (Location, error)
}

func (a *fakeAgent) Status() Status {
	return Status{PeerID: "12D3KooWTest", Version: "test", PID: 7, Ready: a.Ready() == nil, DataPlane: "tls",
		Fetched: FetchedBytes{Local: 1, Neighbour: 2, Origin: 3}}
}

func (a *fakeAgent) Peers() []Peer { return []Peer{{ID: "12D3KooWOther", Host: "h2", Connected: true}} }

func (a *fakeAgent) Mounts() []Mount {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Mount(nil), a.mounts...)
}

func (a *fakeAgent) Mount(_ context.Context, r MountRequest) (Mount, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Source == "bad://" {
		return Mount{}, fmt.Errorf("open %s: unknown scheme: %w", r.Source, covey.ErrInvalid)
	}
	m := Mount{Source: r.Source, Dir: r.Dir}
	a.mounts = append(a.mounts, m)
	return m, nil
}

func (a *fakeAgent) Unmount(_ context.Context, dir string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, m := range a.mounts {
		if m.Dir == dir {
			a.mounts = append(a.mounts[:i], a.mounts[i+1:]...)
			return nil
		}
	}
	return fmt.Errorf("unmount %s: not mounted: %w", dir, covey.ErrNotFound)
}

func (a *fakeAgent) Locate(ctx context.Context, path string) (Location, error) {
	if a.locate != nil {
		return a.locate(ctx, path)
	}
	return Location{Path: path, Size: 5, Blocks: []BlockLocation{{CID: "b"}}}, nil
}

func (a *fakeAgent) Prefetch(_ context.Context, r PrefetchRequest) (Job, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := Job{ID: fmt.Sprintf("job/%d", len(a.jobs)), Path: r.Path, State: "running"}
	if a.jobs == nil {
		a.jobs = map[string]Job{}
	}
	a.jobs[j.ID] = j
	return j, nil
}

func (a *fakeAgent) Job(id string) (Job, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j, ok := a.jobs[id]
	if !ok {
		return Job{}, fmt.Errorf("job %s: %w", id, covey.ErrNotFound)
	}
	return j, nil
}

func (a *fakeAgent) CancelJob(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	j, ok := a.jobs[id]
	if !ok {
		return fmt.Errorf("job %s: %w", id, covey.ErrNotFound)
	}
	j.State = "cancelled"
	a.jobs[id] = j
	return nil
}

func (a *fakeAgent) Stat(_ context.Context, path string) (Stat, error) {
	return Stat{Path: path, Kind: "file", Size: 5, Files: 1}, nil
}

func (a *fakeAgent) Du(_ context.Context, path string) (Du, error) {
	return Du{Total: DuSource{Source: path, Used: 4096}}, nil
}

// Pin has room for every path but one.
func (a *fakeAgent) Pin(_ context.Context, path string) (Pinned, error) {
	if path == "/big" {
		return Pinned{}, fmt.Errorf("pin %s: 42 bytes are missing: %w", path, covey.ErrFull)
	}
	a.note("pin " + path)
	return Pinned{Path: path, Files: 2, Changed: 1}, nil
}

func (a *fakeAgent) Unpin(_ context.Context, path string) (Pinned, error) {
	a.note("unpin " + path)
	return Pinned{Path: path, Files: 1, Changed: 1}, nil
}

func (a *fakeAgent) Evict(_ context.Context, path string) (Evicted, error) {
	a.note("evict " + path)
	return Evicted{Path: path, Freed: 4096}, nil
}

func (a *fakeAgent) Tiers() []Tier { return []Tier{{Dir: "/fast", State: "ok"}} }

func (a *fakeAgent) ReviveTier(_ context.Context, dir string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if dir == "/none" {
		return fmt.Errorf("revive %s: %w", dir, covey.ErrNotFound)
	}
	a.changes = append(a.changes, "revive "+dir)
	return nil
}

func (a *fakeAgent) Verify(_ context.Context, path string) (Job, error) {
	a.note("verify " + path)
	return Job{ID: "v", Kind: "verify", Path: path, State: "running"}, nil
}

func (a *fakeAgent) note(change string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changes = append(a.changes, change)
}

func (a *fakeAgent) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready
}

func (a *fakeAgent) setReady(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ready = err
}

var errStarting = errors.New("mount /data\nis not mounted yet")
