package dht

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

// Bounds of what a message may name. They hold for what is sent and for what is
// believed.
const (
	// maxPeerID is the longest peer ID, in bytes: libp2p's are 34 to 42, an
	// inlined RSA key would be some 300 and is not used.
	maxPeerID = 64
	// maxFailed is how many failed peers a question names. A plan hands out
	// four a block; whoever met sixteen bad ones has the whole of four plans.
	maxFailed = 16
	// maxPlanPeers is four for each of 64 blocks.
	maxPlanPeers = maxHandedOut * covey.MaxExtentBlocks
	// maxKnownHolders is the most holders an entry has; see manyHolders.
	maxKnownHolders = manyHolders + covey.MaxExtentBlocks*enoughCopies
	// maxWait bounds every duration in a message.
	maxWait = time.Hour
)

func wantRequest(w Want, asker covey.PeerID) *wire.Request {
	m := &wire.Want{Extent: w.Extent[:], Count: uint32(w.Count), Need: uint64(w.Need), Prefetch: w.Prefetch, Asker: []byte(asker),
		Spare: uint64(w.Spare), HoldMs: millis(w.Hold), Got: uint64(w.Got), Digests: joinDigests(w.Digests),
		FirstByteMs: millis(w.FirstByte), Bucket: w.Bucket, ThrottledMs: millis(w.Throttled)}
	for _, id := range w.Failed[:min(len(w.Failed), maxFailed)] {
		m.Failed = append(m.Failed, []byte(id))
	}
	return &wire.Request{Body: &wire.Request_Want{Want: m}}
}

func wantFrom(m *wire.Want) (w Want, asker covey.PeerID, err error) {
	if w.Extent, err = extentFrom(m.GetExtent()); err != nil {
		return w, "", err
	}
	if len(m.GetFailed()) > maxFailed || m.GetCount() > covey.MaxExtentBlocks {
		return w, "", invalid("want of %d blocks with %d failed peers", m.GetCount(), len(m.GetFailed()))
	}
	w.Count, w.Need, w.Prefetch = int(m.GetCount()), covey.Bitmap(m.GetNeed()), m.GetPrefetch()
	w.Spare, w.Got, w.Bucket = covey.Bitmap(m.GetSpare()), covey.Bitmap(m.GetGot()), m.GetBucket()
	w.Hold, w.FirstByte, w.Throttled = fromMillis(m.GetHoldMs()), fromMillis(m.GetFirstByteMs()), fromMillis(m.GetThrottledMs())
	if w.Digests, err = splitDigests(m.GetDigests(), w.Got); err != nil {
		return w, "", err
	}
	for _, b := range m.GetFailed() {
		id, err := peerFrom(b)
		if err != nil {
			return w, "", err
		}
		w.Failed = append(w.Failed, id)
	}
	if len(m.GetAsker()) > 0 {
		if asker, err = peerFrom(m.GetAsker()); err != nil {
			return w, "", err
		}
	}
	return w, asker, w.validate()
}

// validate reports what makes a question meaningless, wrapping ErrInvalid.
func (w Want) validate() error {
	if w.Count < 1 || w.Count > covey.MaxExtentBlocks || (w.Need|w.Spare)&^covey.FirstBits(w.Count) != 0 {
		return invalid("want of slots %#x of %d", uint64(w.Need|w.Spare), w.Count)
	}
	if w.Got&^w.Need != 0 || w.Got.Len() != len(w.Digests) {
		return invalid("want of slots %#x with %d digests of %#x", uint64(w.Need), len(w.Digests), uint64(w.Got))
	}
	return nil
}

func planReply(p Plan) *wire.Reply {
	m := &wire.Plan{Home: []byte(p.Home)}
	at := map[covey.PeerID]uint32{}
	for i := range p.Blocks {
		b := &p.Blocks[i]
		o := &wire.Block{Slot: uint32(b.Slot), State: wire.State(b.State), Lease: b.Lease,
			TtlMs: millis(b.TTL), AfterMs: millis(b.After), Moving: b.Moving}
		if !b.Digest.IsZero() {
			o.Digest = b.Digest[:]
		}
		for _, id := range b.Peers {
			n, ok := at[id]
			if !ok {
				n = uint32(len(m.Peers))
				at[id] = n
				m.Peers = append(m.Peers, []byte(id))
			}
			o.Peers = append(o.Peers, n)
		}
		m.Blocks = append(m.Blocks, o)
	}
	return &wire.Reply{Body: &wire.Reply_Plan{Plan: m}}
}

