package peer

import (
	"errors"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// uncachedBudget is the memory that stands in for a cache directory that cannot
// be written: enough that the readers of a node share what is being fetched and
// that neighbours can follow, and small beside any training job.
const uncachedBudget = 64 << 20

// openStore opens the cache directory. One that is read-only or has no room is
// no reason not to serve: the agent goes on with a little memory in its place,
// says so, and shows the tier as read-only. A directory that belongs to another
// agent, or to another program, is an error.
func (a *Agent) openStore() error {
	tier := a.opts.Cache[0]
	opts := blockstore.Options{
		Dir: tier.Dir, Budget: tier.Size, FS: a.opts.StoreFS,
		OnCorrupt: func(covey.Locator) { a.corrupt.add("disk") },
		Log:       a.log, Registry: a.registry,
	}
	for _, c := range a.opts.Cache[1:] {
		opts.Slower = append(opts.Slower, blockstore.TierOptions{Dir: c.Dir, Budget: c.Size, FS: a.opts.StoreFS})
	}
	var err error
	a.store, err = blockstore.Open(opts)
	if !errors.Is(err, covey.ErrReadOnly) && !errors.Is(err, covey.ErrFull) {
		return err
	}
	a.log.Warn("the cache directory cannot be used; going on with a little memory instead",
		"dir", tier.Dir, "bytes", uncachedBudget, "error", err)
	opts.FS, opts.Budget, opts.Slower = blockstore.MemFS(), uncachedBudget, nil
	a.store, err = blockstore.Open(opts)
	a.uncached = true
	return err
}
