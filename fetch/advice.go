package fetch

import (
	"context"
	"fmt"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// Adviser knows what will be read. Its methods are called on the way of a read,
// concurrently, and must not block.
type Adviser interface {
	// Staged returns a handle on a block that was read ahead and that the store
	// does not have; nil when there is none. The caller releases it.
	Staged(l covey.Locator) blockstore.Handle
	// Holds says whether Staged would return a block.
	Holds(l covey.Locator) bool
	// Keep says whether a block that was just fetched is to be given to the store.
	// False spares the room for one that is worth more there.
	Keep(l covey.Locator, from Source) bool
	// Foreseen says whether the adviser sees to it that a block is read ahead, so
	// that nobody else need guess.
	Foreseen(l covey.Locator) bool
}

// noAdvice keeps everything, has nothing and foresees nothing.
type noAdvice struct{}

func (noAdvice) Staged(covey.Locator) blockstore.Handle { return nil }
func (noAdvice) Holds(covey.Locator) bool               { return false }
func (noAdvice) Keep(covey.Locator, Source) bool        { return true }
func (noAdvice) Foreseen(covey.Locator) bool            { return false }

// advice is an Adviser in an atomic.Value, which wants one type.
type advice struct{ Adviser }

// Advise has the fetcher listen to an adviser from now on.
func (f *Fetcher) Advise(a Adviser) { f.advised.Store(advice{a}) }

func (f *Fetcher) adviser() Adviser {
	if a, ok := f.advised.Load().(advice); ok {
		return a.Adviser
	}
	return noAdvice{}
}

// foreseen are those of the slots that the adviser reads ahead itself.
func (f *Fetcher) foreseen(e *covey.Extent, slots covey.Bitmap) (known covey.Bitmap) {
	a := f.adviser()
	for slot := range slots.Slots() {
		if a.Foreseen(e.Blocks[slot]) {
			known = known.With(slot)
		}
	}
	return known
}

// staged returns a staged block and counts it, as a hit of the store is.
func (f *Fetcher) staged(l covey.Locator, began time.Time) blockstore.Handle {
	h := f.adviser().Staged(l)
	if h != nil {
		f.metrics.count(Local, h.Len(), time.Since(began))
	}
	return h
}

// Bring fetches a block that nobody waits for yet, from the nearest copy or, with
// a home's grant, from the origin, and returns when the store has taken or
// refused it. The caller releases the handle, which is good either way. It
// reports where the bytes came from; Local when the store had them.
//
// It never waits for memory: ErrFull when prefetch has used up its part, and then
// nothing was asked of anybody. Bring works before Run.
func (f *Fetcher) Bring(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, Source, error) {
	if slot < 0 || slot >= len(e.Blocks) {
		return nil, Local, fmt.Errorf("slot %d of an extent of %d: %w", slot, len(e.Blocks), covey.ErrInvalid)
	}
	l := e.Blocks[slot]
	if h, err := f.store.Get(l); err == nil {
		f.announceOnce(e, slot, h.Digest())
		return h, Local, nil
	}
	r := l.Range()
	if r.Len <= 0 || r.Len > covey.MaxBlockSize {
		return nil, Local, fmt.Errorf("bring %s: block of %d bytes: %w", l, r.Len, covey.ErrInvalid)
	}
	buf := f.staging.trySpare(int(r.Len))
	if buf == nil {
		return nil, Local, fmt.Errorf("bring %s: no memory to spare: %w", l, covey.ErrFull)
	}
	fl, began, err := f.table.join(e, slot, false, 0)
	switch {
	case err != nil:
		buf.free()
		return nil, Local, fmt.Errorf("bring %s: %w: %w", l, covey.ErrUnavailable, err)
	case began:
		fl.buf = buf
		go f.fly(fl)
	default: // somebody is at it already; that is as good
		buf.free()
	}
	h, err := f.await(ctx, fl, fl.ended)
	if err != nil {
		return nil, Local, err
	}
	return h, fl.block.source, nil
}

// Present is what the store has of an extent.
func (f *Fetcher) Present(e *covey.Extent) covey.Bitmap { return f.store.Present(e) }

// OriginLatency is what a read of a block from the origin takes at worst, as an
// estimate; false while too little is known.
func (f *Fetcher) OriginLatency() (time.Duration, bool) { return f.originTook.p99() }
