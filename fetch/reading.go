package fetch

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// progressTick is how soon after its grant a read is told to the second home, and
// how finely reports are timed. Grants of a tenth of a second share a message;
// what is read in less needs none.
const progressTick = 100 * time.Millisecond

// readings are the granted reads under way, which the homes hear of every
// [dht.ProgressEvery].
//
// mu is a leaf lock and guards active.
type readings struct {
	// wake has a value when the first read begins.
	wake   chan struct{}
	scale  float64 // Options.Scale
	mu     sync.Mutex
	active map[*reading]struct{}
}

// reading is one granted read.
type reading struct {
	dht.Reading
	bytes atomic.Int64
	next  time.Time // when its home is due a report; guarded by readings.mu
}

// begin adds a read under a grant, which is in the map until end.
func (r *readings) begin(e *covey.Extent, a *answer) *reading {
	x := &reading{next: time.Now().Add(dht.ProgressEvery), Reading: dht.Reading{
		Extent: e.ID, Slot: a.Slot, Lease: a.Lease, Home: a.home, TTL: a.TTL, New: true,
	}}
	r.mu.Lock()
	r.active[x] = struct{}{}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return x
}

func (r *readings) end(x *reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.active, x)
}

// due returns what is to be reported now, and whether any read is under way.
func (r *readings) due(now time.Time) (list []dht.Reading, any bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for x := range r.active {
		report := x.Reading
		report.Bytes = int64(float64(x.bytes.Load()) * r.scale)
		switch {
		case !now.Before(x.next):
			report.New = false
			x.next = now.Add(dht.ProgressEvery)
		case !x.New:
			continue
		}
		x.New = false
		list = append(list, report)
	}
	return list, len(r.active) > 0
}

// reportProgress tells the homes of granted reads until ctx ends.
func (f *Fetcher) reportProgress(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.readings.wake:
		}
		for any := true; any; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(progressTick):
			}
			var due []dht.Reading
			if due, any = f.readings.due(time.Now()); len(due) == 0 {
				continue
			}
			// A home that is slow to answer must not delay the next report.
			f.table.spawn(func() {
				ctx, cancel := context.WithTimeout(ctx, reportLimit)
				defer cancel()
				if err := f.opts.Directory.Progress(ctx, due); err != nil {
					f.log.Debug("progress not reported", "reads", len(due), "error", err)
				}
			})
		}
	}
}

// counted counts what is read of a granted read, and when the first byte came.
type counted struct {
	io.Reader
	x     *reading // nil for a read without a grant
	f     *Fetcher
	began time.Time
	some  bool
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if n > 0 && !c.some {
		c.some = true
		c.f.originFirst.add(time.Since(c.began))
	}
	if c.x != nil {
		c.x.bytes.Add(int64(n))
	}
	return n, err
}
