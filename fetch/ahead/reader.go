package ahead

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
)

// Reader reads ahead what the jobs of this node, and those of other nodes where
// this node has a share, have announced.
//
// Each block of a manifest has one owner among the nodes that read it; the owner
// reads it from the origin ahead of the first reader, and the readers' nodes take
// it from there ahead of their own ranks. A block that its owner has no room for
// belongs to nobody: the node whose rank reads it brings it for that read, once
// an epoch. What is fetched next is what is due next, of the job that has the
// fewest bytes under way.
//
// All methods may be called concurrently. Reader is a [fetch.Adviser].
type Reader struct {
	opts    Options
	metrics *metrics
	wake    chan struct{}
	limit   *rate.Limiter
	flights sync.WaitGroup

	// byDigest is replaced as a whole, so that reads look into it without a lock.
	byDigest atomic.Pointer[map[[32]byte]*group]

	// mu guards changes of byDigest and of the groups' lists of jobs, and is taken
	// before group.mu.
	mu     sync.Mutex
	flying int // flights under way; guarded by mu
}

// New returns a Reader, which starts nothing. It panics when the options do not
// validate, which only a bug in the caller can bring about.
func New(o Options) *Reader {
	if err := o.Validate(); err != nil {
		panic(err)
	}
	o.setDefaults()
	r := &Reader{
		opts: o, metrics: newMetrics(o.Registry), wake: make(chan struct{}, 1),
		limit: rate.NewLimiter(rate.Inf, burstBytes),
	}
	r.byDigest.Store(&map[[32]byte]*group{})
	return r
}

// JobOptions are a plan on this node.
type JobOptions struct {
	ID    string
	Data  Data
	Bytes int64 // of all files
	Order *Order
	Ranks []uint32
}

// Add takes up a job. It measures this node's share of the manifest, which takes
// a moment for a large one. The job ends with Remove.
func (r *Reader) Add(o JobOptions) *Job {
	g := r.group(o.Data, o.Bytes)
	j := &Job{id: o.ID, group: g, order: o.Order, began: time.Now()}
	for _, id := range o.Ranks {
		j.ranks = append(j.ranks, &rank{id: id, total: o.Order.Total(id)})
	}
	r.join(g, j)
	r.nudge()
	return j
}

// group returns the manifest's group, a new one with this node alone.
func (r *Reader) group(d Data, bytes int64) *group {
	if g := (*r.byDigest.Load())[d.Digest()]; g != nil {
		return g
	}
	g := &group{reader: r, data: d, bytes: bytes, whole: d.Whole(), began: time.Now(), wants: map[uint64]*want{}, elsewhere: map[uint64]bool{}}
	g.place = newPlacement(r.opts.Self, []Node{{ID: r.opts.Self, Capacity: 1}})
	g.place.measure(d, r.opts.Room(d))
	return g
}

// join puts a job into its group, and the group among those in use.
func (r *Reader) join(g *group, j *Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	groups := maps.Clone(*r.byDigest.Load())
	if now := groups[g.data.Digest()]; now != nil {
		g = now
		j.group = g
	}
	groups[g.data.Digest()] = g
	g.mu.Lock()
	if !g.following() {
		g.began = time.Now()
	}
	g.covered, g.taken = j.listed(), g.taken || j.listed()
	g.jobs = append(g.jobs, j)
	g.mu.Unlock()
	r.byDigest.Store(&groups)
}

// listed says that nobody else knows the job's order, so that this node shares the
// manifest with nobody.
func (j *Job) listed() bool { return j.order.World() == 0 }

// Remove ends a job. A manifest without jobs is forgotten.
func (r *Reader) Remove(j *Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := j.group
	g.mu.Lock()
	if j.dropped == "" {
		g.clear(j)
	}
	j.dropped = "ended"
	g.jobs = slices.DeleteFunc(g.jobs, func(other *Job) bool { return other == j })
	last := !slices.ContainsFunc(g.jobs, func(j *Job) bool { return !j.foreign })
	if last {
		for _, w := range g.wants {
			g.unstage(w)
		}
	}
	g.mu.Unlock()
	if last {
		groups := maps.Clone(*r.byDigest.Load())
		delete(groups, g.data.Digest())
		r.byDigest.Store(&groups)
	}
}

