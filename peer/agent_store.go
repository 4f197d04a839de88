package peer

import (
	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
)

// uncachedBudget is the memory that stands in for cache directories that cannot
// be written: enough that the readers of a node share what is being fetched and
// that neighbours can follow, and small beside any training job.
const uncachedBudget = 64 << 20

// openStore opens the cache directories. One that is read-only, has no room or whose
// disk fails is no reason not to serve: the agent goes on with the others, or with a
// little memory in their place, says so, and tries it again. A directory that belongs
// to another agent, or to another program, is an error.
func (a *Agent) openStore() (err error) {
	first := a.opts.Cache[0]
	opts := blockstore.Options{
		Dir: first.Dir, Budget: first.Size, FS: a.opts.StoreFS, Spare: uncachedBudget,
		Compress: a.opts.Compress, Keys: a.opts.CacheKeys,
		OnCorrupt: func(covey.Locator) { a.corrupt.add("disk") },
		OnLost:    a.mender.add,
		Log:       a.log, Registry: a.registry,
	}
	for _, c := range a.opts.Cache[1:] {
		opts.Slower = append(opts.Slower, blockstore.TierOptions{Dir: c.Dir, Budget: c.Size, FS: a.opts.StoreFS})
	}
	a.store, err = blockstore.Open(opts)
	return err
}
