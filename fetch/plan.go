package fetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

const (
	// planLife is how long a holder that the home named is believed. Holders
	// report every second, so an older answer is one that they have corrected.
	planLife = 2 * time.Second
	// planExtents is how many extents' plans are kept: 128 GiB of 4 MiB blocks,
	// in at most 8 MiB of memory.
	planExtents = 512
	// holdFor is how long a home may keep a question that it can only answer with
	// "wait": as long as it does at most.
	holdFor = time.Second
	// resolveLimit bounds one question, the look-up in the DHT included.
	resolveLimit = 5 * time.Second
	// handBackLimit bounds a message to a home that nobody waits for. Less than
	// a stopping agent has, so that it says goodbye.
	handBackLimit = 2 * time.Second
)

var errAbandoned = errors.New("nobody waits for the block any more")

// planner asks the directory for many flights at once and remembers what it
// says. Slots of one extent that are asked for while a question about it is
// under way go together into the next one.
type planner struct {
	dir  Directory
	root context.Context
	// spawn starts a goroutine that the fetcher joins; false when stopping.
	spawn func(func()) bool
	// flying says whether a flight for the block is under way.
	flying func(covey.Locator) bool
	// add puts what the fetcher knows of the origin into a question, and what it
	// would read besides; taken hears of the answer before anybody else.
	add   func(e *covey.Extent, w *dht.Want)
	taken func(e *covey.Extent, w dht.Want, p dht.Plan)
	log   *slog.Logger

	// mu guards all below and the marked fields of questions. It is a leaf lock.
	mu    sync.Mutex
	asks  map[askKey]*ask
	known *lru[covey.ExtentID, []knownBlock]
}

// askKey says which slots may share a question. Those that failed with some
// peers do not mix with others: the home would leave the peers out for both. A
// question that its home may keep is its slot's own, for the others would wait
// with it.
type askKey struct {
	extent   covey.ExtentID
	prefetch bool
	failed   string
	held     int // 1 + the slot
}

// wish is what a flight asks of the directory, beside its slot.
type wish struct {
	failed   []covey.PeerID
	prefetch bool
	// fresh says that the answer to a question that was put before does not count.
	fresh bool
	// home, if set, may keep the question: it was the last to say "wait".
	home covey.PeerID
	// got is the digest of bytes that are here and that no home has confirmed.
	got covey.Digest
}

func (w *wish) key(e *covey.Extent, slot int) askKey {
	k := askKey{extent: e.ID, prefetch: w.prefetch, failed: peerKey(w.failed)}
	if w.home != "" {
		k.held = 1 + slot
	}
	return k
}

// ask is one question under way and the one that gathers behind it.
type ask struct {
	asking *question
	next   *question // nil when nobody waits for it
}

// question is one call of Resolve, shared by the flights of its slots.
type question struct {
	extent *covey.Extent
	key    askKey
	failed []covey.PeerID
	home   covey.PeerID
	// Guarded by planner.mu until done closes, then unchanged.
	need     covey.Bitmap
	got      map[int]covey.Digest
	left     covey.Bitmap // slots whose flight left before the answer
	answered bool
	done     chan struct{}
	plan     dht.Plan
	err      error
}

// answer is what the directory says of one slot.
type answer struct {
	dht.BlockPlan
	home covey.PeerID
}

// knownBlock is what a home said of a held block.
type knownBlock struct {
	digest covey.Digest // pinned: it stays true when the holders do not
	peers  []covey.PeerID
	at     time.Time
}

func newPlanner(root context.Context, dir Directory, t *table, log *slog.Logger) *planner {
	return &planner{
		add: func(*covey.Extent, *dht.Want) {}, taken: func(*covey.Extent, dht.Want, dht.Plan) {},
		dir: dir, root: root, spawn: t.spawn, flying: t.has, log: log,
		asks:  make(map[askKey]*ask),
		known: newLRU[covey.ExtentID, []knownBlock](planExtents),
	}
}

