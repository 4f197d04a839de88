package dht

import (
	"math/bits"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

// Bounds of an entry.
const (
	// manyHolders is how many holders are recorded without a question. Beyond
	// it a peer is recorded only if it has a block of which fewer than
	// enoughCopies are recorded: further copies would not be handed out often
	// enough to matter, and a thousand nodes that all hold a data set would
	// otherwise cost a thousand records an extent. It follows that an entry has
	// at most manyHolders + 64*enoughCopies = 576 holders.
	manyHolders  = 64
	enoughCopies = 8

	// maxSuspicions bounds the reports kept of peers that did not deliver; the
	// oldest gives way. Two reporters are enough to act, so eight cover four
	// bad holders at once.
	maxSuspicions = 8

	// suspicionLife is how long one report waits for a second. A fault that
	// nobody else meets within a minute was the reporter's own.
	suspicionLife = time.Minute

	// demotedFor is how long a peer that two others could not get blocks from is
	// not handed out for them. It stays known: most faults pass, a holder does not
	// learn that it was reported, and if every home forgot it the block would be
	// read from the origin again until the next refresh. A peer that never
	// delivers costs two askers one attempt a minute.
	demotedFor = time.Minute

	// holdLife is how long a holder counts without saying so again: three
	// refreshes, of which two may be lost.
	holdLife = 3 * refreshEvery

	// freshHold is how long a hold cannot be taken for lost because its holder
	// asks for the block: a question that was overtaken by its own answer
	// (hedged, or on a slow link) may arrive that much later.
	freshHold = 2 * time.Second
)

// entry is what a home knows of one extent.
//
// With 64 blocks and 3 holders it takes 2.4 KiB with its place in the table,
// 2 KiB of them digests. The table's shard lock guards all of it.
//
// INVARIANT: len(digests) == pinned.Len().
// INVARIANT: a holder's bits are all pinned, and no holder has none.
// INVARIANT: at most one lease for each slot.
type entry struct {
	pinned  covey.Bitmap
	digests []covey.Digest // one for each bit of pinned, lowest first
	holders []holder
	leases  []lease
	crowds  []*crowd
	turns   turns
	askers  askers
	suspect []suspicion
	// changed is what questions wait for that cannot be answered; see wake.
	changed chan struct{}
	// synced is one more than the epoch at which this home last knew all that
	// its fellows knew; 0 is never.
	synced uint64
	// syncing is closed when the question to the fellow homes that is under way
	// has been answered; nil when there is none.
	syncing chan struct{}
	touched stamp
}

// stamp is a time in tenths of a second since the directory was made: 13 years
// in four bytes.
type stamp uint32

// holder is a peer that has some of the blocks.
type holder struct {
	peer peerNum
	seen stamp // when it last said so
	have covey.Bitmap
	// missing are slots that its last full report did not name. A second such
	// report removes them; one alone may have crossed with a newer block.
	missing covey.Bitmap
	// demoted are slots that are not handed out before demotedFor has passed
	// since demotedAt.
	demoted   covey.Bitmap
	demotedAt stamp
}

// offers returns the slots that the holder can be asked for.
func (h *holder) offers(now stamp) covey.Bitmap {
	if h.demoted != 0 && now.since(h.demotedAt) < demotedFor {
		return h.have &^ h.demoted
	}
	return h.have
}

// suspicion is one report that a peer did not deliver some blocks.
type suspicion struct {
	peer, reporter peerNum
	at             stamp
	slots          covey.Bitmap
}

// digest returns the pinned digest of a slot; it is zero when there is none.
func (en *entry) digest(slot int) covey.Digest {
	if !en.pinned.Has(slot) {
		return covey.Digest{}
	}
	return en.digests[rankOf(en.pinned, slot)]
}

// rankOf returns how many bits of b are below slot.
func rankOf(b covey.Bitmap, slot int) int {
	return bits.OnesCount64(uint64(b) & (1<<uint(slot) - 1))
}

// pin makes d the digest of a slot unless another is there already, and reports
// whether d is now the slot's digest.
func (en *entry) pin(slot int, d covey.Digest) bool {
	i := rankOf(en.pinned, slot)
	if en.pinned.Has(slot) {
		return en.digests[i] == d
	}
	en.digests = slices.Insert(en.digests, i, d)
	en.pinned = en.pinned.With(slot)
	return true
}

// repin replaces the digest of a slot that has one.
func (en *entry) repin(slot int, d covey.Digest) { en.digests[rankOf(en.pinned, slot)] = d }

// holderOf returns the peer's record, or nil.
func (en *entry) holderOf(p peerNum) *holder {
	for i := range en.holders {
		if en.holders[i].peer == p {
			return &en.holders[i]
		}
	}
	return nil
}

// copies returns how many holders of a slot are recorded.
func (en *entry) copies(slot int) int {
	n := 0
	for i := range en.holders {
		if en.holders[i].have.Has(slot) {
			n++
		}
	}
	return n
}

// hold records that the peer has the slots, whose digests are pinned.
func (en *entry) hold(p peerNum, slots covey.Bitmap, now stamp) {
	if slots == 0 {
		return
	}
	en.wake()
	if h := en.holderOf(p); h != nil {
		h.have |= slots
		h.missing &^= slots
		h.demoted &^= slots
		h.seen = now
		return
	}
	if len(en.holders) >= manyHolders && !en.wanted(slots) {
		return
	}
	en.holders = append(en.holders, holder{peer: p, seen: now, have: slots})
}

func (en *entry) wanted(slots covey.Bitmap) bool {
	for slot := range slots.Slots() {
		if en.copies(slot) < enoughCopies {
			return true
		}
	}
	return false
}

// unhold takes slots from the peer.
func (en *entry) unhold(p peerNum, slots covey.Bitmap) {
	for i := range en.holders {
		if en.holders[i].peer != p {
			continue
		}
		en.holders[i].have &^= slots
		en.holders[i].missing &^= slots
		en.holders[i].demoted &^= slots
		if en.holders[i].have == 0 {
			en.holders = slices.Delete(en.holders, i, i+1)
		}
		return
	}
}

// confirm takes a full report: what it does not name is gone once a second
// report does not name it either.
func (en *entry) confirm(p peerNum, have covey.Bitmap) {
	h := en.holderOf(p)
	if h == nil {
		return
	}
	absent := h.have &^ have
	gone := absent & h.missing
	h.missing = absent &^ gone
	if gone != 0 {
		en.unhold(p, gone)
	}
}

// doubt records that reporter could not get slots from p. From the second
// reporter on, p is not handed out for them for a while, or until it announces
// them again. It reports whether p is handed out still, so that the home may look
// for itself.
func (en *entry) doubt(p, reporter peerNum, slots covey.Bitmap, now stamp) bool {
	h := en.holderOf(p)
	if h == nil {
		return false
	}
	if slots &= h.have; slots == 0 {
		return false
	}
	var confirmed covey.Bitmap
	for _, s := range en.suspect {
		if s.peer == p && s.reporter != reporter && now.since(s.at) < suspicionLife {
			confirmed |= s.slots & slots
		}
	}
	en.suspect = slices.DeleteFunc(en.suspect, func(s suspicion) bool {
		return s.peer == p && s.reporter == reporter || now.since(s.at) >= suspicionLife
	})
	if len(en.suspect) >= maxSuspicions {
		en.suspect = slices.Delete(en.suspect, 0, 1)
	}
	en.suspect = append(en.suspect, suspicion{peer: p, reporter: reporter, at: now, slots: slots})
	if confirmed != 0 {
		if now.since(h.demotedAt) >= demotedFor {
			h.demoted = 0
		}
		h.demoted |= confirmed
		h.demotedAt = now
	}
	return slots&^h.demoted != 0
}

// expire forgets leases and holders whose time is over, and returns how many
// leases.
func (en *entry) expire(now stamp, clock time.Time) (expired int) {
	before := len(en.leases)
	en.leases = slices.DeleteFunc(en.leases, func(l lease) bool { return !clock.Before(l.expires) })
	if len(en.leases) != before {
		en.wake()
		expired = before - len(en.leases)
	}
	en.turns.expire(now)
	en.crowds = slices.DeleteFunc(en.crowds, func(c *crowd) bool {
		return now.since(c.touched) > crowdLife && en.leaseOf(int(c.slot)) == nil
	})
	en.holders = slices.DeleteFunc(en.holders, func(h holder) bool { return now.since(h.seen) > holdLife })
	return expired
}

// idle reports that nothing is known that a refresh would not bring back.
func (en *entry) idle() bool {
	return en.syncing == nil && len(en.leases) == 0 && len(en.holders) == 0
}

func (s stamp) since(earlier stamp) time.Duration {
	return time.Duration(int64(s)-int64(earlier)) * (time.Second / 10)
}
