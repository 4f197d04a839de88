package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/covey-cache/covey"
)

// attempt is one neighbour's part in a race for a block: it fills buf from
// byte from on. It owns the buffer until it has ended.
type attempt struct {
	peer   covey.PeerID
	buf    *buffer
	from   int
	before []covey.PeerID // whose bytes lie in front of from
	began  time.Time
	stop   context.CancelFunc
	told   Progress

	// hedge says that it counts among the hedges; hedged, that it is not to be
	// hedged (again); left, that its peer was too slow and another goes on.
	hedge, hedged, left bool
	// checked is when its speed was last looked at, checkedAt how far it was.
	checked   time.Time
	checkedAt int

	// Set by its goroutine before it tells its end.
	err   error
	ended time.Time
}

// filled is how far the buffer is good.
func (a *attempt) filled() int { return max(a.told.Filled(), a.from) }

// size is what the peer was asked for.
func (a *attempt) size() int { return len(a.buf.data) - a.from }

// goOn makes the attempt continue what another has begun. What that one has so
// far must be, or be copied, in front of the buffer.
func (a *attempt) goOn(from *attempt) {
	a.from = from.filled()
	if a.from >= len(a.buf.data) {
		a.from = 0 // it is complete and wrong, or just about to end
	}
	if a.from > 0 {
		a.before = append(slices.Clone(from.before), from.peer)
	}
}

// attempt asks the peer.
func (f *Fetcher) attempt(ctx context.Context, l covey.Locator, a *attempt) error {
	if x, ok := f.opts.Exchange.(RangeExchange); ok {
		return x.FetchFrom(ctx, a.peer, l, a.buf.data, a.from, &a.told)
	}
	err := f.opts.Exchange.Fetch(ctx, a.peer, l, a.buf.data, false)
	if err == nil {
		a.told.Reached(len(a.buf.data))
	}
	return err
}

// score gives back the peer's place and takes in how it did. stopped says that
// the attempt was ended from here.
func (f *Fetcher) score(a *attempt, stopped bool) {
	how := served
	switch {
	case a.left, stopped && a.told.Filled() == 0:
		how = overtaken
	case errors.Is(a.err, covey.ErrNotFound):
		how = refused
	case a.err != nil && !stopped:
		how = failed
	}
	first := a.told.firstAfter(a.began)
	f.neighbours.leave(a.peer, a.size(), how, first)
	if first > 0 {
		f.firstByte.add(first)
	}
}

// failure is what went wrong, for people.
func (a *attempt) failure() error { return fmt.Errorf("read from holder %x: %w", a.peer, a.err) }
