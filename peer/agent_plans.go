package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/fetch/ahead"
	"github.com/covey-cache/covey/gateway"
)

const (
	// maxPlans bounds the plans of one agent: eight jobs of eight accelerators on
	// a host are as many as anybody runs.
	maxPlans = 64
	// maxOrderBytes bounds what the orders of all plans may need in memory: two
	// epochs of 250 million samples, or of 16 jobs of 16 million each.
	maxOrderBytes = 2 << 30
	// cursorTick is how often counters are read. A batch of the fastest load
	// (cosmoflow, 3.5 ms a step) moves on a few times in between, which is little
	// beside what is read ahead of it; a read costs a microsecond.
	cursorTick = 20 * time.Millisecond
)

// The states of a plan.
const (
	planResolving = "resolving"
	planActive    = "active"
	planDropped   = "dropped"
	planFailed    = "failed"
)

// planTable holds plans by ID.
type planTable struct {
	dir  string // of cursor files; made with the first plan
	temp bool   // dir is nobody's else and goes with the table
	// fresh has a value when there is a plan to tell of.
	fresh chan struct{}

	// mu is a leaf lock over the fields below.
	//
	// INVARIANT: once closed is set, byID does not grow.
	mu     sync.Mutex
	byID   map[string]*heldPlan
	closed bool
	all    sync.WaitGroup
}

func newPlanTable(stateDir string) *planTable {
	t := &planTable{byID: map[string]*heldPlan{}, fresh: make(chan struct{}, 1)}
	if stateDir != "" {
		t.dir = filepath.Join(stateDir, "plans")
		removeCursors(t.dir)
	}
	return t
}

// heldPlan is one plan, from its POST to the end of its lease.
type heldPlan struct {
	id, job, source string
	ranks           []uint32
	nodes           []string
	order           *ahead.Order
	epochs          int
	manifest        ahead.Manifest
	cursor          *cursorFile
	posted          time.Time
	cancel          context.CancelFunc

	// mu is a leaf lock over what follows.
	mu        sync.Mutex
	state     string
	reason    string
	layout    *ahead.Layout
	reading   *ahead.Job
	lease     time.Duration
	expires   time.Time
	positions []uint64
}

// orderBytes is what the plan's order may need: two epochs are drawn at a time.
func (p *heldPlan) orderBytes() int64 { return 2 * p.order.Spec().OrderBytes() }

// AddPlan takes a plan.
func (a *Agent) AddPlan(ctx context.Context, r gateway.PlanRequest) (gateway.Plan, error) {
	p, err := newHeldPlan(r)
	if err != nil {
		return gateway.Plan{}, err
	}
	ds, rel, release, err := a.resolve(ctx, r.Source)
	if err != nil {
		return gateway.Plan{}, fmt.Errorf("plan: %w", err)
	}
	p.manifest.Root = rel
	running, err := a.plans.add(p)
	if err != nil {
		release()
		return gateway.Plan{}, err
	}
	go func() {
		defer a.plans.remove(p)
		defer release()
		a.runPlan(running, p, ds)
	}()
	a.log.Info("plan taken", "plan", p.id, "job", p.job, "source", p.source, "ranks", len(p.ranks))
	return p.snapshot(), nil
}

// newHeldPlan makes a plan of a request that is valid.
func newHeldPlan(r gateway.PlanRequest) (*heldPlan, error) {
	spec, err := r.Order()
	if err != nil {
		return nil, err
	}
	ranges, err := base64.StdEncoding.DecodeString(r.Manifest.Ranges)
	if err != nil {
		return nil, fmt.Errorf("plan: ranges are no base64: %w", covey.ErrInvalid)
	}
	p := &heldPlan{
		id: rand.Text(), job: r.Job, source: r.Source, ranks: slices.Clone(r.Ranks), nodes: r.Nodes,
		epochs: max(r.Epochs, 1), posted: time.Now(), state: planResolving, lease: r.Lease(),
		positions: make([]uint64, len(r.Ranks)),
		manifest: ahead.Manifest{
			Files: r.Manifest.Files, Suffixes: r.Manifest.Suffixes, Counts: r.Manifest.Counts,
			Ranges: ranges, Format: r.Manifest.Format,
		},
	}
	p.expires = p.posted.Add(p.lease)
	if r.Spec == "" {
		listed := make(map[uint32][]uint32, len(r.Ranks))
		for i, rank := range r.Ranks {
			listed[rank] = r.Orders[i]
		}
		p.order = ahead.NewListedOrder(listed)
		return p, nil
	}
	p.order, err = ahead.NewOrder(spec, p.epochs)
	return p, err
}

