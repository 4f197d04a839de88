package fetch

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

const (
	// DefaultAudit is one in how many blocks from neighbours is read from the origin
	// as well: at 10 GB/s from neighbours, one block in four seconds.
	DefaultAudit = 10_000
	// auditPause is the least time between two audits, whatever the rate asked for:
	// an audit must not become load.
	auditPause = time.Second
	// auditLimit bounds one.
	auditLimit = 30 * time.Second
	// quarantineTime is how long a block of which two values were seen is read from
	// the origin only; maxQuarantined bounds how many are remembered.
	quarantineTime = time.Hour
	maxQuarantined = 4096
)

// auditor re-reads some of what neighbours sent from the origin. The digest that a
// home pinned is the word of the first reader: who lied then is found here.
type auditor struct {
	every int

	mu   sync.Mutex // leaf lock; guards next and busy
	next time.Time
	busy bool

	same, differ, failed, quarantined atomic.Int64
}

// due takes on one audit, now and then; whoever is told true calls over.
func (a *auditor) due() bool {
	if a.every <= 0 || rand.IntN(a.every) != 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.busy || now.Before(a.next) {
		return false
	}
	a.busy, a.next = true, now.Add(auditPause)
	return true
}

func (a *auditor) over() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = false
}

// audit holds a block that a neighbour sent against the origin, once in a while.
// It takes none of the memory that demands need.
func (f *Fetcher) audit(fl *flight, d covey.Digest) {
	if !f.audits.due() {
		return
	}
	buf := f.staging.trySpare(int(fl.locator.Range().Len))
	if buf == nil {
		f.audits.over()
		return
	}
	if !f.table.spawn(func() {
		defer f.audits.over()
		defer buf.free()
		f.auditBlock(fl, d, buf.data)
	}) {
		buf.free()
		f.audits.over()
	}
}

func (f *Fetcher) auditBlock(fl *flight, d covey.Digest, buf []byte) {
	ctx, cancel := context.WithTimeout(f.table.root, auditLimit)
	defer cancel()
	l := fl.locator
	rc, err := f.opts.Origins.Open(ctx, l.Object, l.Range())
	if err == nil {
		_, err = io.ReadFull(rc, buf)
		if err == nil {
			// The reader may say only at its end that the object has changed.
			if _, end := io.ReadFull(rc, make([]byte, 1)); !errors.Is(end, io.EOF) {
				err = errors.Join(end, covey.ErrStale)
			}
		}
		rc.Close()
	}
	switch {
	case err != nil:
		f.audits.failed.Add(1)
		f.log.Debug("audit failed", "block", l, "error", err)
	case covey.Sum(buf) == d:
		f.audits.same.Add(1)
	default:
		f.audits.differ.Add(1)
		f.log.Error("audit: the mesh has another value of a block than its origin; it is read from there from now on",
			"block", l, "pinned", d, "origin", covey.Sum(buf))
		f.opts.OnCorrupt(Neighbour.String(), l, "")
		f.quarantine(fl)
		if err := f.store.Drop(l); err != nil {
			f.log.Warn("block not dropped", "block", l, "error", err)
		}
		f.opts.Directory.Announce(dht.Have{Extent: fl.extent.ID, Gone: covey.Bitmap(0).With(fl.slot)})
	}
}

// quarantined are blocks of which two values were seen.
type quarantined struct {
	mu    sync.Mutex // leaf lock; guards until
	until *lru[covey.Locator, time.Time]
}

// quarantine makes a block be read from its origin only, for a while: neither of
// two values is believed because a peer or a home says so.
func (f *Fetcher) quarantine(fl *flight) {
	f.audits.quarantined.Add(1)
	f.planner.forget(fl.extent, fl.slot)
	q := &f.quarantines
	q.mu.Lock()
	defer q.mu.Unlock()
	q.until.put(fl.locator, time.Now().Add(quarantineTime))
}

func (q *quarantined) has(l covey.Locator) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	until, ok := q.until.get(l)
	return ok && time.Now().Before(until)
}