// planFrom decodes the answer to w. It must answer every slot that was needed,
// and never sends the asker to itself.
func planFrom(m *wire.Plan, w Want, asker covey.PeerID) (Plan, error) {
	if len(m.GetPeers()) > maxPlanPeers || len(m.GetBlocks()) > covey.MaxExtentBlocks {
		return Plan{}, invalid("plan of %d blocks and %d peers", len(m.GetBlocks()), len(m.GetPeers()))
	}
	home, err := peerFrom(m.GetHome())
	if err != nil {
		return Plan{}, err
	}
	peers := make([]covey.PeerID, len(m.GetPeers()))
	for i, b := range m.GetPeers() {
		if peers[i], err = peerFrom(b); err != nil {
			return Plan{}, err
		}
	}
	p := Plan{Home: home, Blocks: make([]BlockPlan, 0, len(m.GetBlocks()))}
	var told covey.Bitmap
	for _, o := range m.GetBlocks() {
		b, err := blockFrom(o, peers, asker)
		if err != nil {
			return Plan{}, err
		}
		if !w.allows(&b) || told.Has(b.Slot) {
			return Plan{}, invalid("plan with an uncalled-for slot %d", b.Slot)
		}
		told = told.With(b.Slot)
		p.Blocks = append(p.Blocks, b)
	}
	if w.Need&^told != 0 {
		return Plan{}, invalid("plan without slots %#x", uint64(w.Need&^told))
	}
	slices.SortFunc(p.Blocks, func(a, b BlockPlan) int { return a.Slot - b.Slot })
	return p, nil
}

// allows reports whether a plan may say this of this slot: without holders only
// of what the asker has, without being asked only who holds it, or a grant of a
// spare slot.
func (w Want) allows(b *BlockPlan) bool {
	switch {
	case b.Slot >= w.Count:
		return false
	case b.State == Held:
		return len(b.Peers) > 0 || w.Got.Has(b.Slot)
	case b.State == Granted && w.Spare.Has(b.Slot):
		return true
	}
	return w.Need.Has(b.Slot)
}

func blockFrom(o *wire.Block, peers []covey.PeerID, asker covey.PeerID) (BlockPlan, error) {
	if o.GetSlot() >= covey.MaxExtentBlocks || len(o.GetPeers()) > maxHandedOut {
		return BlockPlan{}, invalid("plan of slot %d with %d peers", o.GetSlot(), len(o.GetPeers()))
	}
	b := BlockPlan{Slot: int(o.GetSlot()), State: State(o.GetState()), Lease: o.GetLease(),
		TTL: fromMillis(o.GetTtlMs()), After: fromMillis(o.GetAfterMs()), Moving: o.GetMoving()}
	for _, n := range o.GetPeers() {
		if int64(n) >= int64(len(peers)) {
			return BlockPlan{}, invalid("plan with peer %d of %d", n, len(peers))
		}
		if peers[n] != asker {
			b.Peers = append(b.Peers, peers[n])
		}
	}
	var err error
	if len(o.GetDigest()) > 0 {
		if b.Digest, err = digestFrom(o.GetDigest()); err != nil {
			return BlockPlan{}, err
		}
	}
	ok := false
	switch b.State {
	case Held:
		ok = !b.Digest.IsZero()
	case Fetching, Redirect:
		ok = len(b.Peers) == 1
	case Granted, Wait, Throttled:
		ok = true
	}
	if !ok {
		return BlockPlan{}, invalid("plan with a block in state %d and %d peers", b.State, len(b.Peers))
	}
	return b, nil
}

func doneRequest(o Outcome) *wire.Request {
	m := &wire.Done{Extent: o.Extent[:], Slot: uint32(o.Slot), Lease: o.Lease, Bucket: o.Bucket}
	if o.Err == nil && !o.Digest.IsZero() {
		m.Digest = o.Digest[:]
	} else {
		m.Failure = failureOf(o.Err)
	}
	return &wire.Request{Body: &wire.Request_Done{Done: m}}
}

func doneFrom(m *wire.Done) (o Outcome, err error) {
	if o.Extent, err = extentFrom(m.GetExtent()); err != nil {
		return o, err
	}
	if m.GetSlot() >= covey.MaxExtentBlocks {
		return o, invalid("done of slot %d", m.GetSlot())
	}
	o.Slot, o.Lease, o.Bucket = int(m.GetSlot()), m.GetLease(), m.GetBucket()
	if len(m.GetDigest()) > 0 {
		o.Digest, err = digestFrom(m.GetDigest())
		return o, err
	}
	o.Err = covey.ErrUnavailable
	for _, k := range failures {
		if k.name == m.GetFailure() {
			o.Err = k.err
		}
	}
	return o, nil
}

// failures are the names that errors have in messages; every other is IO.
var failures = [...]struct {
	err  error
	name wire.Failure
}{
	{covey.ErrNotFound, wire.Failure_NOT_FOUND},
	{covey.ErrStale, wire.Failure_CHANGED},
	{covey.ErrThrottled, wire.Failure_FAILURE_THROTTLED},
	{covey.ErrDenied, wire.Failure_DENIED},
}

