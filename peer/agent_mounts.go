package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
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
	// mu is a leaf lock over the fields below and over the fields of entries that
	// [mountTable.serving] sets.
	//
	// INVARIANT: once closed is set, byDir does not grow.
	mu     sync.Mutex
	byDir  map[string]*mountEntry
	closed bool
}

// mountEntry is a directory that this agent mounts on. Until mount is set it is
// being mounted, and only keeps its directory from being taken twice.
type mountEntry struct {
	dir     string
	request gateway.MountRequest
	dataset *dataset.Dataset
	mount   *mount.Mount
	// running ends by stop: when the mount is to end, or is not to begin.
	running context.Context
	stop    context.CancelFunc
	// unmounting has a value while somebody unmounts: a second one would find
	// nothing to unmount and call that an error.
	unmounting chan struct{}
	// ended is closed when the mount is gone, or was never made, and its data set
	// was given back.
	ended chan struct{}
}

func newMountTable() *mountTable { return &mountTable{byDir: map[string]*mountEntry{}} }

// reserve takes a directory for a mount that is about to be made. The entry is
// given back with drop.
func (t *mountTable) reserve(dir string) (*mountEntry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errLeaving(dir)
	}
	if old, taken := t.byDir[dir]; taken && old.detached() {
		// It was unmounted lazily, and goes on for who has files open.
		delete(t.byDir, dir)
	} else if taken {
		return nil, fmt.Errorf("mount on %s: this agent already has a mount there; unmount it first with `covey umount %s`: %w", dir, dir, covey.ErrInvalid)
	}
	if len(t.byDir) >= maxMounts {
		return nil, fmt.Errorf("mount on %s: this agent has %d mounts, its limit: %w", dir, maxMounts, covey.ErrInvalid)
	}
	e := &mountEntry{dir: dir, unmounting: make(chan struct{}, 1), ended: make(chan struct{})}
	e.running, e.stop = context.WithCancel(context.Background())
	t.byDir[dir] = e
	return e, nil
}

// detached reports whether the mount was taken off its directory while files are
// open in it.
func (e *mountEntry) detached() bool {
	if e.mount == nil {
		return false
	}
	_, _, mounted := mount.Mounted(e.dir)
	return !mounted
}

func errLeaving(dir string) error {
	return fmt.Errorf("mount on %s: the agent is leaving: %w", dir, covey.ErrUnavailable)
}

// serving sets what the entry mounts.
func (t *mountTable) serving(e *mountEntry, r gateway.MountRequest, ds *dataset.Dataset, m *mount.Mount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.request, e.dataset, e.mount = r, ds, m
}

// drop frees the entry's directory and ends the entry.
func (t *mountTable) drop(e *mountEntry) {
	e.stop()
	t.mu.Lock()
	if t.byDir[e.dir] == e {
		delete(t.byDir, e.dir)
	}
	t.mu.Unlock()
	close(e.ended)
}

// close refuses further mounts and returns all entries, those that are being
// mounted included.
func (t *mountTable) close() []*mountEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return slices.Collect(maps.Values(t.byDir))
}

func (t *mountTable) leaving() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

func (t *mountTable) get(dir string) (*mountEntry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.byDir[dir]
	return e, ok && e.mount != nil
}

// all returns the entries that are mounted, in no particular order.
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
	e, err := a.mounts.reserve(r.Dir)
	if err != nil {
		return gateway.Mount{}, err
	}
	if err := a.mount(ctx, e, r); err != nil {
		if a.mounts.leaving() {
			err = errLeaving(r.Dir)
		}
		return gateway.Mount{}, err
	}
	a.log.Info("mounted", "source", e.dataset.Name(), "dir", r.Dir)
	return mountStatus(e), nil
}

