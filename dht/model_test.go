package dht

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// herd is a cluster whose peers all read the same blocks, as fetch would: from
// holders, from who is reading, or from the origin under a grant.
type herd struct {
	*cluster
	blocks int // in each extent

	mu       sync.Mutex
	reads    map[place]int // from the origin, by block
	override int           // of them without a grant, no home having answered
	needless int           // of them while a peer in reach held the block or was reading it
	reading  map[covey.PeerID]map[place]bool
	failing  float64 // share of granted reads that fail
	crawling float64 // share that take three seconds
	// perSecond, if set, is what the origin serves in a second; it refuses more.
	perSecond int
	served    map[int64]int
	refused   map[int64]int
}

type place struct {
	e    covey.ExtentID
	slot int
}

func newHerd(t *testing.T, seed uint64, blocks int) *herd {
	return &herd{cluster: newCluster(t, seed), blocks: blocks, reads: map[place]int{}, served: map[int64]int{}, refused: map[int64]int{}, reading: map[covey.PeerID]map[place]bool{}}
}

// truth is the digest of a block: what every reader finds at the origin.
func truth(p place) covey.Digest { return testDigest(fmt.Sprintf("%x/%d", p.e, p.slot)) }

// read gets one block for a peer, and reports an error only when the peer died
// or a minute was not enough.
func (h *herd) read(ctx context.Context, n *node, p place) error {
	deadline := time.Now().Add(time.Minute)
	one := covey.Bitmap(0).With(p.slot)
	w := Want{Extent: p.e, Count: h.blocks, Need: one, Bucket: 7, FirstByte: 100 * time.Millisecond}
	for time.Now().Before(deadline) {
		if ctx.Err() != nil || n.has(p.e, p.slot) {
			return ctx.Err()
		}
		plan, err := n.dir().Resolve(ctx, w)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !errors.Is(err, covey.ErrUnavailable) {
				return err
			}
			h.mu.Lock()
			h.override++
			h.mu.Unlock()
			return h.origin(ctx, n, p, nil)
		}
		w.Home, w.Hold = "", 0
		b := plan.Blocks[slices.IndexFunc(plan.Blocks, func(b BlockPlan) bool { return b.Slot == p.slot })]
		switch b.State {
		case Granted:
			return h.granted(ctx, n, p, plan.Home, b)
		case Held:
			if b.Digest != truth(p) {
				return fmt.Errorf("home %s pinned a wrong digest", plan.Home)
			}
			if w.Got != 0 || h.copyFrom(ctx, n, b.Peers, p) {
				n.put(p.e, truth(p), one)
				return nil
			}
			w.Failed = b.Peers
		case Fetching:
			h.mark(n.id, p, true)
			got := h.follow(ctx, n, b.Peers[0], p)
			h.mark(n.id, p, false)
			switch {
			case !got:
				w.Failed = b.Peers
			case !b.Digest.IsZero():
				n.put(p.e, truth(p), one)
				return nil
			default: // a rumour, until the home knows
				w.Got, w.Digests = one, []covey.Digest{truth(p)}
			}
		case Wait:
			w.Home, w.Hold = plan.Home, time.Second
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		case Throttled:
			if err := sleep(ctx, b.After); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s: slot %d not read in time", n.id, p.slot)
}

func (h *herd) granted(ctx context.Context, n *node, p place, home covey.PeerID, b BlockPlan) error {
	h.mark(n.id, p, true)
	defer h.mark(n.id, p, false)
	o := Outcome{Extent: p.e, Slot: p.slot, Lease: b.Lease, Digest: truth(p)}
	if h.chance() < h.failing {
		o.Err = covey.ErrUnavailable
	} else if !h.admitted() {
		o.Err, o.Bucket = covey.ErrThrottled, 7
	} else {
		x := &Reading{Extent: p.e, Slot: p.slot, Lease: b.Lease, Home: home, TTL: b.TTL, New: true}
		if err := h.origin(ctx, n, p, x); err != nil {
			return err
		}
	}
	err := n.dir().Done(ctx, home, o)
	if o.Err != nil {
		return h.read(ctx, n, p)
	}
	_ = err // the announcement tells the homes
	return nil
}

// origin reads a block from the origin. With a lease it reports as it goes.
func (h *herd) origin(ctx context.Context, n *node, p place, x *Reading) error {
	if h.inReach(n, p) {
		h.mu.Lock()
		h.needless++
		h.mu.Unlock()
	}
	h.mu.Lock()
	h.reads[p]++
	h.mu.Unlock()
	took := 20*time.Millisecond + time.Duration(h.chance()*float64(180*time.Millisecond))
	if h.chance() < h.crawling {
		took = 3 * time.Second // past every lease that is not renewed
	}
	if err := h.passes(ctx, n, x, took); err != nil {
		return err
	}
	n.put(p.e, truth(p), covey.Bitmap(0).With(p.slot))
	return nil
}

// passes lets the time of a read pass, with its reports.
func (h *herd) passes(ctx context.Context, n *node, x *Reading, took time.Duration) error {
	if x == nil {
		return sleep(ctx, took)
	}
	reports, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		for reports.Err() == nil {
			_ = n.dir().Progress(reports, []Reading{*x}) // a home that is down learns later
			x.New = false
			x.Bytes += leaseStep
			if sleep(reports, ProgressEvery) != nil {
				return
			}
		}
	})
	return sleep(ctx, took)
}

