package ahead

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
)

const (
	// settleLimit is how long a group waits to hear of all the ranks of its jobs
	// before it takes its share: agents whose jobs start together hear of each
	// other in a fraction of it.
	settleLimit = 2 * time.Second
	// headStart is how much later than its owner a reader asks for a block that
	// nobody is known to have: several round trips to a near origin.
	headStart = 300 * time.Millisecond
	// retryAfter and maxTries bound what is tried again. The read itself tries
	// with more patience.
	retryAfter = time.Second
	maxTries   = 3
	// memoryPause is how long a block waits for memory.
	memoryPause = 10 * time.Millisecond
)

// group is everything on this node that has to do with one manifest: jobs that
// read the same samples share blocks and owners.
type group struct {
	reader *Reader
	data   Data
	bytes  int64 // of all files
	whole  bool

	// mu guards what follows, the fields of the jobs and of the wants. It is a
	// leaf lock: nothing outside this package but Handle.Release is called
	// under it.
	//
	// INVARIANT: a want in a queue is waiting, and is in wants.
	// INVARIANT: staged is the size of the wants whose staged is set.
	mu      sync.Mutex
	jobs    []*Job
	began   time.Time
	place   *placement
	covered bool // the ranks of all jobs are known
	taken   bool // this node has taken its share of what was wanted by then
	wants   map[uint64]*want
	// elsewhere are blocks of this node's share that it does not keep after all:
	// another node has them, because a reader there came first, or others took the
	// room. Their readers bring them.
	elsewhere map[uint64]bool
	staged    int64
	booked    int64 // of flights that may end up staged
	reads     reads
}

// settled says whether this node may take its share; g.mu is held.
func (g *group) settled(now time.Time) bool {
	return g.covered || g.taken || now.Sub(g.began) > settleLimit
}

// blocks calls f for each block of a sample.
func (g *group) blocks(index uint32, f func(file, block int, hash uint64, u unit, size int64)) {
	s := g.data.Span(index)
	if s.Len == 0 {
		return
	}
	o := g.data.Object(s.File)
	if o.BlockSize == 0 {
		return
	}
	for b := int(s.Off / o.BlockSize); b <= int((s.Off+s.Len-1)/o.BlockSize) && b < o.Blocks(); b++ {
		f(s.File, b, blockHash(&o, b), unitOf(&o, b, g.whole), o.BlockRange(b).Len)
	}
}

// newWant adds a block to what is wanted; g.mu is held.
func (g *group) newWant(j *Job, file, block int, hash uint64, u unit, size int64, due uint64) *want {
	w := &want{hash: hash, file: file, block: block, size: size, job: j, due: due, place: -1}
	g.assign(w, u)
	g.wants[hash] = w
	if w.state == waiting {
		j.await(w)
	}
	return w
}

// assign says whose share a want is; g.mu is held.
func (g *group) assign(w *want, u unit) {
	if !g.whole && !g.place.keeps(u) {
		// Samples that are parts of a block that nobody has room for are read by
		// their exact ranges, when they are asked for: a block for each would cost
		// the origin many times as much.
		w.state = ready
		return
	}
	own := g.taken && g.place.mine(u) && !g.elsewhere[w.hash]
	w.mine = own && g.place.keeps(u)
	w.after = time.Time{}
	if !own {
		w.after = g.began.Add(headStart)
	}
}

// unref lets go of a sample's blocks; g.mu is held.
func (g *group) unref(s *sample) {
	for _, w := range s.wants {
		if w.refs--; w.refs == 0 {
			g.unstage(w)
			if w.state == ready || w.state == waiting && !w.mine {
				w.job.forget(w)
				delete(g.wants, w.hash)
			}
		}
	}
	s.wants = nil
}

// unstage releases a want's block in memory; g.mu is held.
func (g *group) unstage(w *want) {
	if w.staged != nil {
		w.staged.drop()
		w.staged = nil
		g.staged -= w.size
	}
}

// settle takes this node's share once it may; g.mu is held.
func (g *group) settle(now time.Time) {
	if !g.taken && g.settled(now) {
		g.taken = true
		g.replace(g.place)
	}
}

