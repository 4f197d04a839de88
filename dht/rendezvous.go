package dht

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/covey-cache/covey"
)

// homesPerExtent is how many peers keep an extent's entry. With three, two of
// them can be lost between two refreshes before anything is forgotten.
const homesPerExtent = 3

// Score is the rendezvous hash of an extent and a peer: the three members with
// the highest scores are the extent's homes, the highest first, and of two
// members with the same score the one with the smaller ID (compared as bytes)
// is first. Every peer has to agree on it, so it must not change:
//
//	x = XXH64(peer ID bytes, seed 0) XOR (the extent ID's first 8 bytes, little-endian)
//	x = (x XOR x>>33) * 0xff51afd7ed558ccd mod 2^64
//	x = (x XOR x>>33) * 0xc4ceb9fe1a85ec53 mod 2^64
//	score = x XOR x>>33
//
// An extent ID is itself a BLAKE3 hash, so its first bytes are as good as all
// of it. The last three lines are MurmurHash3's finaliser; it costs a
// nanosecond, so that the homes among 10,000 members are found in some 40 us
// without a cache. testdata/rendezvous.json holds vectors.
func Score(e covey.ExtentID, p covey.PeerID) uint64 {
	return mix(extentHash(e) ^ peerHash(p))
}

func extentHash(e covey.ExtentID) uint64 { return binary.LittleEndian.Uint64(e[:8]) }

func peerHash(p covey.PeerID) uint64 { return xxhash.Sum64String(string(p)) }

func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// ring is the member table at one epoch, made ready for scoring. It is
// immutable; a new epoch makes a new one.
type ring struct {
	epoch   uint64
	self    covey.PeerID
	members []member
	live    map[covey.PeerID]time.Time // since when each is a member
	// left are members that went away, the latest last, at most maxLeft.
	left []departed
	// horizon is the oldest epoch from which on left is complete.
	horizon uint64
	// grown is when a member was last added.
	grown time.Time
}

type member struct {
	id    covey.PeerID
	hash  uint64
	since time.Time // when this peer first saw it
}

type departed struct {
	id    covey.PeerID
	hash  uint64
	epoch uint64 // the first epoch without it
}

// maxLeft is how many departures a ring remembers. It only has to cover what
// happens between two questions about one extent; beyond it a home asks its
// fellows once more, which costs one round trip.
const maxLeft = 256

// newRing makes the ring of the given members from the one before, which may
// be nil. Self is always a member.
func newRing(prev *ring, self covey.PeerID, ids []covey.PeerID, epoch uint64, now time.Time) *ring {
	r := &ring{epoch: epoch, self: self, horizon: epoch, grown: now,
		members: make([]member, 0, len(ids)+1), live: make(map[covey.PeerID]time.Time, len(ids)+1)}
	before := map[covey.PeerID]member{}
	if prev != nil {
		r.grown, r.horizon, r.left = prev.grown, prev.horizon, prev.left
		for _, m := range prev.members {
			before[m.id] = m
		}
	}
	add := func(id covey.PeerID) {
		if _, twice := r.live[id]; twice {
			return
		}
		m, known := before[id]
		if !known {
			m = member{id: id, hash: peerHash(id), since: now}
			r.grown = now
		}
		r.live[id] = m.since
		r.members = append(r.members, m)
	}
	for _, id := range ids {
		add(id)
	}
	add(self)
	r.depart(before)
	return r
}

// depart appends those of before that are no members any more to left.
func (r *ring) depart(before map[covey.PeerID]member) {
	r.left = slices.Clone(r.left)
	for id, m := range before {
		if !r.isLive(id) {
			r.left = append(r.left, departed{id: id, hash: m.hash, epoch: r.epoch})
		}
	}
	if over := len(r.left) - maxLeft; over > 0 {
		r.horizon = r.left[over-1].epoch
		r.left = slices.Clone(r.left[over:])
	}
}

func (r *ring) isLive(id covey.PeerID) bool {
	_, ok := r.live[id]
	return ok
}

// homes returns the extent's homes, best first: fewer than three only when
// there are fewer members.
func (r *ring) homes(e covey.ExtentID) []covey.PeerID { return r.top(e, homesPerExtent) }

// top returns the k members with the highest scores, best first.
func (r *ring) top(e covey.ExtentID, k int) []covey.PeerID {
	best := make([]scored, 0, k+1)
	x := extentHash(e)
	for i := range r.members {
		best = insertScored(best, scored{score: mix(x ^ r.members[i].hash), id: r.members[i].id}, k)
	}
	return scoredIDs(best)
}

// elders returns the extent's homes among the members that were here before
// the given time.
func (r *ring) elders(e covey.ExtentID, before time.Time) []covey.PeerID {
	best := make([]scored, 0, homesPerExtent+1)
	x := extentHash(e)
	for i := range r.members {
		if r.members[i].since.Before(before) {
			best = insertScored(best, scored{score: mix(x ^ r.members[i].hash), id: r.members[i].id}, homesPerExtent)
		}
	}
	return scoredIDs(best)
}

type scored struct {
	score uint64
	id    covey.PeerID
}

func (s scored) before(o scored) bool {
	return s.score > o.score || s.score == o.score && s.id < o.id
}

// insertScored keeps best sorted and at most k long.
func insertScored(best []scored, s scored, k int) []scored {
	if len(best) == k && !s.before(best[k-1]) {
		return best
	}
	i := len(best)
	for i > 0 && s.before(best[i-1]) {
		i--
	}
	best = slices.Insert(best, i, s)
	return best[:min(len(best), k)]
}

func scoredIDs(best []scored) []covey.PeerID {
	ids := make([]covey.PeerID, len(best))
	for i := range best {
		ids[i] = best[i].id
	}
	return ids
}

// stayedHome reports whether this peer has certainly been one of the extent's
// homes at every epoch since the given one. A rank can only get better when
// members are taken away, so it is enough to be among the first three of
// everybody who was a member at any time in between.
func (r *ring) stayedHome(e covey.ExtentID, since uint64) bool {
	if since < r.horizon {
		return false
	}
	x := extentHash(e)
	self := scored{score: mix(x ^ peerHash(r.self)), id: r.self}
	ahead := 0
	for i := range r.members {
		if (scored{score: mix(x ^ r.members[i].hash), id: r.members[i].id}).before(self) {
			ahead++
		}
	}
	for i := range r.left {
		if r.left[i].epoch > since && (scored{score: mix(x ^ r.left[i].hash), id: r.left[i].id}).before(self) {
			ahead++
		}
	}
	return ahead < homesPerExtent
}