// add takes a plan up, with a cursor file.
func (t *planTable) add(p *heldPlan) (context.Context, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, fmt.Errorf("plan: the agent is leaving: %w", covey.ErrUnavailable)
	case len(t.byID) >= maxPlans:
		return nil, fmt.Errorf("plan: this agent holds %d plans, its limit; cancel one, or wait for the lease of a dead job to end: %w", maxPlans, covey.ErrFull)
	}
	if free := maxOrderBytes - t.shareOrder(p); p.orderBytes() > free {
		return nil, fmt.Errorf("plan: orders of %d bytes, and this agent has %d left for them; plan the files rather than the samples: %w",
			p.orderBytes(), free, covey.ErrFull)
	}
	if t.dir == "" {
		dir, err := os.MkdirTemp("", "covey-plans-")
		if err != nil {
			return nil, fmt.Errorf("plan: make a directory for cursor files: %w", err)
		}
		t.dir, t.temp = dir, true
	}
	var err error
	if p.cursor, err = newCursorFile(t.dir, p.id, len(p.ranks)); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	running, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	t.byID[p.id] = p
	t.all.Add(1)
	return running, nil
}

// shareOrder gives a plan the order of one that is the same: the ranks of a node
// post a plan each. It returns what the other orders may need in memory; t.mu is
// held.
func (t *planTable) shareOrder(p *heldPlan) (others int64) {
	seen := map[*ahead.Order]bool{}
	for _, q := range t.byID {
		if spec := p.order.Spec(); spec.World > 0 && q.order.Spec() == spec && q.epochs == p.epochs {
			p.order = q.order
		}
		if !seen[q.order] {
			seen[q.order] = true
			others += q.orderBytes()
		}
	}
	if seen[p.order] {
		others -= p.orderBytes()
	}
	return others
}

// remove forgets a plan that has ended.
func (t *planTable) remove(p *heldPlan) {
	p.cancel()
	p.cursor.end()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byID, p.id)
	t.all.Done()
}

// cancelAll ends every plan and waits; none is taken after it.
func (t *planTable) cancelAll() {
	t.mu.Lock()
	t.closed = true
	for _, p := range t.byID {
		p.cancel()
	}
	t.mu.Unlock()
	t.all.Wait()
	if t.temp {
		_ = os.Remove(t.dir) // it is empty, and in the temporary directory if not
	}
}

func (t *planTable) get(id string) (*heldPlan, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byID[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("plan %q: not held by this agent, or no more: %w", id, covey.ErrNotFound)
}

func (t *planTable) list() []*heldPlan {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.byID), func(a, b *heldPlan) int {
		return cmp.Or(a.posted.Compare(b.posted), cmp.Compare(a.id, b.id))
	})
}

// runPlan resolves the plan's manifest and follows its cursor until its lease
// ends or it is cancelled.
func (a *Agent) runPlan(ctx context.Context, p *heldPlan, ds *dataset.Dataset) {
	ctx, stop := context.WithCancel(ctx)
	resolved := make(chan error, 1)
	var resolving sync.WaitGroup
	defer a.stopReading(p)
	defer resolving.Wait()
	defer stop()
	resolving.Go(func() { resolved <- a.resolvePlan(ctx, p, ds) })
	tick := time.NewTicker(cursorTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-resolved:
			if err != nil {
				p.fail(planFailed, err.Error())
				a.log.Warn("plan cannot be used", "plan", p.id, "job", p.job, "error", err)
			}
		case <-tick.C:
			if !p.live(p.cursor.read(), time.Now()) {
				a.log.Info("plan forgotten: its lease has ended", "plan", p.id, "job", p.job)
				return
			}
		}
	}
}

// resolvePlan looks up the manifest.
func (a *Agent) resolvePlan(ctx context.Context, p *heldPlan, ds *dataset.Dataset) error {
	l, err := ahead.Resolve(ctx, ds, &p.manifest, a.indexer(ds, p.manifest.Format))
	if err != nil {
		return err
	}
	if err := p.order.Fits(l.Samples()); err != nil {
		return err
	}
	j := a.ahead.Add(ahead.JobOptions{ID: p.id, Data: l, Bytes: l.Bytes(), Order: p.order, Ranks: p.ranks})
	p.mu.Lock()
	p.layout, p.reading, p.state = l, j, planActive
	p.manifest = ahead.Manifest{} // the layout has it all
	p.mu.Unlock()
	select {
	case a.plans.fresh <- struct{}{}:
	default:
	}
	return nil
}

