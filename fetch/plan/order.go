package plan

import (
	"context"
	"fmt"
	"sync"

	"github.com/covey-cache/covey"
)

// Order is the order of one epoch, for all of its ranks. It draws as far as it
// is read and no further, except from 214,748,364 samples on, where torch's
// algorithm gives nothing before all is drawn.
//
// Its methods may be called concurrently: the ranks of a node share one order.
type Order struct {
	spec Spec

	// mu guards the shuffle. It is a leaf lock, held for one chunk of draws or
	// for copying what is drawn.
	mu  sync.Mutex
	mix *shuffle // nil without Shuffle
}

// NewOrder returns the order that a spec means. It needs up to
// [Spec.OrderBytes], which the caller has to afford. The error is that of
// [Spec.Validate].
func NewOrder(spec Spec) (*Order, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	o := &Order{spec: spec}
	if spec.Shuffle {
		o.mix = newShuffle(spec.Samples, spec.Seed+uint64(spec.Epoch), spec.Samples >= wideSamples)
	}
	return o, nil
}

// Spec returns what the order was made from.
func (o *Order) Spec() Spec { return o.spec }

// Read fills into with the samples that a rank reads, beginning with its from-th
// (its own count, 0 after Base), and returns how many there were: fewer than
// len(into) only at the end of the epoch. An interrupted Read returns the error
// of ctx; what it drew is kept. A rank that is not in the world is ErrInvalid.
func (o *Order) Read(ctx context.Context, rank uint32, from uint64, into []uint32) (int, error) {
	if rank >= o.spec.World {
		return 0, fmt.Errorf("rank %d of %d: %w", rank, o.spec.World, covey.ErrInvalid)
	}
	per := o.spec.PerRank()
	if from >= per || len(into) == 0 {
		return 0, nil
	}
	count := min(uint64(len(into)), per-from)
	world, n := uint64(o.spec.World), o.spec.Samples
	first := o.spec.Base + uint64(rank) + from*world
	last := first + (count-1)*world
	if err := o.draw(ctx, min(last+1, n)); err != nil {
		return 0, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range count {
		// Padding is the order from its beginning, over again if it must be.
		p := (first + i*world) % n
		if o.mix == nil {
			into[i] = uint32(p)
		} else {
			into[i] = o.mix.at(p)
		}
	}
	return int(count), nil
}

// draw makes the positions below until final. It lets go of the lock between
// chunks, so that a reader near the start does not wait for one far ahead.
func (o *Order) draw(ctx context.Context, until uint64) error {
	if o.mix == nil {
		return nil
	}
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("shuffle %d samples: %w", o.spec.Samples, err)
		}
		if o.drawChunk(until) {
			return nil
		}
	}
}

func (o *Order) drawChunk(until uint64) (done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mix.final() < until {
		o.mix.step(until)
	}
	return o.mix.final() >= until
}
