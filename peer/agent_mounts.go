package peer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
)

// maxMounts bounds what one agent mounts: each costs a FUSE connection and its
// threads, and a training host uses a handful.
const maxMounts = 256

// mountTable holds the agent's mounts by directory.
type mountTable struct {
	// mu is a leaf lock over byDir. An entry whose mount is nil is being
	// mounted: it keeps its directory from being taken twice.
	mu    sync.Mutex
	byDir map[string]*mountEntry
}

type mountEntry struct {
	dataset *dataset.Dataset
	release func()
	mount   *mount.Mount
	stop    context.CancelFunc
	// ended is closed when the mount is gone and its data set given back.
	ended chan struct{}
}

func newMountTable() *mountTable { return &mountTable{byDir: map[string]*mountEntry{}} }

// reserve takes a directory for a mount that is about to be made.
func (t *mountTable) reserve(dir string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.byDir[dir]; taken {
		return fmt.Errorf("mount on %s: this agent already has a mount there; unmount it first with `covey umount %s`: %w", dir, dir, covey.ErrInvalid)
	}
	if len(t.byDir) >= maxMounts {
		return fmt.Errorf("mount on %s: this agent has %d mounts, its limit: %w", dir, maxMounts, covey.ErrInvalid)
	}
	t.byDir[dir] = &mountEntry{}
	return nil
}

func (t *mountTable) put(dir string, e *mountEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byDir[dir] = e
}

func (t *mountTable) remove(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byDir, dir)
}

func (t *mountTable) get(dir string) (*mountEntry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.byDir[dir]
	return e, ok && e.mount != nil
}

// all returns the mounts that serve, in no particular order.
func (t *mountTable) all() []*mountEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*mountEntry
	for _, e := range t.byDir {
		if e.mount != nil {
			list = append(list, e)
		}
	}
	return list
}

// covering returns the mount that a path is on or below, and the rest of the
// path in it.
func (t *mountTable) covering(path string) (*mountEntry, string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for dir := path; ; dir = filepath.Dir(dir) {
		if e, ok := t.byDir[dir]; ok && e.mount != nil {
			return e, strings.TrimPrefix(strings.TrimPrefix(path, dir), "/"), true
		}
		if dir == filepath.Dir(dir) {
			return nil, "", false
		}
	}
}

// Mount opens the source and mounts it; it returns once the kernel answers.
func (a *Agent) Mount(ctx context.Context, r gateway.MountRequest) (gateway.Mount, error) {
	if !filepath.IsAbs(r.Dir) {
		abs, err := filepath.Abs(r.Dir)
		if err != nil {
			return gateway.Mount{}, fmt.Errorf("mount on %q: %w", r.Dir, errors.Join(err, covey.ErrInvalid))
		}
		r.Dir = abs
	}
	r.Dir = filepath.Clean(r.Dir)
	if err := a.mounts.reserve(r.Dir); err != nil {
		return gateway.Mount{}, err
	}
	e, err := a.mount(ctx, r)
	if err != nil {
		a.mounts.remove(r.Dir)
		return gateway.Mount{}, err
	}
	a.log.Info("mounted", "source", e.dataset.Name(), "dir", r.Dir)
	return mountStatus(e), nil
}

func (a *Agent) mount(ctx context.Context, r gateway.MountRequest) (*mountEntry, error) {
	ds, release, err := a.OpenDataset(ctx, r.Source)
	if err != nil {
		return nil, err
	}
	opts := a.opts.Mount
	opts.Metrics, opts.Log = a.mountMetrics, a.log
	m, err := mount.New(ds, a.blocks, r.Dir, opts)
	if err != nil {
		release()
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	e := &mountEntry{dataset: ds, release: release, mount: m, stop: stop, ended: make(chan struct{})}
	a.mounts.put(r.Dir, e)
	go func() {
		defer close(e.ended)
		defer stop()
		if err := m.Run(running); err != nil {
			a.log.Error("mount ended", "dir", r.Dir, "error", err)
		}
		a.mounts.remove(r.Dir)
		release()
	}()
	select {
	case <-m.Ready():
		return e, nil
	case <-e.ended:
		return nil, fmt.Errorf("mount %s on %s: it ended before it answered; see the agent's log: %w", r.Source, r.Dir, covey.ErrUnavailable)
	case <-ctx.Done():
		stop()
		<-e.ended
		return nil, fmt.Errorf("mount %s on %s: %w", r.Source, r.Dir, ctx.Err())
	}
}

// Unmount unmounts a directory; with files open in it that is an error and the
// mount stays.
func (a *Agent) Unmount(ctx context.Context, dir string) error {
	e, ok := a.mounts.get(filepath.Clean(dir))
	if !ok {
		return fmt.Errorf("unmount %s: this agent has no mount there; `covey mounts` lists them: %w", dir, covey.ErrNotFound)
	}
	if err := e.mount.Unmount(); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	select {
	case <-e.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unmountAll ends every mount, lazily where files are open, within
// unmountTimeout.
func (a *Agent) unmountAll() {
	all := a.mounts.all()
	for _, e := range all {
		e.stop()
	}
	late, cancel := context.WithTimeout(context.Background(), unmountTimeout)
	defer cancel()
	for _, e := range all {
		select {
		case <-e.ended:
		case <-late.Done():
			a.log.Error("a mount did not end in time", "dir", e.mount.Status().Dir)
		}
	}
}

// Mounts returns the mounts that serve.
func (a *Agent) Mounts() []gateway.Mount {
	list := []gateway.Mount{}
	for _, e := range a.mounts.all() {
		list = append(list, mountStatus(e))
	}
	sortBy(list, func(m gateway.Mount) string { return m.Dir })
	return list
}

func mountStatus(e *mountEntry) gateway.Mount {
	s := e.mount.Status()
	return gateway.Mount{
		Source: s.Source, Dir: s.Dir, Passthrough: s.Passthrough, PassthroughWhy: s.PassthroughWhy,
		OpensPassthrough: s.OpenPassthrough, OpensDaemon: s.OpenDaemon,
	}
}

// resolve returns the data set and the path in it that a mounted path or a
// source URL means. A source that is not in use is opened for the caller, who
// releases it.
func (a *Agent) resolve(ctx context.Context, path string) (ds *dataset.Dataset, rel string, release func(), err error) {
	if filepath.IsAbs(path) {
		if e, rel, ok := a.mounts.covering(filepath.Clean(path)); ok {
			ds, release, err := a.OpenDataset(ctx, e.dataset.Name())
			return ds, rel, release, err
		}
	}
	ds, release, err = a.OpenDataset(ctx, path)
	return ds, "", release, err
}
