package sim

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/covey-cache/covey/testnet/scenario"
)

// Options say how a case is run.
type Options struct {
	// Scenario is the name that the result carries.
	Scenario string
	// Events takes the log of every event, as lines of JSON; nil is no log.
	Events io.Writer
}

// Run runs one case and returns what was measured, when everything that it
// started has ended. It must be called in a bubble of testing/synctest. An error
// is one of ctx or of writing the log; what the mesh did wrong is in the result.
func Run(ctx context.Context, c scenario.Case, o Options) (*Result, error) {
	log := newEvents(o.Events)
	w := newWorld(ctx, c, log)
	defer w.stop()
	limit := time.AfterFunc(c.Limit.D(), func() { w.limit.Store(true); w.stop() })
	defer limit.Stop()

	var all sync.WaitGroup
	strikes := schedule(&c, w.racks(), w.rng)
	for _, n := range w.nodes[:c.Nodes] {
		n.view.refresh()
		n.start()
	}
	all.Go(w.flood)
	all.Go(w.sample)
	all.Go(func() { w.strikeAll(strikes) })
	for epoch := 1; epoch <= c.Epochs && w.ctx.Err() == nil; epoch++ {
		w.readEpoch(epoch)
	}
	ended := time.Now()
	w.stop()
	all.Wait()
	for _, n := range w.nodes {
		if l := n.life.Load(); l != nil {
			l.wg.Wait()
			n.overridden(l)
		}
	}
	w.lives.Wait()
	r := w.result(o.Scenario, ended)
	if err := log.flush(); err != nil {
		return r, fmt.Errorf("write the events: %w", err)
	}
	return r, context.Cause(ctx)
}

// flood spreads news of members until the run ends.
func (w *world) flood() {
	for w.sleep(w.ctx, floodEvery, nil) {
		w.spread(time.Now())
	}
}
