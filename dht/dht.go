// Package dht knows who has which block.
//
// Two layers answer that. The [Directory] is one hop: three homes of every
// extent, found by rendezvous hash over the member table, keep who holds what
// and decide who reads a block from the origin. The [Providers] are kad-dht
// records, one an extent, swept out in the background: coarse discovery and the
// fallback when no home answers.
//
// The package speaks to other peers only through the interfaces it declares, so
// the directory runs without a network in its tests.
package dht

import (
	"context"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/covey-cache/covey"
)

// Members is the member table as the directory sees it.
type Members interface {
	// Self is this peer.
	Self() covey.PeerID
	// Live returns the members now believed reachable, this peer included, in
	// no particular order, and a number that grows whenever the set changes.
	// The slice is shared: do not change it.
	Live() (ids []covey.PeerID, epoch uint64)
}

// Caller sends one directory message to a member and waits for its answer. The
// bytes are opaque to it. It is how the directory reaches other homes.
type Caller interface {
	Call(ctx context.Context, to covey.PeerID, request []byte) (reply []byte, err error)
}

// Want asks an extent's home where to get blocks.
type Want struct {
	Extent covey.ExtentID
	// Count is the number of blocks in the extent.
	Count int
	// Need are the slots asked for. Only these are granted.
	Need covey.Bitmap
	// Failed are peers that this asker just could not get these blocks from, or
	// that sent wrong bytes; the home leaves them out of this answer and, after
	// two reporters, out of everybody's for a minute.
	Failed []covey.PeerID
	// Prefetch says that nobody waits for the bytes yet.
	Prefetch bool
	// Spare are further slots that the asker lacks and will read from the origin
	// if it is granted them. A home that sends the asker to other readers grants
	// it as many of these in turn, so that peers that scan the same objects share
	// the reading. The asker reports every grant, also one that it cannot use.
	Spare covey.Bitmap
	// Got are slots of Need whose bytes the asker has from a peer that was still
	// reading them. Digests has one entry for each, lowest slot first. The answer
	// is Held as soon as a digest is pinned, whoever holds the block; if it is the
	// one named, the asker is a holder from then on.
	Got     covey.Bitmap
	Digests []covey.Digest
	// Home, if set, is asked first: the home of an earlier plan. Hold is then how
	// long it may keep the question while it can say nothing but Wait; it is cut
	// to 1 s. An asker that was told to wait learns in this way of the end of the
	// wait one network delay after the home does.
	Home covey.PeerID
	Hold time.Duration
	// FirstByte is the 99th percentile of what the origin takes to the first byte,
	// as the asker measured it; 0 when it does not know. Leases last four times
	// that, at least 1 s.
	FirstByte time.Duration
	// Bucket names the origin ([Bucket] of it), whose grants are slowed down
	// together when it throttles; 0 is never slowed. Throttled is how much longer
	// the asker believes it to throttle.
	Bucket    uint64
	Throttled time.Duration
}

// Bucket is the short name of an origin in messages.
func Bucket(origin string) uint64 { return xxhash.Sum64String(origin) }

// State says what a home knows of one block.
type State uint8

// The states of a block in a plan.
const (
	// Held: Peers have it, and Digest is what it must hash to.
	Held State = iota + 1
	// Fetching: Peers[0] is reading it, from the origin or from a peer that is;
	// ask it and wait. When Digest is zero it is not known yet: ask the home again
	// once the bytes are here, with Want.Got. A home sends at most four to one
	// peer, so that a block reaches a thousand in five hops.
	Fetching
	// Granted: this asker is to read it from the origin and then report to the
	// home with [Directory.Done].
	Granted
	// Wait: nothing can be said now; ask again after BlockPlan.After, or with
	// Want.Hold.
	Wait
	// Throttled: the origin refuses requests for being too many; nobody reads the
	// block. Ask again after BlockPlan.After.
	Throttled
	// Redirect: the peer asked is no home of the extent; Peers[0] is, by its
	// table. [Directory.Resolve] follows it and does not return it.
	Redirect
)

// BlockPlan is the answer for one slot.
type BlockPlan struct {
	Slot  int
	State State
	// Peers are at most 4, best first. Never this peer itself.
	Peers  []covey.PeerID
	Digest covey.Digest
	// Lease names the grant in Done; TTL is how long it holds unless renewed.
	Lease uint64
	TTL   time.Duration
	After time.Duration
	// Moving says, of Fetching and Wait, that the home hears from the reader: the
	// read makes progress and is worth waiting for.
	Moving bool
}

// Plan answers a Want: one entry for each slot needed, lowest slot first, and
// what the home knows besides of the rest of the extent (states Held only), so
// that the next reads of the extent need no further question.
type Plan struct {
	// Home is who answered; it is the peer that Done must go to.
	Home   covey.PeerID
	Blocks []BlockPlan
}

// Outcome is how a granted read from the origin ended.
type Outcome struct {
	Extent covey.ExtentID
	Slot   int
	Lease  uint64
	// Digest is set when the read succeeded; otherwise Err says why it failed
	// and the home grants the block to the next asker.
	Digest covey.Digest
	Err    error
	// Bucket is as in Want: an Err that wraps ErrThrottled slows its grants down.
	Bucket uint64
}

// Reading is a granted read that is under way.
type Reading struct {
	Extent covey.ExtentID
	Slot   int
	Lease  uint64
	// Home granted it.
	Home covey.PeerID
	// Bytes have arrived so far.
	Bytes int64
	// TTL is the lease's, from the plan.
	TTL time.Duration
	// New says that the home granted it just now and need not hear of it.
	New bool
}

// Have announces what this peer holds of an extent, or no longer holds.
type Have struct {
	Extent covey.ExtentID
	Have   covey.Bitmap
	// Digests has one entry for each bit of Have, lowest slot first.
	Digests []covey.Digest
	// Gone are slots that were held and are not any more.
	Gone covey.Bitmap
}
