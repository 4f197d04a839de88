package fetch

import (
	"errors"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dht"
)

// fly is a flight's goroutine. The order matters to others: the callers here
// have the bytes first; the home knows the digest before another peer is
// served, so that the peer can confirm it; the flight leaves the table only
// when the store has the block, so that nobody finds neither.
func (f *Fetcher) fly(fl *flight) {
	defer f.table.end(fl)
	if h, err := f.getLocal(fl.locator); err == nil {
		f.landLocal(fl, h)
		return
	}
	buf, err := fl.buf, error(nil)
	if buf == nil {
		buf, err = f.staging.take(fl.ctx, int(fl.locator.Range().Len))
	}
	if err != nil {
		s := search{f: f, fl: fl, last: err.Error()}
		f.table.finish(fl, nil, s.gaveUp())
		close(fl.settled)
		return
	}
	s := search{f: f, fl: fl, buf: buf}
	got, err := s.run()
	buf = s.buf // a race may have put another in its place
	if err == nil {
		err = f.Vouch(fl.locator, got.digest)
	}
	if err != nil {
		buf.free()
		f.table.finish(fl, nil, err)
	} else {
		f.metrics.count(got.source, len(buf.data), time.Since(fl.began))
		m := &memory{buf: buf, digest: got.digest}
		b := newBlock(m, &f.staging.holds)
		b.source = got.source
		f.table.finish(fl, b, nil)
	}
	if got.grant != nil {
		f.report(fl, got.grant, got.digest, err)
	}
	close(fl.settled)
	if err == nil {
		f.admit(fl, got, buf.data)
		if got.source == Neighbour {
			f.audit(fl, got.digest)
		}
	}
}

// landLocal ends a flight whose block came into the store between its first
// caller's look and its beginning. A grant that prefetch asked for is reported as
// if it had been used: the home wants to know who has the block, and what it is.
func (f *Fetcher) landLocal(fl *flight, h blockstore.Handle) {
	if fl.buf != nil {
		fl.buf.free()
	}
	f.metrics.count(Local, h.Len(), time.Since(fl.began))
	f.announceOnce(fl.extent, fl.slot, h.Digest())
	f.table.finish(fl, newBlock(h, &f.staging.holds), nil)
	close(fl.settled)
	if q := fl.asked; q != nil {
		a, err := f.planner.wait(fl.ctx, q, fl.slot)
		if err == nil && a.State == dht.Granted {
			f.report(fl, &a, h.Digest(), nil)
		}
	}
}

// fullRest is how long prefetch rests after the store had no room. What it read
// meanwhile would be read again by the demand it was meant for.
const fullRest = 10 * time.Second

// errUnwanted says that the store's room is kept for another block.
var errUnwanted = errors.New("its room is kept for another block")

// admit gives the block to the store and announces it. A store that does not
// take it costs nothing but the next read.
func (f *Fetcher) admit(fl *flight, got found, data []byte) {
	place := covey.Place{Extent: fl.extent.ID, Slot: uint8(fl.slot)}
	err := errUnwanted
	if f.adviser().Keep(fl.locator, got.source) {
		err = f.put(fl.locator, place, got, data)
	}
	if err == nil {
		f.announced.add(fl.extent.ID, fl.slot)
		f.announce(fl.extent, fl.slot, got.digest)
		return
	}
	f.log.Debug("block not admitted", "block", fl.locator, "error", err)
	if errors.Is(err, covey.ErrFull) {
		f.full.Store(time.Now().Add(fullRest).UnixNano())
		f.ranges.tight.Store(time.Now().Add(tightFor).UnixNano())
	}
	if got.grant != nil || got.source == Neighbour {
		// The home has this peer for a holder since the report, or since it named the
		// digest of what it had followed a reader for.
		gone := covey.Bitmap(0).With(fl.slot)
		f.opts.Directory.Announce(dht.Have{Extent: fl.extent.ID, Gone: gone})
	}
}

// put says which copies are primaries, read from the origin, and which are replicas:
// the store keeps those in spare room only.
func (f *Fetcher) put(l covey.Locator, p covey.Place, got found, data []byte) error {
	if got.source == Neighbour {
		return f.store.PutReplica(l, p, got.digest, data, got.holders)
	}
	return f.store.Put(l, p, got.digest, data)
}

func (f *Fetcher) announceOnce(e *covey.Extent, slot int, d covey.Digest) {
	if f.announced.add(e.ID, slot) {
		f.announce(e, slot, d)
	}
}

func (f *Fetcher) announce(e *covey.Extent, slot int, d covey.Digest) {
	f.opts.Directory.Announce(dht.Have{
		Extent:  e.ID,
		Have:    covey.Bitmap(0).With(slot),
		Digests: []covey.Digest{d},
	})
}
