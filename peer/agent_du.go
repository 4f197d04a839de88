package peer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/gateway"
)

// maxOrigins is how many origins outside the mounted data sets Du tells apart:
// each line is a pass over the index, and a cache has seen a handful.
const maxOrigins = 16

// otherOrigins is the line of the rest.
const otherOrigins = "other origins"

// Du adds up what is cached, below a path or by data set.
func (a *Agent) Du(ctx context.Context, path string) (gateway.Du, error) {
	if path == "" {
		return a.duBySource(ctx)
	}
	p, err := a.place(ctx, path)
	if err != nil {
		return gateway.Du{}, err
	}
	defer p.release()
	du, err := a.store.Du(p.holds)
	if err == nil && du.Objects+du.Pinned == 0 {
		err = p.known(ctx)
	}
	if err != nil {
		return gateway.Du{}, fmt.Errorf("du %s: %w", path, err)
	}
	s, err := a.duSource(path, du, p.holds)
	if err != nil {
		return gateway.Du{}, fmt.Errorf("du %s: %w", path, err)
	}
	return gateway.Du{Sources: []gateway.DuSource{s}, Total: s}, nil
}

func (a *Agent) duBySource(ctx context.Context) (gateway.Du, error) {
	known := a.mountedSources()
	seen := map[string]bool{}
	for _, s := range known {
		seen[s.name] = true
	}
	limit := len(seen) + maxOrigins
	total, err := a.store.Du(func(o covey.Object) bool {
		name := known.of(o)
		if !seen[name] && len(seen) >= limit {
			name = otherOrigins
		}
		seen[name] = true
		return true
	})
	if err != nil {
		return gateway.Du{}, err
	}
	var r gateway.Du
	if r.Total, err = a.duSource("", total, nil); err != nil {
		return r, err
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if err := ctx.Err(); err != nil {
			return r, fmt.Errorf("add up what is cached: %w", err)
		}
		match := func(o covey.Object) bool {
			of := known.of(o)
			return of == name || name == otherOrigins && !seen[of]
		}
		du, err := a.store.Du(match)
		if err != nil {
			return r, err
		}
		s, err := a.duSource(name, du, match)
		if err != nil {
			return r, err
		}
		r.Sources = append(r.Sources, s)
	}
	return r, nil
}

// sources are mounted data sets, those with the longest prefixes first.
type sources []source

type source struct{ name, origin, prefix string }

func (a *Agent) mountedSources() sources {
	var list sources
	for _, e := range a.mounts.all() {
		ds := e.dataset
		list = append(list, source{ds.Name(), ds.Bucket().Origin(), ds.Prefix()})
	}
	slices.SortFunc(list, func(x, y source) int {
		if n := len(y.prefix) - len(x.prefix); n != 0 {
			return n
		}
		return strings.Compare(x.name, y.name)
	})
	return list
}

// of returns the data set that an object belongs to, the innermost one so that
// none is counted twice, or else its origin.
func (list sources) of(o covey.Object) string {
	for _, s := range list {
		if o.Origin == s.origin && strings.HasPrefix(o.Key, s.prefix) {
			return s.name
		}
	}
	return o.Origin
}

// duSource puts a sum into the API's words, with the parts of the tiers. Where there
// is one tier, that is the sum.
func (a *Agent) duSource(name string, du blockstore.Du, match func(covey.Object) bool) (gateway.DuSource, error) {
	s := gateway.DuSource{
		Source: name, Files: int64(du.Objects), FilesCached: int64(du.Whole), Blocks: int64(du.Blocks), Used: du.Used,
		FilesPinned: int64(du.Pinned), PinnedUsed: du.PinnedUsed, Reserved: du.Missing, BlocksReplica: int64(du.Replicas),
		Tiers: []gateway.TierPart{},
	}
	if tiers := a.store.Tiers(); len(tiers) == 1 {
		s.Tiers = append(s.Tiers, tierPart(blockstore.TierPart{Dir: tiers[0].Dir, Du: du}))
		return s, nil
	}
	parts, err := a.store.DuTiers(match)
	for _, p := range parts {
		s.Tiers = append(s.Tiers, tierPart(p))
	}
	return s, err
}

func tierPart(p blockstore.TierPart) gateway.TierPart {
	return gateway.TierPart{
		Dir: p.Dir, Files: int64(p.Objects), FilesCached: int64(p.Whole), Blocks: int64(p.Blocks),
		BlocksReplica: int64(p.Replicas), Used: p.Used, FilesPinned: int64(p.Pinned),
	}
}

// Verify begins to check what is cached at or below a path, or everything.
func (a *Agent) Verify(ctx context.Context, path string) (gateway.Job, error) {
	var match func(covey.Object) bool
	release := func() {}
	if path != "" {
		p, err := a.place(ctx, path)
		if err != nil {
			return gateway.Job{}, err
		}
		if err := p.known(ctx); err != nil {
			p.release()
			return gateway.Job{}, fmt.Errorf("verify %s: %w", path, err)
		}
		match, release = p.holds, p.release
	}
	j, running := newJob(kindVerify, path)
	if err := a.jobs.add(j); err != nil {
		j.cancel()
		release()
		return gateway.Job{}, err
	}
	go func() {
		defer a.jobs.done()
		defer release()
		defer j.cancel()
		j.finish(a.verify(running, j, match))
	}()
	return j.snapshot(), nil
}

func (a *Agent) verify(ctx context.Context, j *job, match func(covey.Object) bool) error {
	du, err := a.store.Du(match)
	if err != nil {
		return err
	}
	j.files.Store(int64(du.Objects))
	j.bytes.Store(du.Plain)
	j.listing.Store(false)
	done, err := a.store.Verify(ctx, match, j.verified)
	j.verified(done)
	if err != nil {
		return err
	}
	// What came or went meanwhile, and the last blocks' rounding, is behind it now.
	j.files.Store(int64(done.Objects))
	j.filesDone.Store(int64(done.Objects))
	j.bytes.Store(done.Bytes)
	return nil
}

// verified takes over how far the store is. The object it is at is not done.
func (j *job) verified(v blockstore.Verified) {
	j.filesDone.Store(int64(max(v.Objects-1, 0)))
	j.bytesDone.Store(v.Bytes)
	j.blocksBad.Store(int64(v.Bad + v.Unreadable))
}