// stopReading ends reading ahead for a plan.
func (a *Agent) stopReading(p *heldPlan) {
	p.mu.Lock()
	j := p.reading
	p.mu.Unlock()
	if j != nil {
		a.ahead.Remove(j)
	}
}

// planRoom is how many bytes of a manifest's files the cache could hold: what is
// free, less a little for what others admit meanwhile, and what such files take
// already.
func (a *Agent) planRoom(d ahead.Data) int64 {
	u := a.store.Usage()
	free := u.Budget - u.Used - u.Reserved
	du, err := a.store.Du(func(o covey.Object) bool { return d.Has(o) })
	if err != nil {
		a.log.Debug("what a manifest takes in the cache is not known", "error", err)
	}
	return max(free-u.Budget/roomMargin, 0) + du.Used
}

// roomMargin is what part of the cache's budget a plan leaves alone.
const roomMargin = 500

// live takes a reading of the cursor into account, and reports whether the lease
// still runs.
func (p *heldPlan) live(moved bool, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if moved {
		copy(p.positions, p.cursor.last)
		p.expires = now.Add(p.lease)
		if p.reading != nil {
			p.reading.Advance(p.positions)
		}
	}
	return now.Before(p.expires)
}

func (p *heldPlan) fail(state, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.reason = state, reason
}

func (p *heldPlan) snapshot() gateway.Plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	spec := p.order.Spec()
	s := gateway.Plan{
		ID: p.id, Job: p.job, Source: p.source, State: p.state, Reason: p.reason, Cursor: p.cursor.path,
		LeaseSeconds: int(p.lease.Seconds()), Posted: p.posted, Expires: p.expires,
		Epoch: spec.Epoch, Epochs: p.epochs, World: spec.World, Nodes: 1, Ranks: []gateway.PlanRank{},
	}
	if p.layout != nil {
		s.Files, s.Samples, s.Bytes = int64(p.layout.Files()), p.layout.Samples(), p.layout.Bytes()
	}
	for i, rank := range p.ranks {
		s.Ranks = append(s.Ranks, gateway.PlanRank{Rank: rank, Position: p.positions[i], Samples: p.order.Total(rank)})
	}
	if p.reading != nil {
		addReading(&s, p.reading.Status())
	}
	return s
}

// addReading adds to a plan what was read ahead for it.
func addReading(s *gateway.Plan, r ahead.Status) {
	if r.Dropped != "" {
		s.State, s.Reason = planDropped, r.Dropped
	}
	s.Nodes, s.OwnedBytes, s.ResidentBytes = r.Nodes, r.Owned, r.Resident
	s.Fetched = gateway.FetchedBytes{Local: r.Fetched[fetch.Local], Neighbour: r.Fetched[fetch.Neighbour], Origin: r.Fetched[fetch.Origin]}
	s.Reads, s.Unplanned, s.Divergence = r.Reads, r.Unplanned, r.Divergence
	for i, k := range r.Ranks {
		s.Ranks[i].AheadSamples, s.Ranks[i].AheadBytes = k.Samples, k.Bytes
	}
}

// Plans returns every plan, oldest first.
func (a *Agent) Plans() []gateway.Plan {
	all := []gateway.Plan{}
	for _, p := range a.plans.list() {
		all = append(all, p.snapshot())
	}
	return all
}

// Plan returns one plan.
func (a *Agent) Plan(id string) (gateway.Plan, error) {
	p, err := a.plans.get(id)
	if err != nil {
		return gateway.Plan{}, err
	}
	return p.snapshot(), nil
}

// RenewPlan lets a plan's lease run from now on.
func (a *Agent) RenewPlan(id string, lease time.Duration) (gateway.Plan, error) {
	p, err := a.plans.get(id)
	if err != nil {
		return gateway.Plan{}, err
	}
	p.mu.Lock()
	if lease != 0 {
		p.lease = lease
	}
	p.expires = time.Now().Add(p.lease)
	p.mu.Unlock()
	return p.snapshot(), nil
}

// CancelPlan ends a plan.
func (a *Agent) CancelPlan(id string) error {
	p, err := a.plans.get(id)
	if err == nil {
		p.cancel()
	}
	return err
}
