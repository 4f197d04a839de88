package dht

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

// The life of one block at its first home. PROTOCOL.md's lease section has the
// same table; a change belongs in both. The scripts lease, waiting and sharing walk
// it.
//
//	state        event                                        next, and what is answered
//	NONE         WANT                                         LEASED: GRANT{lease, ttl} to the asker
//	NONE         WANT while the bucket is slowed down         NONE: THROTTLED{after}
//	LEASED       WANT of another                              LEASED: FETCHING{parent}; four to a parent
//	LEASED       WANT of another that names the reader as     LEASED: FETCHING{another parent}, or WAIT; the home
//	             failed, or a reader that this home cannot    pings the reader
//	             reach, heard of within 2 s
//	LEASED       the same, the reader not heard of for 2 s    LEASED by the asker: GRANT
//	LEASED       WANT of the reader itself                    LEASED: GRANT with a new lease (it lost the first)
//	LEASED       PROGRESS of the reader                       LEASED, renewed by ttl: unless it has had bytes and
//	                                                          64 KiB took longer than 1 s, or none came within ttl
//	LEASED       ttl without renewal; a failed ping and       NONE: who waits is answered anew, so the next
//	             nothing heard for 1 s                        waiter gets GRANT
//	LEASED       FAIL{notfound, changed, io, denied}          NONE, likewise
//	LEASED       FAIL{throttled}                              NONE, likewise, and the bucket is slowed down
//	LEASED, NONE DONE{digest}, HAVE                           HELD: HELD{peers, digest} to all; the first digest
//	                                                          is pinned
//	NONE         PROGRESS of a reader                         LEASED by it: a second home's copy, or a home that
//	                                                          lost its memory
//	HELD         WANT                                         HELD: HELD{up to 4 peers, digest}, or, while few hold
//	                                                          it and many ask, FETCHING{parent, digest}
//	HELD         the last holder is gone                      NONE
//	any          WANT at a peer that is no home               REDIRECT{home}
//
// A question that can only be answered WAIT is held until the block's state
// changes, at most a second: the answer is the UPDATE.

const (
	// minLeaseTTL and the factor are the contract's: a lease outlives four times
	// what the origin takes to its first byte at worst.
	minLeaseTTL    = time.Second
	leaseTTLFactor = 4
	// unknownFirstByte stands for what an asker has not measured yet: its first
	// requests pay for name resolution, TLS and cold credentials, perhaps on a busy
	// node. A reader that dies is found out sooner, by who follows it and the
	// home's own look; with 750 ms here, leases ended under the readers on four
	// overloaded cold agents, and their blocks were read twice.
	unknownFirstByte = 2500 * time.Millisecond

	// leaseStep in leaseStepTime is the slowest read that keeps its lease. A
	// block of 4 MiB at that rate takes a minute, twice what a read through the
	// mount waits; whoever waits is better served by another try.
	leaseStep     = 64 << 10
	leaseStepTime = time.Second

	// movingFor is how long a reader counts as making progress after the home
	// heard from it: four of its reports, of which three may be late on a busy
	// node. A reader that is named as failed keeps its lease that long.
	movingFor = 4 * ProgressEvery

	// unheardFor is how long a reader that does not answer its home must have been
	// silent besides, for its lease to end: two of its reports. A busy node answers
	// late, or its stream stalls, while the read goes on; ending it costs a second
	// read just when nobody has time for it, keeping it a second of a dead reader's
	// block.
	unheardFor = 2 * ProgressEvery

	// waitAgain is when an asker that is told to wait and cannot be held asks
	// again.
	waitAgain = 250 * time.Millisecond
)

// ProgressEvery is how often a reader reports: see [Directory.Progress].
const ProgressEvery = 500 * time.Millisecond

// lease is a read from the origin that is under way.
type lease struct {
	slot    uint8
	peer    peerNum
	id      uint64
	ttl     time.Duration
	expires time.Time
	heard   time.Time // when the reader was last heard of
	// bytes is what it had at marked, the last time that it had leaseStep more.
	bytes  int64
	marked time.Time
}

// leaseTTL is how long a lease lasts for an asker whose origin takes that long
// to the first byte.
func (t *table) ttlFor(firstByte time.Duration) time.Duration {
	if firstByte <= 0 {
		firstByte = unknownFirstByte
	}
	return min(max(leaseTTLFactor*firstByte, minLeaseTTL), t.leaseTTL)
}

// moving reports that the home hears from the reader.
func (l *lease) moving(now time.Time) bool { return now.Sub(l.heard) < movingFor }

