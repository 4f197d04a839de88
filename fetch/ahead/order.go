package ahead

import (
	"context"
	"fmt"
	"sync"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
)

// Order says which samples each rank of a job reads, one after the other, through
// all of its epochs. A rank's place in it is a position: the number of samples
// that it has taken since the plan began. Its methods may be called concurrently.
type Order struct {
	spec   plan.Spec
	epochs uint64
	// listed are explicit orders by rank; nil with a spec.
	listed map[uint32][]uint32

	// mu guards drawn, which holds the orders of the epochs that were read last:
	// that of the slowest rank and the next, as a rule.
	mu    sync.Mutex
	drawn [2]*drawn
}

// drawn is one epoch's order.
type drawn struct {
	epoch uint64 // from 0
	order *plan.Order
}

// NewOrder returns the order of so many epochs, the first being the spec's.
func NewOrder(spec plan.Spec, epochs int) (*Order, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	return &Order{spec: spec, epochs: uint64(max(epochs, 1))}, nil
}

// NewListedOrder returns an order that somebody wrote down, for some ranks. The
// map is kept.
func NewListedOrder(byRank map[uint32][]uint32) *Order { return &Order{listed: byRank} }

// World is the number of ranks; 0 when only some were listed.
func (o *Order) World() uint32 { return o.spec.World }

// Spec is what the order was made from; the zero Spec when it was listed.
func (o *Order) Spec() plan.Spec { return o.spec }

// Fits returns an error that wraps ErrInvalid unless the order is one of so many
// samples.
func (o *Order) Fits(samples uint64) error {
	if o.listed == nil {
		if o.spec.Samples != samples {
			return fmt.Errorf("the plan is of %d samples and the manifest has %d: %w", o.spec.Samples, samples, covey.ErrInvalid)
		}
		return nil
	}
	for rank, list := range o.listed {
		for _, s := range list {
			if uint64(s) >= samples {
				return fmt.Errorf("the order of rank %d has sample %d and the manifest %d samples: %w", rank, s, samples, covey.ErrInvalid)
			}
		}
	}
	return nil
}

// at returns the spec of an epoch, counted from 0: what a resumed job has done of
// its first epoch counts in that one only.
func (o *Order) at(epoch uint64) plan.Spec {
	s := o.spec
	if epoch > 0 {
		s.Base = 0
		s.Epoch += uint32(epoch)
	}
	return s
}

// Total is how many samples a rank reads in all.
func (o *Order) Total(rank uint32) uint64 {
	if o.listed != nil {
		return uint64(len(o.listed[rank]))
	}
	return o.at(0).PerRank() + (o.epochs-1)*o.at(1).PerRank()
}

// Place returns the epoch, counted from 0, that a position lies in, and how many
// samples of it lie in front.
func (o *Order) Place(position uint64) (epoch, in uint64) {
	first, other := o.at(0).PerRank(), o.at(1).PerRank()
	if o.listed != nil || position < first || other == 0 {
		return 0, position
	}
	position -= first
	return 1 + position/other, position % other
}

// Read fills into with a rank's samples from a position on, and returns how many
// there were: fewer than len(into) at the end of an epoch, none at the end of
// the order. The errors are those of [plan.Order.Read].
func (o *Order) Read(ctx context.Context, rank uint32, from uint64, into []uint32) (int, error) {
	if o.listed != nil {
		list := o.listed[rank]
		if from >= uint64(len(list)) {
			return 0, nil
		}
		return copy(into, list[from:]), nil
	}
	epoch, in := o.Place(from)
	if epoch >= o.epochs {
		return 0, nil
	}
	d, err := o.draw(epoch)
	if err != nil {
		return 0, err
	}
	return d.Read(ctx, rank, in, into)
}

func (o *Order) draw(epoch uint64) (*plan.Order, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	oldest := 0
	for i, d := range o.drawn {
		if d != nil && d.epoch == epoch {
			return d.order, nil
		}
		if d == nil || o.drawn[oldest] != nil && d.epoch < o.drawn[oldest].epoch {
			oldest = i
		}
	}
	order, err := plan.NewOrder(o.at(epoch))
	if err != nil {
		return nil, err
	}
	o.drawn[oldest] = &drawn{epoch: epoch, order: order}
	return order, nil
}