// recall returns the holders that a home named of late.
func (p *planner) recall(e *covey.Extent, slot int) (answer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	blocks, ok := p.known.get(e.ID)
	if !ok || len(blocks[slot].peers) == 0 || time.Since(blocks[slot].at) > planLife {
		return answer{}, false
	}
	k := blocks[slot]
	return answer{BlockPlan: dht.BlockPlan{Slot: slot, State: dht.Held, Peers: k.peers, Digest: k.digest}}, true
}

// digest returns the digest that a home once pinned, zero when unknown.
func (p *planner) digest(e *covey.Extent, slot int) covey.Digest {
	p.mu.Lock()
	defer p.mu.Unlock()
	if blocks, ok := p.known.get(e.ID); ok {
		return blocks[slot].digest
	}
	return covey.Digest{}
}

// forget drops the holders of a slot: none of them had it.
func (p *planner) forget(e *covey.Extent, slot int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if blocks, ok := p.known.get(e.ID); ok {
		blocks[slot].peers = nil
	}
}

// learn remembers what the plan says of held blocks; p.mu is held.
func (p *planner) learn(e *covey.Extent, plan dht.Plan) {
	blocks, ok := p.known.get(e.ID)
	for _, b := range plan.Blocks {
		if b.State != dht.Held || b.Digest.IsZero() || len(b.Peers) == 0 || b.Slot < 0 || b.Slot >= len(e.Blocks) {
			continue
		}
		if !ok {
			blocks, ok = make([]knownBlock, len(e.Blocks)), true
			p.known.put(e.ID, blocks)
		}
		blocks[b.Slot] = knownBlock{digest: b.Digest, peers: b.Peers, at: time.Now()}
	}
}

// resolve asks the directory for one slot.
func (p *planner) resolve(ctx context.Context, e *covey.Extent, slot int, w wish) (answer, error) {
	q, err := p.put(e, slot, covey.Bitmap(0).With(slot), w)
	if err != nil {
		return answer{}, err
	}
	return p.wait(ctx, q, slot)
}

// put adds slots, of which slot is one, to a question about the extent, and
// begins it when none is under way. Each slot must be waited for.
func (p *planner) put(e *covey.Extent, slot int, need covey.Bitmap, w wish) (*question, error) {
	key := w.key(e, slot)
	p.mu.Lock()
	a := p.asks[key]
	if a != nil {
		defer p.mu.Unlock()
		q := a.next
		if !w.fresh && w.got.IsZero() && !a.asking.answered && a.asking.need&need == need {
			q = a.asking // asked for by a flight that left
		} else if q == nil {
			q = newQuestion(e, key, w)
			a.next = q
		}
		q.add(slot, need, w)
		return q, nil
	}
	q := newQuestion(e, key, w)
	q.add(slot, need, w)
	a = &ask{asking: q}
	p.asks[key] = a
	p.mu.Unlock()

	if !p.spawn(func() { p.run(key, a) }) {
		p.mu.Lock()
		delete(p.asks, key)
		p.mu.Unlock()
		// Who joined meanwhile ends with the root context, as this caller does.
		return nil, errStopped
	}
	return q, nil
}

func newQuestion(e *covey.Extent, key askKey, w wish) *question {
	return &question{extent: e, key: key, failed: w.failed, home: w.home, done: make(chan struct{})}
}

// add adds slots; the planner's lock is held, or nobody else has the question.
func (q *question) add(slot int, need covey.Bitmap, w wish) {
	q.need |= need
	q.left &^= need
	if !w.got.IsZero() {
		if q.got == nil {
			q.got = map[int]covey.Digest{}
		}
		q.got[slot] = w.got
	}
}