// mount makes what the entry was reserved for. Whatever comes of it, the entry is
// dropped in the end: here when there is nothing to mount, else when the mount
// has ended.
func (a *Agent) mount(ctx context.Context, e *mountEntry, r gateway.MountRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.running, cancel)()
	m, release, err := a.attach(ctx, e, r, nil)
	if err != nil {
		a.mounts.drop(e)
		return err
	}
	go a.runMount(e, m, release)
	select {
	case <-m.Ready():
		return nil
	case <-e.ended:
		return fmt.Errorf("mount %s on %s: it ended before it answered; see the agent's log: %w", r.Source, e.dir, covey.ErrUnavailable)
	case <-ctx.Done():
		e.stop()
		<-e.ended
		return fmt.Errorf("mount %s on %s: %w", r.Source, e.dir, ctx.Err())
	}
}

// runMount serves until the entry is stopped or somebody unmounts, and then gives
// everything back.
func (a *Agent) runMount(e *mountEntry, m *mount.Mount, release func()) {
	if err := m.Run(e.running); err != nil {
		a.log.Error("mount ended", "dir", e.dir, "error", err)
	}
	release()
	a.mounts.drop(e)
}

// attach opens the source and mounts it, or resumes what a holder has kept; who
// calls it runs the mount and then calls release.
func (a *Agent) attach(ctx context.Context, e *mountEntry, r gateway.MountRequest, kept *mount.Kept) (m *mount.Mount, release func(), err error) {
	opts := a.opts.Mount
	if r.Profile != "" {
		if opts.Profile, err = mount.ParseProfile(r.Profile); err != nil {
			return nil, nil, fmt.Errorf("mount %s on %s: %w", r.Source, r.Dir, err)
		}
	}
	ds, release, err := a.OpenDataset(ctx, r.Source)
	if err != nil {
		return nil, nil, err
	}
	opts.Metrics, opts.Log = a.mountMetrics, a.log
	if err := a.apply(&opts, r.Options, ds); err != nil {
		release()
		return nil, nil, fmt.Errorf("mount %s on %s: %w", r.Source, r.Dir, err)
	}
	opts.Keeper = a.keeper
	if opts.Extra, err = json.Marshal(r); err == nil {
		if kept != nil {
			m, err = mount.Resume(kept, ds, a.blocks, opts)
		} else {
			m, err = mount.New(ds, a.blocks, e.dir, opts)
		}
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	a.mounts.serving(e, r, ds, m)
	return m, release, nil
}

// apply sets what one mount has that others have not.
func (a *Agent) apply(opts *mount.Options, o gateway.MountOptions, ds *dataset.Dataset) (err error) {
	opts.AllowOther = opts.AllowOther || o.AllowOther
	opts.UID, opts.GID, opts.Umask = o.UID, o.GID, o.Umask
	if o.XAttr {
		opts.Describe = a.describe(ds)
	}
	if o.RW {
		opts.Write, err = a.writeOptions(ds)
	}
	return err
}

// Unmount unmounts a directory; with files open in it that is an error and the
// mount stays.
func (a *Agent) Unmount(ctx context.Context, dir string) error {
	e, ok := a.mounts.get(filepath.Clean(dir))
	if !ok {
		return fmt.Errorf("unmount %s: this agent has no mount there; `covey mounts` lists them: %w", dir, covey.ErrNotFound)
	}
	select {
	case e.unmounting <- struct{}{}:
		defer func() { <-e.unmounting }()
	case <-e.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", dir, ctx.Err())
	}
	select {
	case <-e.ended: // by who unmounted before
		return nil
	default:
	}
	if err := e.mount.Unmount(); err != nil {
		return err // it names the directory
	}
	select {
	case <-e.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", dir, ctx.Err())
	}
}

// unmountAll ends every mount, lazily where files are open, and every one that is
// being made, within unmountTimeout. From then on none is made.
func (a *Agent) unmountAll() {
	all := a.mounts.close()
	for _, e := range all {
		e.stop()
	}
	late, cancel := context.WithTimeout(context.Background(), unmountTimeout)
	defer cancel()
	for _, e := range all {
		select {
		case <-e.ended:
		case <-late.Done():
			a.log.Error("a mount did not end in time", "dir", e.dir)
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
		Profile:          s.Profile.String(),
		RW:               s.Writable,
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