// admitted says whether the origin serves one more request in this second.
func (h *herd) admitted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now().Unix()
	if h.perSecond > 0 && h.served[now] >= h.perSecond {
		h.refused[now]++
		return false
	}
	h.served[now]++
	return true
}

// inReach reports whether another peer that answers has the block or reads it.
func (h *herd) inReach(n *node, p place) bool {
	for _, m := range h.running() {
		if _, ok := h.alive(m.id); !ok || m == n || h.apart(n.id, m.id) {
			continue
		}
		h.mu.Lock()
		reading := h.reading[m.id][p]
		h.mu.Unlock()
		if reading || m.has(p.e, p.slot) {
			return true
		}
	}
	return false
}

func (h *herd) mark(id covey.PeerID, p place, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reading[id] == nil {
		h.reading[id] = map[place]bool{}
	}
	h.reading[id][p] = on
}

func (h *herd) rngSeed() uint64 { return uint64(h.chance() * 1e9) }

func (h *herd) chance() float64 {
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	return h.rng.Float64()
}

// copyFrom asks holders in turn.
func (h *herd) copyFrom(ctx context.Context, n *node, peers []covey.PeerID, p place) bool {
	for _, id := range peers {
		there, back, _, _ := h.fate()
		if sleep(ctx, there+back) != nil {
			return false
		}
		if m, ok := h.alive(id); ok && !h.apart(n.id, id) && m.has(p.e, p.slot) {
			return true
		}
	}
	return false
}

// apart reports that two peers do not reach each other.
func (h *herd) apart(a, b covey.PeerID) bool {
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	return h.side[a] != h.side[b]
}

// follow waits for a peer that is said to be reading a block.
func (h *herd) follow(ctx context.Context, by *node, id covey.PeerID, p place) bool {
	for range 500 {
		if sleep(ctx, 10*time.Millisecond) != nil {
			return false
		}
		n, ok := h.alive(id)
		if !ok || h.apart(by.id, id) {
			return false
		}
		h.mu.Lock()
		busy := h.reading[id][p]
		h.mu.Unlock()
		if n.has(p.e, p.slot) {
			return true
		}
		if !busy {
			return false
		}
	}
	return false
}

func (h *herd) alive(id covey.PeerID) (*node, bool) {
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	n := h.nodes[id]
	return n, n != nil && n.up && !h.silent[id]
}

// readAll lets a peer read every block in an order of its own, several at once.
func (h *herd) readAll(ctx context.Context, n *node, places []place, seed uint64) error {
	order := slices.Clone(places)
	rand.New(rand.NewPCG(seed, 7)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	next := make(chan place, len(order))
	for _, p := range order {
		next <- p
	}
	close(next)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			for p := range next {
				if err := h.read(ctx, n, p); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var first error
	for range cap(errs) {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (h *herd) places(extents int) []place {
	var all []place
	for i := range extents {
		for slot := range h.blocks {
			all = append(all, place{testExtent(i), slot})
		}
	}
	return all
}

func (h *herd) total() (n, most int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.reads {
		n, most = n+k, max(most, k)
	}
	return n, most
}

// listed fails unless some home lists every block that a running peer has.
func (h *herd) listed(t *testing.T) {
	t.Helper()
	for _, n := range h.running() {
		for have := range n.all() {
			for slot := range have.Have.Slots() {
				if !h.listedAt(n, have.Extent, slot) {
					t.Fatalf("no home knows that %s has slot %d of an extent", n.id, slot)
				}
			}
		}
	}
}

func (h *herd) listedAt(n *node, e covey.ExtentID, slot int) bool {
	for _, id := range n.dir().Homes(e) {
		home, ok := h.alive(id)
		if ok && slices.Contains(home.dir().table.tell(e).locate(id, slot).Holders, n.id) {
			return true
		}
	}
	return false
}

// TestHerdReadsOnce is the promise with nothing broken: whatever the order and
// the delays, every block is read from the origin exactly once. fault 39
func TestHerdReadsOnce(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHerd(t, seed, 6)
				h.delay = 4 * time.Millisecond
				ids := h.startAll(10)
				places := h.places(12)
				h.everybodyReads(t, ids, places, seed)
				if n, most := h.total(); n != len(places) || most != 1 {
					t.Errorf("%d reads of %d blocks, one of them %d times", n, len(places), most)
				}
				time.Sleep(2 * time.Second)
				h.listed(t)
				h.newcomerReadsNothing(t, places)
				h.close()
			})
		})
	}
}