// want is the question as the directory is asked it; the planner's lock is held.
func (q *question) want() dht.Want {
	w := dht.Want{
		Extent: q.extent.ID, Count: len(q.extent.Blocks), Need: q.need,
		Failed: q.failed, Prefetch: q.key.prefetch, Home: q.home,
		Bucket: dht.Bucket(q.extent.Blocks[0].Origin),
	}
	if q.home != "" {
		w.Hold = holdFor
	}
	for slot := range q.need.Slots() {
		if d, ok := q.got[slot]; ok {
			w.Got = w.Got.With(slot)
			w.Digests = append(w.Digests, d)
		}
	}
	return w
}

// peerKey is the same for the same peers in any order.
func peerKey(peers []covey.PeerID) string {
	if len(peers) == 0 {
		return ""
	}
	sorted := slices.Clone(peers)
	slices.Sort(sorted)
	var b strings.Builder
	for _, p := range sorted {
		fmt.Fprintf(&b, "%d:%s", len(p), p)
	}
	return b.String()
}

// run puts one question after the other until nobody waits for the next.
func (p *planner) run(key askKey, a *ask) {
	for a.asking != nil {
		p.pose(a.asking)
		p.mu.Lock()
		a.asking, a.next = a.next, nil
		if a.asking == nil {
			delete(p.asks, key)
		}
		p.mu.Unlock()
	}
}

// pose puts one question and hands out the answer.
func (p *planner) pose(q *question) {
	ctx, cancel := context.WithTimeout(p.root, resolveLimit)
	p.mu.Lock()
	want := q.want()
	p.mu.Unlock()
	p.add(q.extent, &want)
	plan, err := p.dir.Resolve(ctx, want)
	cancel()
	if err == nil {
		p.taken(q.extent, want, plan)
	}

	p.mu.Lock()
	q.plan, q.err, q.answered = plan, err, true
	if err == nil {
		p.learn(q.extent, plan)
	}
	left := q.left
	p.mu.Unlock()
	close(q.done)
	for slot := range left.Slots() {
		if a, err := q.of(slot); err == nil && a.State == dht.Granted {
			if !p.spawn(func() { p.handBack(q.extent, a) }) {
				p.handBack(q.extent, a)
			}
		}
	}
}

// of returns what the answered question says of one slot.
func (q *question) of(slot int) (answer, error) {
	if q.err != nil {
		return answer{}, fmt.Errorf("resolve extent %s: %w", q.extent.ID, q.err)
	}
	for _, b := range q.plan.Blocks {
		if b.Slot == slot {
			return answer{BlockPlan: b, home: q.plan.Home}, nil
		}
	}
	return answer{}, fmt.Errorf("resolve extent %s: home said nothing of slot %d: %w", q.extent.ID, slot, covey.ErrUnavailable)
}

// wait returns the answer for one slot. When ctx ends first, a grant that comes
// later goes back to the home.
func (p *planner) wait(ctx context.Context, q *question, slot int) (answer, error) {
	select {
	case <-q.done:
		return q.of(slot)
	case <-ctx.Done():
	}
	p.mu.Lock()
	answered := q.answered
	if !answered {
		q.left = q.left.With(slot)
	}
	p.mu.Unlock()
	if answered {
		return q.of(slot)
	}
	return answer{}, fmt.Errorf("resolve extent %s: %w: %w", q.extent.ID, covey.ErrUnavailable, context.Cause(ctx))
}

// handBack tells the home that a grant is not used, so that the next asker need
// not wait for the lease to run out. When the block is in flight again, the
// home has answered that flight with the same lease, and it must stand.
func (p *planner) handBack(e *covey.Extent, a answer) {
	if p.flying(e.Blocks[a.Slot]) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.root), handBackLimit)
	defer cancel()
	o := dht.Outcome{Extent: e.ID, Slot: a.Slot, Lease: a.Lease, Err: errAbandoned}
	if err := p.dir.Done(ctx, a.home, o); err != nil {
		p.log.Debug("grant not handed back", "extent", e.ID, "slot", a.Slot, "error", err)
	}
}
