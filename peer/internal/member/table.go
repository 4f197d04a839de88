package member

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// remember is how long a member that expired is kept in mind, so that nobody who
// learned of it late brings it back, and so that it can be looked for when a
// partition has healed.
const remember = 10 * time.Minute

// Change says what a record did to the table.
type Change uint8

// The changes. Everything but Ignored is news that others should hear.
const (
	Ignored Change = iota
	// Joined: the member was not in the table.
	Joined
	// Renewed: a newer record of a member that was.
	Renewed
	// Left: the member says that it has gone.
	Left
	// Disputed: somebody spreads a record of this node that is newer than its
	// own, one of an earlier life. The owner must make a newer one.
	Disputed
)

// Info is a member as the table knows it.
type Info struct {
	Record
	// Down says that this node keeps it out of Live for now.
	Down bool
	// Heard is when the newest record was made, on this node's clock.
	Heard time.Time
}

// entry is one member, or one that has gone.
type entry struct {
	Record
	msg *wire.SignedRecord // without age
	key uint64
	// born is when the record was made, on the monotonic clock of this node.
	born time.Time
	down bool
}

func (e *entry) ends() time.Time { return e.born.Add(e.Expires.Sub(e.Issued)) }

// Table holds the newest record of every member. All methods may be called
// concurrently.
type Table struct {
	self   peer.ID
	signer *Signer
	max    int

	// mu is a leaf lock.
	//
	// INVARIANT: a peer is in at most one of members and gone.
	// INVARIANT: members has self once SetSelf was called, and it never expires.
	// INVARIANT: epoch grows with each change of the set that Live returns.
	mu      sync.Mutex
	members map[peer.ID]*entry
	gone    map[peer.ID]*entry
	revoked map[peer.ID]*wire.SignedRevocation // none of them is in members or gone
	live    []covey.PeerID                     // nil: to be made
	epoch   uint64
}

// NewTable returns a table of at most limit members, self among them. A nil
// signer accepts no record but self's.
func NewTable(self peer.ID, signer *Signer, limit int) *Table {
	return &Table{self: self, signer: signer, max: limit, members: make(map[peer.ID]*entry), gone: make(map[peer.ID]*entry), revoked: make(map[peer.ID]*wire.SignedRevocation), epoch: 1}
}

// SetSelf puts this node's own record in the table. msg is nil for a node that
// is alone.
func (t *Table) SetSelf(r Record, msg *wire.SignedRecord, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.members[t.self] == nil {
		t.changedLocked()
	}
	t.members[t.self] = &entry{Record: r, msg: msg, key: key(t.self), born: now}
}

// Merge takes in a record that somebody sent. It fails as [Signer.Open] does,
// and with covey.ErrFull when the table has no room for one more.
func (t *Table) Merge(m *wire.SignedRecord, now time.Time) (Record, Change, error) {
	if t.signer == nil {
		return Record{}, Ignored, fmt.Errorf("no cluster key: %w", covey.ErrDenied)
	}
	// Most records that arrive are known: gossip brings each several times. What
	// claims to be no newer is ignored without looking at its signature, which
	// costs a hundred times as much as this.
	if claimed, err := decode(m.GetRecord()); err == nil && t.knows(claimed) {
		return claimed, Ignored, nil
	}
	r, err := t.signer.Open(m, now)
	if err != nil {
		return Record{}, Ignored, err
	}
	age := time.Duration(min(m.GetAgeMs(), uint64(maxLease.Milliseconds()))) * time.Millisecond
	e := &entry{
		Record: r, key: key(r.Peer), born: now.Add(-age),
		msg: &wire.SignedRecord{Record: m.GetRecord(), Signature: m.GetSignature(), Grant: m.GetGrant()},
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	change, err := t.mergeLocked(e, now)
	return r, change, err
}

// knows reports whether a record would be ignored for its sequence number.
func (t *Table) knows(r Record) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, gone := t.members[r.Peer], t.gone[r.Peer]
	return old != nil && old.Seq >= r.Seq || gone != nil && gone.Seq >= r.Seq
}

func (t *Table) mergeLocked(e *entry, now time.Time) (Change, error) {
	old, gone := t.members[e.Peer], t.gone[e.Peer]
	switch {
	case t.revoked[e.Peer] != nil:
		return Ignored, fmt.Errorf("member record of %s: %w", e.Peer, ErrRevoked)
	case e.Peer == t.self:
		if old != nil && e.Seq > old.Seq {
			return Disputed, nil
		}
		return Ignored, nil
	case !e.ends().After(now),
		old != nil && old.Seq >= e.Seq,
		gone != nil && gone.Seq >= e.Seq:
		return Ignored, nil
	case e.Left:
		t.forgetLocked(e)
		return Left, nil
	case old != nil:
		e.down = old.down
		t.members[e.Peer] = e
		return Renewed, nil
	case len(t.members) >= t.max:
		return Ignored, fmt.Errorf("member table of %d records: %w", len(t.members), covey.ErrFull)
	}
	delete(t.gone, e.Peer)
	t.members[e.Peer] = e
	t.changedLocked()
	return Joined, nil
}

// forgetLocked moves a member to those that have gone.
func (t *Table) forgetLocked(e *entry) {
	if t.members[e.Peer] != nil {
		delete(t.members, e.Peer)
		t.changedLocked()
	}
	if len(t.gone) >= t.max {
		for id := range t.gone { // any: it is only a memory
			delete(t.gone, id)
			break
		}
	}
	t.gone[e.Peer] = e
}

func (t *Table) changedLocked() {
	t.epoch++
	t.live = nil
}

// Expire drops the members whose lease has ended and returns them.
func (t *Table) Expire(now time.Time) []peer.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ended []peer.ID
	for id, e := range t.members {
		if id != t.self && !e.ends().After(now) {
			t.forgetLocked(e)
			ended = append(ended, id)
		}
	}
	for id, e := range t.gone {
		if now.Sub(e.ends()) > remember {
			delete(t.gone, id)
		}
	}
	return ended
}

// SetDown keeps a member out of Live, or lets it in again, and reports whether
// that changed anything. Nobody else hears of it.
func (t *Table) SetDown(p peer.ID, down bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[p]
	if e == nil || e.down == down || p == t.self {
		return false
	}
	e.down = down
	t.changedLocked()
	return true
}

// Has reports whether p is a member.
func (t *Table) Has(p peer.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.members[p] != nil
}

// Get returns a member.
func (t *Table) Get(p peer.ID) (Info, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[p]
	if e == nil {
		return Info{}, false
	}
	return Info{Record: e.Record, Down: e.down, Heard: e.born}, true
}

// All returns every member, self included, in no particular order.
func (t *Table) All() []Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Info, 0, len(t.members))
	for _, e := range t.members {
		all = append(all, Info{Record: e.Record, Down: e.down, Heard: e.born})
	}
	return all
}

// Lost returns members that expired without having left.
func (t *Table) Lost() []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lost []Record
	for _, e := range t.gone {
		if !e.Left {
			lost = append(lost, e.Record)
		}
	}
	return lost
}

// Live returns the members that are not down, self included, and a number that
// grows with each change. The slice is shared and never written to again.
func (t *Table) Live() ([]covey.PeerID, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = make([]covey.PeerID, 0, len(t.members))
		for id, e := range t.members {
			if !e.down {
				t.live = append(t.live, covey.PeerID(id))
			}
		}
		slices.Sort(t.live)
	}
	return t.live, t.epoch
}
