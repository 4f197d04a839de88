package dht

import (
	"errors"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

const (
	// tableShards keeps homes that answer many questions at once from queueing
	// at one lock.
	tableShards = 64

	// defaultMaxEntries bounds the table to some 1.2 GiB when every extent is
	// full (64 digests); a node of a data set of small files has about half
	// that per entry. 524,288 extents of 64 blocks of 4 MiB are 128 TiB at one
	// home, three N-ths of what N peers cache together.
	defaultMaxEntries = 1 << 19

	// evictSample is how many entries are looked at to find the one that gives
	// way. Eight pick one out of the oldest eighth or so on average, without a
	// list through all entries.
	evictSample = 8

	// maxHandedOut is how many holders a plan names for a block.
	maxHandedOut = 4
)

// table is the state of a home: an entry for each extent it was told about.
// It is pure bookkeeping: it calls nobody and starts nothing.
//
// Each shard's mu guards the entries in it and is taken before the locks of
// peers and held across no call outside this package's bookkeeping.
type table struct {
	start    time.Time
	leaseTTL time.Duration
	perShard int
	peers    peerTable
	m        *metrics
	conflict func(from covey.PeerID, e covey.ExtentID, slot int)
	pacer    pacer
	shards   [tableShards]shard
}

type shard struct {
	mu      sync.Mutex
	entries map[covey.ExtentID]*entry
}

func newTable(maxEntries int, leaseTTL time.Duration, m *metrics, conflict func(covey.PeerID, covey.ExtentID, int)) *table {
	t := &table{start: time.Now(), leaseTTL: leaseTTL, perShard: max(1, maxEntries/tableShards), m: m, conflict: conflict}
	for i := range t.shards {
		t.shards[i].entries = map[covey.ExtentID]*entry{}
	}
	return t
}

func (t *table) stamp(now time.Time) stamp { return stamp(now.Sub(t.start) / (time.Second / 10)) }

func (t *table) shard(e covey.ExtentID) *shard { return &t.shards[int(e[31])%tableShards] }

// entry returns the entry of e and makes it when it is missing, at the cost of
// another when there are too many. The shard's lock is held. A new member
// table may have taken extents from this home: their entries go first.
func (t *table) entry(sh *shard, e covey.ExtentID, r *ring, now stamp) *entry {
	en := sh.entries[e]
	if en == nil {
		if len(sh.entries) >= t.perShard {
			t.evict(sh, r)
		}
		en = &entry{}
		sh.entries[e] = en
		t.m.entries.Inc()
	}
	en.touched = now
	return en
}

// expire forgets what is over of an entry.
func (t *table) expire(en *entry, at stamp, now time.Time) {
	if n := en.expire(at, now); n > 0 {
		t.m.lost.WithLabelValues("expired").Add(float64(n))
	}
}

// evict removes one entry: of a sample (the order of a map is random), the one
// of which this peer is no home, and among those the least recently touched.
// Entries with a read under way stay.
func (t *table) evict(sh *shard, r *ring) {
	var victim covey.ExtentID
	var worst *entry
	worstHome := true
	seen := 0
	for e, en := range sh.entries {
		if seen++; seen > evictSample {
			break
		}
		if en.syncing != nil || len(en.leases) > 0 {
			continue
		}
		home := r.stayedHome(e, r.epoch)
		if worst == nil || worstHome && !home || worstHome == home && en.touched < worst.touched {
			victim, worst, worstHome = e, en, home
		}
	}
	if worst != nil {
		worst.wake()
		delete(sh.entries, victim)
		t.m.entries.Dec()
	}
}

// done takes the end of a granted read. The digest makes the peer a holder at
// once, whether or not its lease is still known.
func (t *table) done(from covey.PeerID, o Outcome, r *ring) {
	now := time.Now()
	at := t.stamp(now)
	p := t.peers.number(from, r)
	sh := t.shard(o.Extent)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if o.Digest.IsZero() {
		if errors.Is(o.Err, covey.ErrThrottled) {
			t.pacer.throttled(o.Bucket, false, now)
		}
		if en := sh.entries[o.Extent]; en != nil {
			if l := en.leaseOf(o.Slot); l != nil && l.id == o.Lease {
				en.endLease(o.Slot, p)
			}
		}
		return
	}
	en := t.entry(sh, o.Extent, r, at)
	en.endLease(o.Slot, p)
	if en.pin(o.Slot, o.Digest) {
		en.hold(p, covey.Bitmap(0).With(o.Slot), at)
		return
	}
	t.conflict(from, o.Extent, o.Slot)
	if en.copies(o.Slot) == 0 {
		// Nobody backs the pinned value any more and this one was just read at
		// the origin: keeping the old would send every later asker there too.
		en.repin(o.Slot, o.Digest)
		en.hold(p, covey.Bitmap(0).With(o.Slot), at)
	}
}

// have takes an announcement. whole says that it names all that the peer has
// of the extent.
func (t *table) have(from covey.PeerID, h Have, whole bool, r *ring) {
	at := t.stamp(time.Now())
	sh := t.shard(h.Extent)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if h.Have == 0 && sh.entries[h.Extent] == nil {
		return
	}
	en := t.entry(sh, h.Extent, r, at)
	p := t.peers.number(from, r)
	if whole {
		en.confirm(p, h.Have)
	}
	en.unhold(p, h.Gone&^h.Have)
	var listed covey.Bitmap
	i := 0
	for slot := range h.Have.Slots() {
		if en.pin(slot, h.Digests[i]) {
			listed = listed.With(slot)
		} else {
			t.conflict(from, h.Extent, slot)
		}
		en.endLease(slot, p)
		i++
	}
	en.unhold(p, h.Have&^listed)
	en.hold(p, listed, at)
}

// refresh takes a full report without digests. It reports whether this home has
// the digests that the sum stands for; otherwise nothing has changed.
func (t *table) refresh(from covey.PeerID, h Have, sum uint64, r *ring) bool {
	at := t.stamp(time.Now())
	sh := t.shard(h.Extent)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := sh.entries[h.Extent]
	if en == nil || h.Have&^en.pinned != 0 {
		return false
	}
	ds := make([]covey.Digest, 0, covey.MaxExtentBlocks)
	for slot := range h.Have.Slots() {
		ds = append(ds, en.digest(slot))
	}
	if sumDigests(ds) != sum {
		return false
	}
	p := t.peers.number(from, r)
	en.confirm(p, h.Have)
	en.hold(p, h.Have, at)
	return true
}

// known is all that a home can tell about an extent.
type known struct {
	pinned  covey.Bitmap
	digests []covey.Digest
	holders []knownHolder
	leases  []knownLease
	// own says that who tells has looked into its own store.
	own bool
}

type knownHolder struct {
	peer covey.PeerID
	have covey.Bitmap
}

type knownLease struct {
	slot int
	peer covey.PeerID
	id   uint64
	ttl  time.Duration
}

// tell returns what is known of an extent and changes nothing.
func (t *table) tell(e covey.ExtentID) known {
	now := time.Now()
	at := t.stamp(now)
	sh := t.shard(e)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := sh.entries[e]
	if en == nil {
		return known{}
	}
	t.expire(en, at, now)
	peers := t.peers.all()
	k := known{pinned: en.pinned, digests: append([]covey.Digest(nil), en.digests...)}
	for _, h := range en.holders {
		k.holders = append(k.holders, knownHolder{peer: peers[h.peer].id, have: h.have})
	}
	for _, l := range en.leases {
		k.leases = append(k.leases, knownLease{slot: int(l.slot), peer: peers[l.peer].id, id: l.id, ttl: l.expires.Sub(now)})
	}
	return k
}

// merge adds what a fellow home told. Of peers, only live members count. The
// shard's lock is held.
func (t *table) merge(en *entry, k known, r *ring, now time.Time) {
	var agreed covey.Bitmap
	i := 0
	for slot := range k.pinned.Slots() {
		if en.pin(slot, k.digests[i]) {
			agreed = agreed.With(slot)
		}
		i++
	}
	at := t.stamp(now)
	for _, h := range k.holders {
		if r.isLive(h.peer) {
			en.hold(t.peers.number(h.peer, r), h.have&agreed, at)
		}
	}
	for _, l := range k.leases {
		if !r.isLive(l.peer) || en.leaseOf(l.slot) != nil {
			continue
		}
		ttl := min(l.ttl, t.leaseTTL)
		en.leases = append(en.leases, lease{slot: uint8(l.slot), peer: t.peers.number(l.peer, r), id: l.id,
			ttl: max(ttl, minLeaseTTL), expires: now.Add(ttl), heard: now, marked: now})
	}
}

// sweep forgets what has expired, so that extents nobody asks for give their
// memory back.
func (t *table) sweep() {
	now := time.Now()
	at := t.stamp(now)
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for e, en := range sh.entries {
			t.expire(en, at, now)
			if en.idle() && at.since(en.touched) > holdLife {
				en.wake()
				delete(sh.entries, e)
				t.m.entries.Dec()
			}
		}
		sh.mu.Unlock()
	}
}

func contains(ids []covey.PeerID, id covey.PeerID) bool {
	for i := range ids {
		if ids[i] == id {
			return true
		}
	}
	return false
}