// Mesh is what is known of the other nodes that read a manifest.
type Mesh struct {
	// Nodes has this node as well.
	Nodes []Node
	// Covered says that every rank of this node's jobs is on one of Nodes.
	Covered bool
	// Jobs are those of which no rank is on this node.
	Jobs []MeshJob
}

// MeshJob is a job on other nodes.
type MeshJob struct {
	ID       string // the same from call to call
	Order    *Order
	Position uint64 // the lowest of its ranks'
}

// SetMesh takes in who else reads a manifest that jobs of this node read.
func (r *Reader) SetMesh(digest [32]byte, m Mesh) {
	g := (*r.byDigest.Load())[digest]
	if g == nil {
		return
	}
	g.mu.Lock()
	same := slices.Equal(g.place.nodes, newPlacement(r.opts.Self, m.Nodes).nodes)
	g.mu.Unlock()
	var p *placement
	if !same && len(m.Nodes) > 0 {
		p = newPlacement(r.opts.Self, m.Nodes)
		p.measure(g.data, r.opts.Room(g.data))
	}
	r.mu.Lock()
	g.mu.Lock()
	if p != nil && p.self >= 0 {
		g.replace(p)
	}
	g.covered = m.Covered
	g.settle(time.Now())
	g.setForeign(m.Jobs)
	g.mu.Unlock()
	r.mu.Unlock()
	r.nudge()
}

// setForeign makes the group's foreign jobs those given; g.mu is held.
func (g *group) setForeign(jobs []MeshJob) {
	known := map[string]*Job{}
	for _, j := range g.jobs {
		if j.foreign {
			known[j.id] = j
		}
	}
	g.jobs = slices.DeleteFunc(g.jobs, func(j *Job) bool { return j.foreign })
	for _, m := range jobs {
		j := known[m.ID]
		if j == nil {
			j = &Job{id: m.ID, group: g, order: m.Order, began: time.Now(), foreign: true}
		}
		delete(known, m.ID)
		j.frozen = max(j.frozen, m.Position)
		g.jobs = append(g.jobs, j)
	}
	for _, j := range known {
		g.clear(j)
		j.dropped = "ended"
	}
}

func (r *Reader) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// tick is how often windows are looked at when nothing calls for it: the time of
// a few reads of the origin.
const tick = 20 * time.Millisecond

// Run reads ahead until ctx ends, and returns nil when every fetch that it began
// has ended. It can be called once.
func (r *Reader) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	defer r.flights.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-r.wake:
		}
		for r.round(ctx) && ctx.Err() == nil {
		}
	}
}

// assumedLatency stands for the origin's until it is known.
const assumedLatency = 50 * time.Millisecond

// round looks at every window once and begins what may begin. It reports whether
// there is more to look at.
func (r *Reader) round(ctx context.Context) (more bool) {
	groups := *r.byDigest.Load()
	latency, ok := r.opts.Fetch.OriginLatency()
	if !ok {
		latency = assumedLatency
	}
	for _, g := range groups {
		for _, j := range g.followed() {
			more = g.scan(ctx, j, latency, r.opts.MaxDistance) || more
		}
	}
	r.setPace(groups)
	r.dispatch(ctx, groups)
	return more
}

// followed are the group's jobs that are followed.
func (g *group) followed() []*Job {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(g.jobs), func(j *Job) bool { return j.dropped != "" })
}

const (
	// burstBytes is what may begin at once when the pace is limited: four blocks
	// of the largest size, as fetch may have under way.
	burstBytes = 4 * int(covey.MaxBlockSize)
	// paceFactor is how much faster than the ranks read what lies ahead of them
	// grows, once half of it is there: bursts of reading ahead would take the
	// network from the job's own all-reduce.
	paceFactor = 1.5
	// leastPace keeps a job that pauses (for an evaluation, a checkpoint) from
	// finding nothing ahead of it when it goes on.
	leastPace = 64 << 20
)

// setPace limits the rate of fetching, unless a rank has less than half of what
// it should have ahead.
func (r *Reader) setPace(groups map[[32]byte]*group) {
	demand, behind := 0.0, false
	for _, g := range groups {
		g.mu.Lock()
		for _, j := range g.jobs {
			for _, k := range j.ranks {
				demand += k.pace.rate
				behind = behind || k.pace.rate == 0 || k.short()
			}
		}
		g.mu.Unlock()
	}
	limit := rate.Inf
	if !behind {
		limit = rate.Limit(max(paceFactor*demand, leastPace))
	}
	if r.limit.Limit() != limit {
		r.limit.SetLimit(limit)
	}
}

