package peer

import (
	"context"
	"fmt"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/origin"
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
		Policy: blockstore.Policy(a.opts.CachePolicy), IdleAfter: a.opts.IdleAfter,
		OnCorrupt: func(covey.Locator) { a.corrupt.add("disk") },
		OnLost:    a.mender.add,
		Log:       a.log, Registry: a.registry,
	}
	for _, c := range a.opts.Cache[1:] {
		opts.Slower = append(opts.Slower, blockstore.TierOptions{Dir: c.Dir, Budget: c.Size, FS: a.opts.StoreFS})
	}
	for _, k := range a.opts.Keep {
		d, err := a.keep(k)
		if err != nil {
			return err
		}
		opts.Datasets = append(opts.Datasets, d)
	}
	a.store, err = blockstore.Open(opts)
	return err
}

// keep turns a spec into the store's words. The origin's name follows from the URL
// and the environment; nobody is asked.
func (a *Agent) keep(k KeepSpec) (d blockstore.Dataset, err error) {
	src, err := origin.Open(context.Background(), k.Source, origin.Options{HTTP: a.opts.OriginHTTP, SkipCheck: true})
	if err != nil {
		return d, fmt.Errorf("keep %s: %w", k.Source, err)
	}
	defer func() { _ = src.Close() }() // nothing was asked of it
	prefix := src.Prefix
	if k.Path != "" {
		prefix += k.Path + "/"
	}
	return blockstore.Dataset{
		Origin: src.Bucket.Origin(), Prefix: prefix, Policy: blockstore.Policy(k.Policy), TTL: k.TTL,
	}, nil
}

// knowSource tells the store of a data set that is opened, so that its uses count as
// a whole.
func (a *Agent) knowSource(src *origin.Source) {
	d := blockstore.Dataset{Origin: src.Bucket.Origin(), Prefix: src.Prefix}
	if err := a.store.AddDataset(d); err != nil {
		a.log.Warn("data set is not told apart from others in the cache", "source", src.URL, "err", err)
	}
}
