package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/gateway"
)

const (
	// prefetchWorkers is how many files a job has under way. Small files need
	// the parallelism (each waits for a round trip); for large ones the bytes in
	// flight are bounded by fetch.
	prefetchWorkers = 32
	// keepJobs and keepJobFor bound what is remembered of finished jobs.
	keepJobs   = 1000
	keepJobFor = time.Hour
	// maxRunningJobs bounds the goroutines of jobs.
	maxRunningJobs = 16
)

// jobTable holds jobs by ID.
type jobTable struct {
	// mu is a leaf lock over the fields below.
	mu      sync.Mutex
	byID    map[string]*job
	closed  bool
	running int
	all     sync.WaitGroup
}

// The kinds of jobs.
const (
	kindPrefetch = "prefetch"
	kindVerify   = "verify"
)

// job is one prefetch or verification. The counters are its own; state, err and ended are
// guarded by mu.
type job struct {
	id, kind, path string
	started        time.Time
	cancel         context.CancelFunc

	listing                        atomic.Bool
	files, bytes                   atomic.Int64
	filesDone, bytesDone, filesBad atomic.Int64
	blocksBad                      atomic.Int64

	mu    sync.Mutex
	state string
	err   error
	ended time.Time
}

// newJob returns a job that is about to run, and the context it runs under.
func newJob(kind, path string) (*job, context.Context) {
	running, cancel := context.WithCancel(context.Background())
	j := &job{id: rand.Text(), kind: kind, path: path, started: time.Now(), state: "running", cancel: cancel}
	j.listing.Store(true)
	return j, running
}

// name is what the job does, on what, for errors.
func (j *job) name() string {
	if j.path == "" {
		return j.kind + " the cache"
	}
	return j.kind + " " + j.path
}

func newJobTable() *jobTable { return &jobTable{byID: map[string]*job{}} }

// add takes a job up, unless too many run already.
func (t *jobTable) add(j *job) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("%s: the agent is leaving: %w", j.name(), covey.ErrUnavailable)
	}
	if t.running >= maxRunningJobs {
		return fmt.Errorf("%s: %d jobs run already, the limit; wait for one or cancel it: %w", j.name(), maxRunningJobs, covey.ErrUnavailable)
	}
	t.forgetOld()
	t.byID[j.id] = j
	t.running++
	t.all.Add(1)
	return nil
}

// forgetOld drops finished jobs that are older than keepJobFor, and the oldest
// ones beyond keepJobs. t.mu is held.
func (t *jobTable) forgetOld() {
	var oldest *job
	for id, j := range t.byID {
		ended := j.endedAt()
		if ended.IsZero() {
			continue
		}
		if time.Since(ended) > keepJobFor {
			delete(t.byID, id)
			continue
		}
		if oldest == nil || ended.Before(oldest.endedAt()) {
			oldest = j
		}
	}
	if len(t.byID) >= keepJobs && oldest != nil {
		delete(t.byID, oldest.id)
	}
}

func (t *jobTable) done() {
	t.mu.Lock()
	t.running--
	t.mu.Unlock()
	t.all.Done()
}

func (t *jobTable) get(id string) (*job, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, ok := t.byID[id]
	return j, ok
}

// cancelAll ends every job and waits for them; no job is taken up after it.
func (t *jobTable) cancelAll() {
	t.mu.Lock()
	t.closed = true
	for _, j := range t.byID {
		j.cancel()
	}
	t.mu.Unlock()
	t.all.Wait()
}

func (j *job) endedAt() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ended
}

func (j *job) finish(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ended, j.err = time.Now(), err
	switch {
	case errors.Is(err, context.Canceled):
		j.state, j.err = "cancelled", nil
	case err != nil:
		j.state = "failed"
	default:
		j.state = "done"
	}
}

func (j *job) snapshot() gateway.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := gateway.Job{
		ID: j.id, Kind: j.kind, Path: j.path, State: j.state, Started: j.started, Ended: j.ended,
		Listing: j.listing.Load(), Files: j.files.Load(), Bytes: j.bytes.Load(),
		FilesDone: j.filesDone.Load(), BytesDone: j.bytesDone.Load(), FilesError: j.filesBad.Load(),
		BadBlocks: j.blocksBad.Load(),
	}
	if j.err != nil {
		s.Error = j.err.Error()
	}
	return s
}