// short says that less than half of what should lie ahead of a rank does.
func (k *rank) short() bool {
	return k.horizon > k.at() && k.ready().Samples < (k.horizon-k.at())/2
}

// dispatch begins fetches while there are places for them.
func (r *Reader) dispatch(ctx context.Context, groups map[[32]byte]*group) {
	for {
		now := time.Now()
		r.mu.Lock()
		room := r.flying < r.opts.Flights
		r.mu.Unlock()
		if !room {
			return
		}
		g, w := r.pick(groups, now)
		if w == nil {
			return
		}
		if !r.limit.AllowN(now, int(min(w.size, int64(burstBytes)))) {
			g.mu.Lock()
			w.job.await(w)
			g.mu.Unlock()
			return
		}
		r.begin(ctx, g, w)
	}
}

// pick takes what is due next of the job with the fewest bytes under way.
func (r *Reader) pick(groups map[[32]byte]*group, now time.Time) (*group, *want) {
	var jobs []*Job
	for _, g := range groups {
		jobs = append(jobs, g.followed()...)
	}
	slices.SortStableFunc(jobs, func(a, b *Job) int {
		return int(max(min(a.under()-b.under(), 1), -1))
	})
	for _, j := range jobs {
		j.group.mu.Lock()
		w := j.group.next(j, now, r.opts.StagingBytes)
		j.group.mu.Unlock()
		if w != nil {
			return j.group, w
		}
	}
	return nil, nil
}

// under is what the job has under way.
func (j *Job) under() int64 {
	j.group.mu.Lock()
	defer j.group.mu.Unlock()
	return j.flying
}

// begin starts one fetch.
func (r *Reader) begin(ctx context.Context, g *group, w *want) {
	r.mu.Lock()
	r.flying++
	r.mu.Unlock()
	g.mu.Lock()
	w.state = flying
	w.job.flying += w.size
	if !w.mine {
		g.booked += w.size
	}
	g.mu.Unlock()
	r.flights.Go(func() {
		g.bring(ctx, w)
		r.mu.Lock()
		r.flying--
		r.mu.Unlock()
		r.nudge()
	})
}

// find returns the group that an object is in, nil when it is in none.
func (r *Reader) find(o *covey.Object) *group {
	for _, g := range *r.byDigest.Load() {
		if g.data.Has(*o) {
			return g
		}
	}
	return nil
}

// Staged returns a block that is in memory for a reader of this node.
func (r *Reader) Staged(l covey.Locator) blockstore.Handle {
	hash := blockHash(&l.Object, l.Index)
	for _, g := range *r.byDigest.Load() {
		if h := g.stagedBlock(hash); h != nil {
			return h
		}
	}
	return nil
}

// Holds says whether a block is in memory for a reader of this node.
func (r *Reader) Holds(l covey.Locator) bool {
	hash := blockHash(&l.Object, l.Index)
	for _, g := range *r.byDigest.Load() {
		g.mu.Lock()
		w := g.wants[hash]
		here := w != nil && w.staged != nil
		g.mu.Unlock()
		if here {
			return true
		}
	}
	return false
}

// Keep says whether the store should have a block.
func (r *Reader) Keep(l covey.Locator, from fetch.Source) bool {
	if g := r.find(&l.Object); g != nil {
		return g.keep(&l, from)
	}
	return true
}

// Foreseen says whether a block is of a plan, so that nobody else need read it
// ahead.
func (r *Reader) Foreseen(l covey.Locator) bool {
	g := r.find(&l.Object)
	if g == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.following()
}

// Asked hears of every block that a reader on this node asks for. A plan that did
// not foresee more than 1 % of them is dropped.
func (r *Reader) Asked(l covey.Locator) {
	g := r.find(&l.Object)
	if g == nil {
		return
	}
	for _, j := range g.asked(&l) {
		r.metrics.dropped.Inc()
		r.opts.Log.Warn("plan dropped: the job reads something else", "plan", j.id, "reason", j.dropped)
	}
}