// replace takes in another set of nodes; g.mu is held.
func (g *group) replace(p *placement) {
	g.place = p
	clear(g.elsewhere)
	for _, w := range g.wants {
		if w.state != waiting {
			continue
		}
		w.job.forget(w)
		o := g.data.Object(w.file)
		g.assign(w, unitOf(&o, w.block, g.whole))
		switch {
		case w.refs == 0 && !w.mine:
			delete(g.wants, w.hash)
		case w.state == waiting:
			w.job.await(w)
		}
	}
	for _, j := range g.jobs {
		j.owned = 0
	}
}

// next takes out of a job's queues the want to fetch now, nil when there is
// none; g.mu is held.
func (g *group) next(j *Job, now time.Time, staging int64) *want {
	for _, q := range j.byDue() {
		var later []*want
		var found *want
		// What must wait is passed over; more than a few dozen in a row means that
		// all do.
		for q.Len() > 0 && len(later) < maxPassed {
			w := (*q)[0]
			q.remove(w)
			if now.Before(w.after) || w.beyond() || !w.mine && !g.mayStage(w.size, staging) {
				later = append(later, w)
				continue
			}
			found = w
			break
		}
		for _, w := range later {
			q.add(w)
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// mayStage says whether there is memory for a block that the store does not take.
// Where the caches hold everything it has room for copies, which give way to what
// is read from the origin, so that memory is only for what it refuses after all;
// g.mu is held.
func (g *group) mayStage(size, limit int64) bool {
	if g.place.all() {
		return g.staged < limit
	}
	return g.staged+g.booked+size <= limit
}

// beyond says that a want is not to be fetched yet.
func (w *want) beyond() bool {
	if w.mine {
		return w.due >= w.job.until
	}
	return w.refs > 0 && w.due >= w.rank.horizon
}

// maxPassed is how many wants in a row are passed over.
const maxPassed = 32

// byDue are the job's queues, the one with the nearer head first.
func (j *Job) byDue() [2]*queue {
	if len(j.own) > 0 && (len(j.local) == 0 || j.own[0].due < j.local[0].due) {
		return [2]*queue{&j.own, &j.local}
	}
	return [2]*queue{&j.local, &j.own}
}

// bring fetches one block.
func (g *group) bring(ctx context.Context, w *want) {
	e, slot, err := g.data.Extent(ctx, w.file, w.block)
	var h blockstore.Handle
	var from fetch.Source
	kept := false
	if err == nil {
		h, from, err = g.reader.opts.Fetch.Bring(ctx, e, slot)
	}
	if err == nil {
		kept = from == fetch.Local || g.reader.opts.Fetch.Present(e).Has(slot)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.landed(w, h, from, kept, err, time.Now())
}

// landed takes in how a fetch ended; g.mu is held.
func (g *group) landed(w *want, h blockstore.Handle, from fetch.Source, kept bool, err error, now time.Time) {
	w.job.flying -= w.size
	if !w.mine {
		g.booked -= w.size
	}
	if err != nil {
		g.failed(w, err, now)
		return
	}
	w.state = ready
	if w.mine && !kept && len(g.elsewhere) < maxElsewhere {
		g.elsewhere[w.hash] = true
	}
	w.job.fetched[from] += w.size
	g.reader.metrics.fetched(from, w.size)
	switch {
	case kept || w.refs == 0 || w.uses >= w.refs:
		h.Release()
	default:
		w.staged = newShared(h)
		g.staged += w.size
	}
	if w.refs == 0 {
		delete(g.wants, w.hash)
	}
}

// failed puts a want back, or gives it up: the read will meet the error itself.
func (g *group) failed(w *want, err error, now time.Time) {
	w.state = waiting
	if isFull(err) {
		w.after = now.Add(memoryPause)
	} else {
		w.tries++
		w.after = now.Add(retryAfter)
	}
	if w.tries >= maxTries || w.refs == 0 && !w.mine || isFinal(err) {
		delete(g.wants, w.hash)
		w.state = ready // a window may hold it still
		return
	}
	w.job.await(w)
}

// maxElsewhere bounds what is remembered of blocks that others have: 4 TiB of
// 4 MiB blocks in some 50 MB. What is forgotten is asked for again.
const maxElsewhere = 1 << 20

// stagedBlock returns a block that is in memory only, nil when it is not.
func (g *group) stagedBlock(hash uint64) blockstore.Handle {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.wants[hash]
	if w == nil || w.staged == nil {
		return nil
	}
	h := w.staged.hold()
	if w.uses++; w.uses >= w.refs {
		g.unstage(w)
	}
	return h
}

// keep says whether the store should have a block.
func (g *group) keep(l *covey.Locator, from fetch.Source) bool {
	g.mu.Lock()
	p, on, passed := g.place, g.following() && g.settled(time.Now()), g.passed()
	g.mu.Unlock()
	if !on {
		return true
	}
	if from != fetch.Origin {
		// A copy lies in spare room, of which there is none where not everything
		// fits: it would only come and go.
		return p.all()
	}
	// Whoever reads a block keeps it, as a rule its owner: where a reader was there
	// first the owner leaves it there. Of what does not fit altogether all nodes
	// keep about the same part, for their capacities say how much each one owns;
	// once that part has been read, what room there is takes anything.
	return passed || p.keeps(unitOf(&l.Object, l.Index, g.whole))
}

// passed says whether some job has been through a whole epoch; g.mu is held.
func (g *group) passed() bool {
	return slices.ContainsFunc(g.jobs, func(j *Job) bool {
		epoch := j.order.at(0).PerRank()
		return len(j.ranks) > 0 && epoch > 0 && !slices.ContainsFunc(j.ranks, func(r *rank) bool { return r.at() < epoch })
	})
}

// following says whether a plan of this node's is in force; g.mu is held.
func (g *group) following() bool {
	for _, j := range g.jobs {
		if j.dropped == "" && !j.foreign {
			return true
		}
	}
	return false
}

// asked takes in that a block was asked for, and returns the jobs to be dropped
// because too much was asked for that they did not foresee.
func (g *group) asked(l *covey.Locator) (dropped []*Job) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.following() || !g.scannedAll() {
		return nil
	}
	foreseen := false
	// The kernel reads ahead past a sample's end, so that neighbours of what was
	// foreseen are no sign of another order.
	for _, b := range [...]int{l.Index, l.Index - 1, l.Index + 1} {
		w := g.wants[blockHash(&l.Object, b)]
		if w == nil || w.refs == 0 {
			continue
		}
		foreseen = true
		if b == l.Index {
			w.rank.seen = max(w.rank.seen, w.at)
			if w.state == waiting { // too late to be read ahead
				w.job.forget(w)
				w.state = ready
			}
		}
		break
	}
	g.reads.count(foreseen)
	if !g.reads.diverged() {
		return nil
	}
	why := fmt.Sprintf("%d of the last %d reads were not in the plan", g.reads.missedLate, g.reads.late)
	for _, j := range g.jobs {
		if j.dropped == "" && !j.foreign {
			j.dropped = why
			g.clear(j)
			dropped = append(dropped, j)
		}
	}
	g.reads.reset()
	return dropped
}

// scannedAll says whether each rank's window has been looked at; g.mu is held.
func (g *group) scannedAll() bool {
	for _, j := range g.jobs {
		for _, r := range j.ranks {
			if r.scanned == 0 && r.total > 0 && j.dropped == "" {
				return false
			}
		}
	}
	return true
}

// clear forgets all that a job waits for; g.mu is held.
func (g *group) clear(j *Job) {
	for _, r := range j.ranks {
		for i := range r.window {
			g.unref(&r.window[i])
		}
		r.window = nil
	}
	var heir *Job
	for _, other := range g.jobs {
		if other != j && other.dropped == "" {
			heir = other
		}
	}
	for hash, w := range g.wants {
		switch {
		case w.job != j:
		case w.state == flying: // landed takes it out
		case w.refs > 0 && heir != nil:
			j.forget(w)
			w.job = heir
			if w.state == waiting {
				heir.await(w)
			}
		default:
			j.forget(w)
			g.unstage(w)
			delete(g.wants, hash)
		}
	}
}