func (h *herd) startAll(n int) []covey.PeerID {
	var ids []covey.PeerID
	for i := range n {
		ids = append(ids, testPeer(i))
	}
	for _, id := range ids {
		h.start(id, ids...)
	}
	return ids
}

func (h *herd) everybodyReads(t *testing.T, ids []covey.PeerID, places []place, seed uint64) {
	t.Helper()
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			if err := h.readAll(t.Context(), h.nodes[id], places, seed*100+uint64(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// newcomerReadsNothing joins three peers, which become first homes of a quarter
// of the extents, and lets one of them read everything at once.
func (h *herd) newcomerReadsNothing(t *testing.T, places []place) {
	t.Helper()
	before, _ := h.total()
	var ids []covey.PeerID
	for _, n := range h.running() {
		ids = append(ids, n.id)
	}
	fresh := []covey.PeerID{"new-1", "new-2", "new-3"}
	ids = append(ids, fresh...)
	for _, id := range fresh {
		h.start(id, ids...)
	}
	h.see(ids...)
	h.everybodyReads(t, fresh[:1], places, 1000)
	if after, _ := h.total(); after != before {
		t.Errorf("a newcomer caused %d reads of what its neighbours hold", after-before)
	}
}

// TestHerdUnderFaults kills, silences and restarts peers, loses messages and
// lets the member table reach everybody late. Reads must all end, and what is
// read twice is bounded by what was under way when something broke.
func TestHerdUnderFaults(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { herdUnderFaults(t, seed) })
		})
	}
}

func herdUnderFaults(t *testing.T, seed uint64) {
	h := newHerd(t, seed, 6)
	h.delay, h.loss, h.failing = 5*time.Millisecond, 0.01, 0.02
	ids := h.startAll(10)
	places := h.places(60)
	readers, chaos := ids[:6], ids[6:]
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.everybodyReads(t, readers, places, seed)
	}()
	var victims sync.WaitGroup
	reads := func(n *node) {
		ctx := n.ctx
		victims.Go(func() {
			if err := h.readAll(ctx, n, places, h.rngSeed()); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	for _, id := range chaos {
		reads(h.nodes[id])
	}
	faults := h.chaos(chaos, ids, done, reads)
	for _, id := range chaos {
		h.silence(id, false)
		if _, up := h.alive(id); !up {
			h.start(id, ids...)
		}
	}
	h.see(ids...)
	h.cluster.mu.Lock()
	h.loss = 0
	h.cluster.mu.Unlock()
	victims.Wait()
	time.Sleep(30 * time.Second) // well before a full refresh could repair anything
	h.listed(t)
	n, most := h.total()
	t.Logf("%d faults, %d reads of %d blocks, at most %d of one, %d needless, %d without a home, %d calls", faults, n, len(places), most, h.needless, h.override, h.calls)
	// Ten peers with eight reads each keep 80 blocks under way, eight at each
	// first home. What only that home knew is lost with it: those eight, and
	// what it was told since the last batch. The rest of the reads are of blocks
	// whose holders are out of reach.
	if h.needless > 16*(faults+4) {
		t.Errorf("%d needless reads for %d faults", h.needless, faults)
	}
	if n > 2*len(places) || most > len(ids) {
		t.Errorf("%d reads of %d blocks, one of them %d times", n, len(places), most)
	}
	h.close()
}

// chaos breaks and mends peers until done, and returns how often. A peer that
// was killed leaves the others' member tables half a second later, each at its
// own time.
func (h *herd) chaos(victims, ids []covey.PeerID, done chan struct{}, started func(*node)) int {
	faults := 0
	gone := map[covey.PeerID]bool{}
	for {
		select {
		case <-done:
			return faults
		case <-time.After(time.Duration(50+h.chance()*200) * time.Millisecond):
		}
		faults++
		id := victims[int(h.chance()*float64(len(victims)))]
		n, up := h.alive(id)
		switch roll := h.chance(); {
		case gone[id]:
			gone[id] = false
			started(h.start(id, ids...))
		case !up || roll < 0.3:
			h.silence(id, up)
			continue
		case roll < 0.7:
			gone[id] = true
			n.kill()
		default:
			continue
		}
		live := slices.DeleteFunc(slices.Clone(ids), func(id covey.PeerID) bool { return gone[id] })
		for _, m := range h.running() {
			late := time.Duration(h.chance() * float64(500*time.Millisecond))
			time.AfterFunc(late, func() { m.setLive(live) })
		}
	}
}
