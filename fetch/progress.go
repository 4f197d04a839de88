package fetch

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
)

// RangeExchange is an [Exchange] that can also read the end of a block, and says
// how far it is. A fetcher uses it where the exchange has it: a block that one
// neighbour began is then finished by another, and a neighbour that has fallen
// silent is told from one that is only slow.
type RangeExchange interface {
	Exchange
	// FetchFrom is Fetch, without waiting, of the bytes from off on, into
	// buf[off:]. It tells p, if that is not nil, how far buf is filled, from the
	// goroutine that fills it. ErrUnavailable also when the peer cannot begin in
	// the middle of a block.
	FetchFrom(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, off int, p *Progress) error
}

// Progress is how far the buffer of a fetch is filled. One goroutine tells;
// others may ask meanwhile.
type Progress struct {
	filled atomic.Int64
	// first and last are when bytes came, in nanoseconds since 1970; 0 before.
	first, last atomic.Int64
}

// Reached says that the first n bytes of the buffer are there and will not be
// written to again.
func (p *Progress) Reached(n int) {
	if p == nil {
		return
	}
	now := time.Now().UnixNano()
	p.first.CompareAndSwap(0, now)
	p.last.Store(now)
	p.filled.Store(int64(n))
}

// Filled returns how many bytes are there.
func (p *Progress) Filled() int { return int(p.filled.Load()) }

// firstAfter returns how long the first byte took; 0 when there was none.
func (p *Progress) firstAfter(began time.Time) time.Duration {
	if first := p.first.Load(); first != 0 {
		return max(time.Unix(0, first).Sub(began), 1)
	}
	return 0
}

// lastAt returns when bytes came last, or began when none came yet.
func (p *Progress) lastAt(began time.Time) time.Time {
	if last := p.last.Load(); last != 0 {
		return time.Unix(0, last)
	}
	return began
}

// Distance is how far a peer is. Nearer ones are asked first.
type Distance uint8

// The distances: what is shared with the peer.
const (
	SameHost Distance = iota
	SameRack
	SameZone
	Far
)

// String returns the distance as people and metrics read it.
func (d Distance) String() string { return [...]string{"host", "rack", "zone", "far"}[d] }

// Topology knows where peers are.
type Topology interface {
	// Nearness returns how far a peer is, and what its network interface carries
	// in bytes a second, 0 when that is not known.
	Nearness(p covey.PeerID) (Distance, float64)
}

// nowhere is the topology of a fetcher that was given none.
type nowhere struct{}

func (nowhere) Nearness(covey.PeerID) (Distance, float64) { return Far, 0 }