// failureOf names an error for the home. After every failure the next asker gets
// the grant; one for throttling slows the grants of the bucket down besides.
func failureOf(err error) wire.Failure {
	for _, k := range failures {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return wire.Failure_IO
}

func haveMessage(h Have, whole bool) *wire.ExtentHave {
	return &wire.ExtentHave{Extent: h.Extent[:], Have: uint64(h.Have), Digests: joinDigests(h.Digests), Gone: uint64(h.Gone), Whole: whole}
}

// briefMessage is a full report without its digests.
func briefMessage(h Have) *wire.ExtentHave {
	return &wire.ExtentHave{Extent: h.Extent[:], Have: uint64(h.Have), Sum: sumDigests(h.Digests), Whole: true}
}

// sumDigests stands for digests that the other side most likely has. It protects
// against nothing: whoever lies with it could as well lie with the bitmap.
func sumDigests(ds []covey.Digest) uint64 {
	var x xxhash.Digest
	x.Reset()
	for i := range ds {
		_, _ = x.Write(ds[i][:]) // it never fails
	}
	return max(1, x.Sum64())
}

func haveFrom(m *wire.ExtentHave) (h Have, whole bool, err error) {
	if h.Extent, err = extentFrom(m.GetExtent()); err != nil {
		return h, false, err
	}
	h.Have, h.Gone = covey.Bitmap(m.GetHave()), covey.Bitmap(m.GetGone())
	if m.GetSum() != 0 {
		if len(m.GetDigests()) != 0 || h.Gone != 0 || !m.GetWhole() {
			return h, false, invalid("a brief report with more than it says")
		}
		return h, true, nil
	}
	h.Digests, err = splitDigests(m.GetDigests(), h.Have)
	return h, m.GetWhole(), err
}

func knownReply(k known) *wire.Reply {
	m := &wire.Known{Pinned: uint64(k.pinned), Digests: joinDigests(k.digests), Own: k.own}
	for _, h := range k.holders {
		m.Holders = append(m.Holders, &wire.Holder{Peer: []byte(h.peer), Have: uint64(h.have)})
	}
	for _, l := range k.leases {
		m.Leases = append(m.Leases, &wire.Lease{Slot: uint32(l.slot), Peer: []byte(l.peer), Lease: l.id, TtlMs: millis(l.ttl)})
	}
	return &wire.Reply{Body: &wire.Reply_Known{Known: m}}
}

func knownFrom(m *wire.Known) (k known, err error) {
	if len(m.GetHolders()) > maxKnownHolders || len(m.GetLeases()) > covey.MaxExtentBlocks {
		return k, invalid("answer with %d holders and %d leases", len(m.GetHolders()), len(m.GetLeases()))
	}
	k.pinned, k.own = covey.Bitmap(m.GetPinned()), m.GetOwn()
	if k.digests, err = splitDigests(m.GetDigests(), k.pinned); err != nil {
		return known{}, err
	}
	for _, h := range m.GetHolders() {
		id, err := peerFrom(h.GetPeer())
		if err != nil {
			return known{}, err
		}
		k.holders = append(k.holders, knownHolder{peer: id, have: covey.Bitmap(h.GetHave())})
	}
	for _, l := range m.GetLeases() {
		id, err := peerFrom(l.GetPeer())
		if err != nil {
			return known{}, err
		}
		if l.GetSlot() >= covey.MaxExtentBlocks {
			return known{}, invalid("lease of slot %d", l.GetSlot())
		}
		k.leases = append(k.leases, knownLease{slot: int(l.GetSlot()), peer: id, id: l.GetLease(), ttl: fromMillis(l.GetTtlMs())})
	}
	return k, nil
}

func joinDigests(ds []covey.Digest) []byte {
	b := make([]byte, 0, len(ds)*len(covey.Digest{}))
	for i := range ds {
		b = append(b, ds[i][:]...)
	}
	return b
}

// splitDigests is the inverse of joinDigests; there must be one for each bit,
// and none is zero.
func splitDigests(b []byte, of covey.Bitmap) ([]covey.Digest, error) {
	const size = len(covey.Digest{})
	if len(b) != of.Len()*size {
		return nil, invalid("%d bytes of digests for %d blocks", len(b), of.Len())
	}
	ds := make([]covey.Digest, of.Len())
	for i := range ds {
		ds[i] = covey.Digest(b[i*size:])
		if ds[i].IsZero() {
			return nil, invalid("a zero digest")
		}
	}
	return ds, nil
}

func extentFrom(b []byte) (covey.ExtentID, error) {
	if len(b) != len(covey.ExtentID{}) {
		return covey.ExtentID{}, invalid("extent of %d bytes", len(b))
	}
	return covey.ExtentID(b), nil
}

func digestFrom(b []byte) (covey.Digest, error) {
	if len(b) != len(covey.Digest{}) || covey.Digest(b).IsZero() {
		return covey.Digest{}, invalid("digest of %d bytes", len(b))
	}
	return covey.Digest(b), nil
}

func peerFrom(b []byte) (covey.PeerID, error) {
	if len(b) == 0 || len(b) > maxPeerID {
		return "", invalid("peer ID of %d bytes", len(b))
	}
	return covey.PeerID(b), nil
}

func millis(d time.Duration) uint32 {
	return uint32(min(max(0, d.Milliseconds()), math.MaxUint32))
}

func fromMillis(ms uint32) time.Duration { return min(time.Duration(ms)*time.Millisecond, maxWait) }

func invalid(format string, args ...any) error {
	return fmt.Errorf("directory message: "+format+": %w", append(args, covey.ErrInvalid)...)
}
