package scenario

import (
	"fmt"
	"time"

	"github.com/covey-cache/covey"
)

// Bounds of what one process can simulate.
const (
	maxNodes  = 10_000
	maxBlocks = 1 << 20
	maxEpochs = 1000
	maxFaults = 10_000
)

// Blocks is the number of blocks of the data set.
func (d Data) Blocks() int64 { return int64(d.Objects) * int64((d.Size+d.Block-1)/d.Block) }

// Joiners is how many nodes the faults bring at most.
func (c *Case) Joiners() int {
	n := 0
	for _, f := range c.Faults {
		if f.Kind == Join {
			n += f.Nodes.Of(maxNodes) * f.Repeats()
		}
	}
	return n
}

// Repeats is how often a fault strikes.
func (f *Fault) Repeats() int { return max(1, f.Times) }

// validate reports the first thing that cannot be simulated.
func (c *Case) validate() error {
	for _, v := range []struct {
		bad  bool
		what string
	}{
		{c.Nodes < 1 || c.Nodes > maxNodes, fmt.Sprintf("nodes: %d, want 1 to %d", c.Nodes, maxNodes)},
		{c.Zones < 1 || c.Racks < c.Zones, fmt.Sprintf("racks: %d in %d zones, want a rack in each zone at least", c.Racks, c.Zones)},
		{c.Data.Objects < 1 || c.Data.Size < 1, "data: no objects, or empty ones"},
		{c.Data.Block < 64<<10 || c.Data.Block > 64<<20, "data: block of other than 64KiB to 64MiB"},
		{c.Data.Block >= 1 && c.Data.Blocks() > maxBlocks, fmt.Sprintf("data: more than %d blocks", maxBlocks)},
		{c.Epochs < 1 || c.Epochs > maxEpochs, fmt.Sprintf("epochs: %d, want 1 to %d", c.Epochs, maxEpochs)},
		{c.Share != Sharded && c.Share != All, fmt.Sprintf("share: %q, want sharded or all", c.Share)},
		{c.Order != Sequential && c.Order != Same && c.Order != Shuffled, fmt.Sprintf("order: %q, want sequential, same or shuffled", c.Order)},
		{c.Share == Sharded && c.Order == Sequential && c.Nodes > 1, "order: sequential, want shuffled with share sharded"},
		{c.Readers < 1 || c.Readers > 1024, fmt.Sprintf("readers: %d, want 1 to 1024", c.Readers)},
		{c.Ahead < 0 || c.Ahead > 1024, fmt.Sprintf("ahead: %d, want 0 to 1024", c.Ahead)},
		{c.Origin.Requests < 1, "origin: requests: want 1 at least"},
		{c.Limit <= 0, "limit: want more than 0"},
		{len(c.Faults) > maxFaults, fmt.Sprintf("faults: more than %d", maxFaults)},
		{c.Joiners()+c.Nodes > maxNodes, fmt.Sprintf("faults: more than %d nodes with those that join", maxNodes)},
	} {
		if v.bad {
			return fmt.Errorf("%s: %w", v.what, covey.ErrInvalid)
		}
	}
	for i := range c.Faults {
		if err := c.Faults[i].validate(); err != nil {
			return fmt.Errorf("fault %d: %w: %w", i+1, err, covey.ErrInvalid)
		}
	}
	if c.Chaos != nil && (c.Chaos.Faults < 1 || c.Chaos.Faults > maxFaults || c.Chaos.Until <= 0 || c.Chaos.Longest <= 0) {
		return fmt.Errorf("chaos: want faults, until and longest: %w", covey.ErrInvalid)
	}
	return nil
}

func (f *Fault) validate() error {
	switch f.Kind {
	case Kill, Wipe, Partition, OneWay, Slow, Lie, Claim, Rack, Join:
		if f.Nodes.IsZero() {
			return fmt.Errorf("%s: nodes: how many?", f.Kind)
		}
	case Outage:
	default:
		return fmt.Errorf("kind: %q is unknown", f.Kind)
	}
	switch {
	case f.Kind == Slow && (f.Factor <= 0 || f.Factor > 1):
		return fmt.Errorf("slow: factor: %v, want more than 0 to 1", f.Factor)
	case f.Kind == Join && f.Nodes.Share != 0:
		return fmt.Errorf("join: nodes: want a number")
	case f.Times > 1 && f.Every <= 0:
		return fmt.Errorf("%s: times without every", f.Kind)
	case f.Times < 0 || f.Times > 1000:
		return fmt.Errorf("%s: times: %d, want 0 to 1000", f.Kind, f.Times)
	}
	return nil
}

// End is when the last fault of the schedule has ended, 0 when one never does.
func (c *Case) End() (end time.Duration, ends bool) {
	for i := range c.Faults {
		f := &c.Faults[i]
		if f.For == 0 && f.Kind != Join && f.Kind != Kill && f.Kind != Wipe && f.Kind != Rack {
			return 0, false
		}
		last := f.At.D() + time.Duration(f.Repeats()-1)*f.Every.D() + f.Over.D() + f.For.D()
		end = max(end, last)
	}
	if c.Chaos != nil {
		end = max(end, c.Chaos.Until.D()+c.Chaos.Longest.D())
	}
	return end, true
}