// Prefetch begins to bring everything below a mounted path or a source URL into
// this agent's cache. The job goes on after ctx ends.
func (a *Agent) Prefetch(ctx context.Context, r gateway.PrefetchRequest) (gateway.Job, error) {
	if r.Replicas > 1 || r.Replicas < 0 || r.Rate < 0 {
		return gateway.Job{}, fmt.Errorf("prefetch %s with %d replicas at %d B/s: this version keeps one copy, on the agent asked: %w",
			r.Path, r.Replicas, r.Rate, covey.ErrInvalid)
	}
	if r.Manifest != "" && !filepath.IsAbs(r.Manifest) {
		return gateway.Job{}, fmt.Errorf("prefetch %s: the manifest's path %q is not absolute: %w", r.Path, r.Manifest, covey.ErrInvalid)
	}
	ds, rel, release, err := a.resolve(ctx, r.Path)
	if err != nil {
		return gateway.Job{}, err
	}
	j, running := newJob(kindPrefetch, r.Path)
	if err := a.jobs.add(j); err != nil {
		j.cancel()
		release()
		return gateway.Job{}, err
	}
	go func() {
		defer a.jobs.done()
		defer release()
		defer j.cancel()
		err := a.prefetch(running, j, ds, rel, limiter(r.Rate))
		if err == nil && r.Manifest != "" {
			err = a.writeManifest(running, ds, rel, r.Manifest)
		}
		j.finish(err)
	}()
	return j.snapshot(), nil
}

// limiter paces in bytes; the burst is one block of the largest size, because a
// whole block is asked for at once. It begins empty: a job must not start with a
// burst of what it was told to spread.
func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), int(covey.MaxBlockSize))
	l.AllowN(time.Now(), int(covey.MaxBlockSize))
	return l
}

func (a *Agent) prefetch(ctx context.Context, j *job, ds *dataset.Dataset, rel string, pace *rate.Limiter) error {
	files, ctx := errgroup.WithContext(ctx)
	files.SetLimit(prefetchWorkers)
	err := a.eachFile(ctx, ds, rel, func(path string, e dataset.Entry) {
		j.files.Add(1)
		j.bytes.Add(e.Size)
		files.Go(func() error {
			err := a.prefetchFile(ctx, j, ds, path, e, pace)
			switch {
			case err == nil:
				j.filesDone.Add(1)
			case ctx.Err() != nil, errors.Is(err, covey.ErrFull):
				return err
			default:
				j.filesBad.Add(1)
				a.log.Warn("prefetch of a file failed", "path", path, "error", err)
			}
			return nil
		})
	})
	j.listing.Store(false)
	if waited := files.Wait(); waited != nil {
		err = waited
	}
	if n := j.filesBad.Load(); err == nil && n > 0 {
		err = fmt.Errorf("prefetch %s: %d of %d files failed; the agent's log names them: %w", j.path, n, j.files.Load(), covey.ErrUnavailable)
	}
	return err
}

// eachFile calls f for the file at rel, or for every file below it.
func (a *Agent) eachFile(ctx context.Context, ds *dataset.Dataset, rel string, f func(string, dataset.Entry)) error {
	if rel != "" {
		e, err := ds.Lookup(ctx, rel)
		if err != nil {
			return err
		}
		if e.Kind == dataset.File {
			f(rel, e)
			return nil
		}
	}
	for file, err := range ds.Walk(ctx, rel) {
		if err != nil {
			return err
		}
		if file.Entry.Kind == dataset.File {
			f(file.Path, file.Entry)
		}
	}
	return nil
}

func (a *Agent) prefetchFile(ctx context.Context, j *job, ds *dataset.Dataset, path string, entry dataset.Entry, pace *rate.Limiter) error {
	object := ds.Object(path, entry)
	for i := range object.Blocks() {
		extent, slot, err := ds.Extent(ctx, path, entry, i)
		if err != nil {
			return err
		}
		size := int(object.BlockRange(i).Len)
		if !a.store.Present(extent).Has(slot) {
			if err := pace.WaitN(ctx, size); err != nil {
				return err
			}
			if err := a.bringBlock(ctx, extent, slot); err != nil {
				return err
			}
		}
		j.bytesDone.Add(int64(size))
	}
	return nil
}

// bringBlock gets one block and makes sure that the cache kept it: a prefetch
// that streams bytes past a full cache would be all cost and no use.
func (a *Agent) bringBlock(ctx context.Context, e *covey.Extent, slot int) error {
	h, err := a.fetcher.Get(ctx, e, slot)
	if err != nil {
		return err
	}
	h.Release()
	a.fetcher.AdmittedBlock(e.Blocks[slot])
	if !a.store.Present(e).Has(slot) {
		u := a.store.Usage()
		return fmt.Errorf("cache %s holds %d of %d bytes and takes no more; give it a larger size, or prefetch less: %w",
			u.Dir, u.Used, u.Budget, covey.ErrFull)
	}
	return nil
}

// Job returns how far a job is.
func (a *Agent) Job(id string) (gateway.Job, error) {
	j, ok := a.jobs.get(id)
	if !ok {
		return gateway.Job{}, fmt.Errorf("job %q: %w", id, covey.ErrNotFound)
	}
	return j.snapshot(), nil
}

// CancelJob ends a job; what it brought stays cached. Cancelling a finished job
// does nothing.
func (a *Agent) CancelJob(id string) error {
	j, ok := a.jobs.get(id)
	if !ok {
		return fmt.Errorf("job %q: %w", id, covey.ErrNotFound)
	}
	j.cancel()
	return nil
}