// renew takes a report of the reader. It does not renew a read that has stopped.
func (l *lease) renew(bytes int64, now time.Time) {
	if bytes < l.bytes { // begun anew, after a try that failed
		l.bytes, l.marked = bytes, now
	}
	if bytes-l.bytes >= leaseStep || l.bytes == 0 && bytes > 0 {
		l.bytes, l.marked = bytes, now
	}
	limit := leaseStepTime
	if l.bytes == 0 {
		limit = l.ttl // nothing yet: the origin has its time to the first byte
	}
	// A report may be as late as the one before was early.
	if now.Sub(l.marked) > limit+ProgressEvery {
		return
	}
	l.heard, l.expires = now, now.Add(l.ttl)
}

// leaseOf returns the lease of a slot, or nil.
func (en *entry) leaseOf(slot int) *lease {
	for i := range en.leases {
		if int(en.leases[i].slot) == slot {
			return &en.leases[i]
		}
	}
	return nil
}

// endLease ends the lease of a slot if the peer has it, whatever its ID.
func (en *entry) endLease(slot int, by peerNum) {
	before := len(en.leases)
	en.leases = slices.DeleteFunc(en.leases, func(l lease) bool {
		return int(l.slot) == slot && l.peer == by
	})
	if len(en.leases) != before {
		en.wake()
	}
}

// grant gives the slot's lease to the asker, whoever had it before.
func (t *table) grant(en *entry, slot int, asker peerNum, firstByte time.Duration, now time.Time) BlockPlan {
	l := en.leaseOf(slot)
	if l == nil {
		en.leases = append(en.leases, lease{slot: uint8(slot)})
		l = &en.leases[len(en.leases)-1]
	}
	ttl := t.ttlFor(firstByte)
	*l = lease{slot: uint8(slot), peer: asker, id: rand.Uint64(), ttl: ttl, expires: now.Add(ttl), heard: now, marked: now}
	en.disperse(slot)
	en.turns.count(asker, t.stamp(now))
	t.senders(now).send(asker) // what it reads it sends at least once
	return BlockPlan{Slot: slot, State: Granted, Lease: l.id, TTL: ttl}
}

// progress takes a reader's report. A home that knows of no reader and no holder
// believes it: it is a second home, or has lost its memory.
func (t *table) progress(from covey.PeerID, x Reading, r *ring) {
	now := time.Now()
	at := t.stamp(now)
	p := t.peers.number(from, r)
	sh := t.shard(x.Extent)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := t.entry(sh, x.Extent, r, at)
	t.expire(en, at, now)
	l := en.leaseOf(x.Slot)
	if l == nil {
		if en.copies(x.Slot) > 0 {
			return
		}
		ttl := min(max(x.TTL, minLeaseTTL), t.leaseTTL)
		en.leases = append(en.leases, lease{slot: uint8(x.Slot), peer: p, id: x.Lease, ttl: ttl,
			expires: now.Add(ttl), heard: now, bytes: x.Bytes, marked: now})
		return
	}
	if l.peer == p {
		l.renew(x.Bytes, now)
	}
}

// lost ends the leases of a peer that does not answer and was not heard of for
// unheardFor either, and hands it out no more for its blocks until it announces
// them again. It returns how long its latest lease is safe yet.
func (t *table) lost(peer covey.PeerID, e covey.ExtentID) (safe time.Duration) {
	p, ok := t.peers.lookup(peer)
	if !ok {
		return 0
	}
	now := time.Now()
	sh := t.shard(e)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	en := sh.entries[e]
	if en == nil {
		return 0
	}
	before := len(en.leases)
	en.leases = slices.DeleteFunc(en.leases, func(l lease) bool {
		left := unheardFor - now.Sub(l.heard)
		if l.peer == p {
			safe = max(safe, left)
		}
		return l.peer == p && left <= 0
	})
	t.m.lost.WithLabelValues("unanswered").Add(float64(before - len(en.leases)))
	if h := en.holderOf(p); h != nil {
		h.demoted, h.demotedAt = h.have, t.stamp(now)
	}
	en.wake()
	return safe
}

// wake lets the questions that wait for this entry be answered anew.
func (en *entry) wake() {
	if en.changed != nil {
		close(en.changed)
		en.changed = nil
	}
}

// change returns what wake closes next.
func (en *entry) change() <-chan struct{} {
	if en.changed == nil {
		en.changed = make(chan struct{})
	}
	return en.changed
}
