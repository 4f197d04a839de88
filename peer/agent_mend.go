package peer

import (
	"context"
	"strings"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/dht"
)

const (
	// maxLost bounds the blocks that wait to be fetched anew, at some 300 bytes
	// each. What does not get in is fetched when somebody reads it.
	maxLost = 4096
	// mendAfter is how long a lost block is left alone. The homes must have heard
	// first that it is gone, which takes a batch of a second: until then they would
	// send this peer to itself.
	mendAfter = 2 * time.Second
)

// lost is a block that the store dropped because it was bad.
type lost struct {
	covey.Locator
	place covey.Place
}

// mender fetches anew what the store lost.
type mender struct{ queue chan lost }

func newMender() *mender { return &mender{queue: make(chan lost, maxLost)} }

// add takes a block over. It does not block.
func (m *mender) add(l covey.Locator, p covey.Place) {
	select {
	case m.queue <- lost{l, p}:
	default:
	}
}

// mend tells the homes of what is gone and fetches it again, for the data sets in
// use, until ctx ends.
func (a *Agent) mend(ctx context.Context) error {
	var batch []lost
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-a.mender.queue:
			if b.place != (covey.Place{}) {
				a.directory.Announce(dht.Have{Extent: b.place.Extent, Gone: covey.Bitmap(0).With(int(b.place.Slot))})
			}
			if batch = append(batch, b); due == nil {
				due = time.After(mendAfter)
			}
			if len(batch) < maxLost {
				continue
			}
		case <-due:
		}
		for _, b := range batch {
			a.refetch(ctx, b.Locator)
		}
		batch, due = nil, nil
	}
}

// refetch has a block fetched in the background, if it is of a version that the
// origin still has and of a data set in use.
func (a *Agent) refetch(ctx context.Context, l covey.Locator) {
	for _, ds := range a.datasets.List() {
		rel, ok := strings.CutPrefix(l.Key, ds.Prefix())
		if !ok || ds.Bucket().Origin() != l.Origin {
			continue
		}
		e, err := ds.Lookup(ctx, rel)
		if err != nil || e.Kind != dataset.File || ds.Object(rel, e) != l.Object {
			continue
		}
		extent, slot, err := ds.Extent(ctx, rel, e, l.Index)
		if err != nil {
			a.log.Debug("fetch a bad block anew", "key", l.Key, "block", l.Index, "error", err)
			return
		}
		a.fetcher.Prefetch(extent, covey.Bitmap(0).With(slot))
		return
	}
}

// scrub has the store re-read its blocks while the host is idle.
func (a *Agent) scrub(ctx context.Context) error {
	rate := a.opts.ScrubRate
	if rate == 0 {
		rate = blockstore.DefaultScrubRate
	}
	if rate < 0 {
		return nil
	}
	return a.store.Scrub(ctx, rate)
}
