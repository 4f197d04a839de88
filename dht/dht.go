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
}

// State says what a home knows of one block.
type State uint8

// The states of a block in a plan.
const (
	// Held: Peers have it, and Digest is what it must hash to.
	Held State = iota + 1
	// Fetching: Peers[0] is reading it from the origin; ask it and wait. The
	// digest is not known yet: ask the home again once the bytes are here.
	Fetching
	// Granted: this asker is to read it from the origin and then report to the
	// home with [Directory.Done].
	Granted
	// Wait: nothing can be said now; ask again after BlockPlan.After.
	Wait
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
