package ahead

import (
	"context"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

// Job is one plan on this node: an order, and how far this node's ranks are.
type Job struct {
	id    string
	group *group
	order *Order
	began time.Time
	// foreign says that none of this node's ranks read it; it is known from other
	// nodes, and only this node's share of it is of interest.
	foreign bool

	// group.mu guards what follows, except that Run's goroutine alone changes
	// scanned fields.
	ranks []*rank
	// own and local are what waits to be fetched: blocks of this node's share,
	// and what this node's ranks read beside.
	own, local queue
	// owned is the position up to which all ranks' samples were looked through
	// for this node's share.
	owned uint64
	// until is the position up to which this node's share is fetched.
	until  uint64
	flying int64 // bytes under way
	// fetched are the bytes brought, by source.
	fetched [3]int64
	dropped string // why the plan is not followed any more
	// frozen is the lowest position that other nodes have told; of a foreign job.
	frozen uint64
}

// rank is one of this node's ranks.
type rank struct {
	id    uint32
	total uint64
	// position is the loader's counter, and seen how far its reads have got.
	position, seen uint64
	// scanned is the position up to which samples are in window, which begins at
	// base.
	scanned, base uint64
	window        []sample
	// horizon is the position up to which is fetched; what the window has beyond
	// only tells reads that were foreseen from others.
	horizon uint64
	pace    pace
}

// sample is one sample of a rank's window.
type sample struct {
	size  int64
	wants []*want
}

// at is how far the rank is: its loader may count late.
func (r *rank) at() uint64 { return max(r.position, r.seen) }

const (
	// maxBehind is how many samples stay in a window behind the rank's place. A
	// loader that counts when it draws an index reads that sample later: by 8
	// worker processes, 2 batches each, of 256. behindBytes bounds them where
	// samples are large and batches therefore small, but for minBehind.
	maxBehind   = 4096
	behindBytes = 4 << 30
	minBehind   = 32
	// scanChunk is how many positions are looked at between two looks at the
	// queue.
	scanChunk = 64
	// minDistance is read ahead in any case, for each rank: a batch of 400 samples
	// of 115 KB is 46 MB and is asked for at once.
	minDistance = 64 << 20
	// minSamples is the same in samples, where one is larger than that.
	minSamples = 2
	// foreseen is how many samples ahead of a rank's place a read is taken to
	// follow the plan: what a loader's processes may have under way. It is fewer
	// where that would be more than foreseenBlocks.
	foreseen       = 4096
	foreseenBlocks = 1 << 14
	// leastPart is what part of a manifest is read ahead at most, by all ranks
	// together: more would be no order any more, but a bulk load.
	leastPart = 8
)

// distance is how many bytes ahead of a rank are fetched: what it reads in one
// and a half times of what a read of the origin takes at worst, and at least
// twice what it is known to ask for at once.
func (j *Job) distance(r *rank, latency time.Duration, most int64) int64 {
	need := int64(1.5 * r.pace.rate * latency.Seconds())
	d := max(need, 2*r.pace.burst, minDistance)
	if world := int64(j.order.World()); world > 0 {
		d = min(d, j.group.bytes/(leastPart*world)+1)
	}
	return min(d, most)
}

// behind is how many samples a window keeps: fewer where they are large.
func (g *group) behind() uint64 {
	size := g.bytes/max(int64(g.data.Samples()), 1) + 1
	return uint64(min(max(behindBytes/size, minBehind), maxBehind))
}

// slide moves a window on to the rank's place, and forgets what lies far behind.
func (g *group) slide(r *rank) {
	at := r.at()
	from := uint64(0)
	if at > g.behind() {
		from = at - g.behind()
	}
	n := 0
	for n < len(r.window) && r.base+uint64(n) < from {
		g.unref(&r.window[n])
		n++
	}
	if n > 0 {
		r.window = slices.Delete(r.window, 0, n)
		r.base += uint64(n)
	}
	if r.scanned < at { // the job went past what was known
		for i := range r.window {
			g.unref(&r.window[i])
		}
		r.window, r.base, r.scanned = nil, at, at
	}
}

// look sets how far a rank is fetched for: to so many bytes from its place on.
func (r *rank) look(distance int64) {
	at := r.at()
	p := at
	for n := int64(0); p < r.scanned && (n < distance || p < at+minSamples); p++ {
		if p >= r.base {
			n += r.window[p-r.base].size
		}
	}
	r.horizon = p
}

// foreseen is how many samples of each rank are looked at ahead: less than an
// epoch, so that as a rule a window has each of its samples once.
func (j *Job) foreseen() uint64 {
	g := j.group
	blocks := max(g.bytes/max(int64(g.data.Samples()), 1)/covey.DefaultBlockSize, 1)
	n := uint64(min(max(foreseenBlocks/blocks, minBehind), foreseen))
	if world := uint64(j.order.World()); world > 0 {
		n = min(n, max(g.data.Samples()/world/2, minSamples))
	}
	return n
}

// scan brings a job's windows up to date. It reports whether there is more to
// look at than it did.
func (g *group) scan(ctx context.Context, j *Job, latency time.Duration, most int64) (more bool) {
	var buf [scanChunk]uint32
	for _, r := range j.ranks {
		g.mu.Lock()
		g.slide(r)
		r.look(j.distance(r, latency, most))
		until, from := r.at()+j.foreseen(), r.scanned
		g.mu.Unlock()
		if from >= until {
			continue
		}
		n, err := j.order.Read(ctx, r.id, from, buf[:min(scanChunk, until-from)])
		if err != nil || n == 0 {
			continue
		}
		g.mu.Lock()
		for _, s := range buf[:n] {
			g.extend(j, r, s)
		}
		more = true
		g.mu.Unlock()
	}
	return g.scanShare(ctx, j, latency, most) || more
}

// extend adds the next sample to a rank's window; g.mu is held.
func (g *group) extend(j *Job, r *rank, index uint32) {
	s := sample{}
	g.blocks(index, func(file, block int, hash uint64, u unit, size int64) {
		s.size += size
		w := g.wants[hash]
		if w == nil {
			w = g.newWant(j, file, block, hash, u, size, r.scanned)
		}
		if w.state == ready && w.staged == nil { // read since, perhaps not kept
			w.state, w.due, w.job = waiting, r.scanned, j
			if g.assign(w, u); w.state == waiting {
				j.await(w)
			}
		}
		if w.refs == 0 || w.at < w.rank.at() {
			w.rank, w.at = r, r.scanned
		}
		w.refs++
		w.hasten(j, r.scanned)
		s.wants = append(s.wants, w)
	})
	if len(r.window) == 0 {
		r.base = r.scanned
	}
	r.window = append(r.window, s)
	r.scanned++
}

// hasten has a waiting want fetched for another reader that comes before; g.mu is
// held.
func (w *want) hasten(j *Job, due uint64) {
	if w.state == waiting && w.due > due {
		w.job.forget(w)
		w.due, w.job = due, j
		j.await(w)
	}
}

// scanShare looks through what all ranks read next for blocks of this node's
// share. It goes twice as far as the ranks' own windows, so that a block lies
// with its owner when the first reader comes for it.
func (g *group) scanShare(ctx context.Context, j *Job, latency time.Duration, most int64) (more bool) {
	world := j.order.World()
	g.mu.Lock()
	g.settle(time.Now())
	p, settled := g.place, g.taken
	from, until := j.shareWindow(latency, most)
	j.until = until
	sharing := g.walksFor(j)
	g.mu.Unlock()
	if world == 0 || !settled || p.self < 0 || from >= until || sharing {
		return false
	}
	var buf [scanChunk]uint32
	n := min(until-from, scanChunk)
	for rank := range world {
		k, err := j.order.Read(ctx, rank, from, buf[:n])
		if err != nil {
			return false
		}
		g.mu.Lock()
		for i, s := range buf[:k] {
			g.blocks(s, func(file, block int, hash uint64, u unit, size int64) {
				w := g.wants[hash]
				switch {
				case w == nil && p.mine(u) && p.keeps(u) && !g.elsewhere[hash]:
					g.newWant(j, file, block, hash, u, size, from+uint64(i))
				case w != nil && w.mine:
					w.hasten(j, from+uint64(i))
				}
			})
		}
		// Orders end at the same place for all ranks, and so do their epochs.
		n = min(n, max(uint64(k), 1))
		g.mu.Unlock()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.place == p {
		j.owned = max(j.owned, from+n)
	}
	return j.owned < until
}

// walksFor says whether a job before this one is of the same order, and goes
// through it for both: the ranks of a node may have a plan each. g.mu is held.
func (g *group) walksFor(j *Job) bool {
	for _, other := range g.jobs {
		switch {
		case other == j:
			return false
		case other.dropped == "" && !other.foreign && other.order == j.order:
			return true
		}
	}
	return false
}

// shareWindow returns the positions to look through for this node's share;
// g.mu is held.
func (j *Job) shareWindow(latency time.Duration, most int64) (from, until uint64) {
	at, d := j.frozen, int64(minDistance)
	for i, r := range j.ranks {
		if i == 0 || r.at() < at {
			at = r.at()
		}
		d = max(d, j.distance(r, latency, most))
	}
	if world := int64(j.order.World()); world > 0 {
		d = min(d, j.group.bytes/(leastPart*world)+1)
	}
	size := j.group.bytes/max(int64(j.group.data.Samples()), 1) + 1
	until = at + uint64(max(2*d/size, 2*minSamples))
	return max(j.owned, at), min(until, j.order.Total(0))
}

// await queues a want; g.mu is held.
func (j *Job) await(w *want) {
	if w.mine {
		j.own.add(w)
	} else {
		j.local.add(w)
	}
}

// forget takes a want out of the queues; g.mu is held.
func (j *Job) forget(w *want) {
	j.own.remove(w)
	j.local.remove(w)
}

// Status is how far a job is.
type Status struct {
	// Dropped says why the plan is not followed any more; "" while it is.
	Dropped string
	Nodes   int
	// Owned is this node's share of the manifest in bytes, Resident what of it
	// fits.
	Owned, Resident int64
	Ranks           []RankStatus
	// Fetched is what was brought, by source.
	Fetched [3]int64
	// Reads are the blocks that were asked for, Unplanned those that no plan had.
	Reads, Unplanned int64
	Divergence       float64
}

// RankStatus is what lies ready in front of a rank without a gap.
type RankStatus struct {
	Samples uint64
	Bytes   int64
}

// Status returns how far the job is.
func (j *Job) Status() Status {
	g := j.group
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Status{
		Dropped: j.dropped, Nodes: len(g.place.nodes), Owned: g.place.owned, Resident: g.place.resident,
		Fetched: j.fetched, Reads: g.reads.all, Unplanned: g.reads.missed, Divergence: g.reads.share(),
	}
	for _, r := range j.ranks {
		s.Ranks = append(s.Ranks, r.ready())
	}
	return s
}

func (r *rank) ready() (s RankStatus) {
	at := r.at()
	for i := range r.window {
		p := r.base + uint64(i)
		if p < at {
			continue
		}
		if p >= r.horizon {
			return s
		}
		for _, w := range r.window[i].wants {
			if w.state != ready {
				return s
			}
		}
		s.Samples++
		s.Bytes += r.window[i].size
	}
	return s
}

// Advance tells how many samples each of the job's ranks has taken.
func (j *Job) Advance(positions []uint64) {
	g := j.group
	now := time.Now()
	g.mu.Lock()
	for i, r := range j.ranks {
		if positions[i] > r.position {
			r.pace.moved(now, g.between(r, r.position, positions[i]))
			r.position = min(positions[i], r.total)
		}
	}
	g.mu.Unlock()
	g.reader.nudge()
}

// between is the length of a rank's samples from one position to another, as far
// as its window knows; g.mu is held.
func (g *group) between(r *rank, from, to uint64) (n int64) {
	for p := max(from, r.base); p < to && p < r.base+uint64(len(r.window)); p++ {
		n += r.window[p-r.base].size
	}
	return n
}
