package peer

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/gateway"
)

// maxPins bounds what one Pin pins: each is a durable write of up to a
// millisecond, and a minute is what a request has.
const maxPins = 50_000

// place is a file or directory of a data set that a path means.
type place struct {
	ds      *dataset.Dataset
	rel     string
	release func()
}

func (a *Agent) place(ctx context.Context, path string) (place, error) {
	ds, rel, release, err := a.resolve(ctx, path)
	return place{ds, rel, release}, err
}

// holds reports whether the object is a version of the file, or of a file below
// the directory, also of one that the origin has no more.
func (p place) holds(o covey.Object) bool {
	if o.Origin != p.ds.Bucket().Origin() {
		return false
	}
	rel, ok := strings.CutPrefix(o.Key, p.ds.Prefix())
	return ok && (p.rel == "" || rel == p.rel || strings.HasPrefix(rel, p.rel+"/"))
}

// known is nil unless the origin says that there is nothing at the place. It is
// asked where nothing is cached, to tell a path that is wrong from one that is
// not cached.
func (p place) known(ctx context.Context) error {
	if p.rel == "" {
		return nil
	}
	_, err := p.ds.Lookup(ctx, p.rel)
	return err
}

// change gives the caller the right to change pins and to evict by path, until
// the function returned is called: what one request counts and then does, or
// takes back, must not meet what another does.
func (a *Agent) change(ctx context.Context) (done func(), err error) {
	select {
	case a.changing <- struct{}{}:
		return func() { <-a.changing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Stat adds up what is cached of the files at or below a path.
func (a *Agent) Stat(ctx context.Context, path string) (gateway.Stat, error) {
	p, err := a.place(ctx, path)
	if err != nil {
		return gateway.Stat{}, err
	}
	defer p.release()
	s := gateway.Stat{Path: path, Kind: dataset.Dir.String(), Tiers: []gateway.TierPart{}}
	err = a.eachFile(ctx, p.ds, p.rel, func(file string, e dataset.Entry) {
		o := p.ds.Object(file, e)
		if file == p.rel {
			s.Kind, s.Key, s.Version = dataset.File.String(), o.Key, o.Version
		}
		addStat(&s, a.store.Stat(o), a.store.StatTiers(o))
	})
	if err != nil {
		return s, fmt.Errorf("stat %s: %w", path, err)
	}
	return s, nil
}

func addStat(s *gateway.Stat, st blockstore.Stat, parts []blockstore.TierPart) {
	for _, p := range parts {
		i := slices.IndexFunc(s.Tiers, func(t gateway.TierPart) bool { return t.Dir == p.Dir })
		if i < 0 {
			i = len(s.Tiers)
			s.Tiers = append(s.Tiers, gateway.TierPart{Dir: p.Dir})
		}
		s.Tiers[i].Add(tierPart(p))
	}
	s.BlocksReplica += int64(st.Replicas)
	s.Size += st.Object.Size
	s.Files++
	s.Blocks += int64(st.Object.Blocks())
	s.BlocksCached += int64(st.Blocks)
	s.Used += st.Used
	if st.Whole {
		s.FilesCached++
	}
	if st.Pinned {
		s.FilesPinned++
	}
}

// Pin pins every file at or below a path, or none. What gives way to primaries makes
// room for them.
func (a *Agent) Pin(ctx context.Context, path string) (gateway.Pinned, error) {
	pinned, err := a.pin(ctx, path)
	if err != nil {
		return gateway.Pinned{}, fmt.Errorf("pin %s: %w", path, err)
	}
	return pinned, nil
}

func (a *Agent) pin(ctx context.Context, path string) (gateway.Pinned, error) {
	p, err := a.place(ctx, path)
	if err != nil {
		return gateway.Pinned{}, err
	}
	defer p.release()
	done, err := a.change(ctx)
	if err != nil {
		return gateway.Pinned{}, err
	}
	defer done()

	r := gateway.Pinned{Path: path}
	fresh, need, err := a.unpinned(ctx, p, &r)
	if err != nil {
		return r, err
	}
	if n, err := a.store.PinAll(ctx, fresh); err != nil {
		return r, a.pinFailed(err, fresh, n)
	}
	r.Changed, r.Missing = int64(len(fresh)), r.Missing+need
	return r, nil
}

// unpinned returns the files of a place that are not pinned yet and the room that
// their missing blocks need; it counts all of them, and what those that are
// pinned miss, in r.
func (a *Agent) unpinned(ctx context.Context, p place, r *gateway.Pinned) (fresh []covey.Object, need int64, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	err = a.eachFile(ctx, p.ds, p.rel, func(file string, e dataset.Entry) {
		o := p.ds.Object(file, e)
		st := a.store.Stat(o)
		r.Files++
		r.Bytes += o.Size
		missing := st.Missing
		switch {
		case st.Pinned:
			r.Missing += missing
		case len(fresh) >= maxPins:
			stop() // of which the listing notices at its next page
		default:
			fresh = append(fresh, o)
			need += missing
		}
	})
	if ctx.Err() != nil && len(fresh) >= maxPins {
		err = fmt.Errorf("more than %d files, the most at once; pin its directories one by one: %w", maxPins, covey.ErrInvalid)
	}
	return fresh, need, err
}

// pinFailed takes the pins before fresh[failed] back, and says what is missing.
func (a *Agent) pinFailed(err error, fresh []covey.Object, failed int) error {
	for _, o := range fresh[:failed] {
		if e := a.store.Unpin(o); e != nil {
			a.log.Error("a pin could not be taken back", "key", o.Key, "error", e)
		}
	}
	var room *blockstore.NoRoomError
	if !errors.As(err, &room) {
		return err
	}
	return a.noRoom(room.Missing, len(fresh))
}

func (a *Agent) noRoom(lack int64, files int) error {
	u := a.store.Usage()
	return fmt.Errorf("no room for %d files in %s: %d bytes are missing (%d of %d bytes used, %d more reserved); evict something, or give the cache a larger size: %w",
		files, u.Dir, lack, u.Used, u.Budget, u.Reserved, covey.ErrFull)
}

// Unpin ends every pin at or below a path.
func (a *Agent) Unpin(ctx context.Context, path string) (gateway.Pinned, error) {
	r := gateway.Pinned{Path: path}
	err := a.sweep(ctx, path, nil, func(_ place, o covey.Object) error {
		if !a.store.Stat(o).Pinned {
			return nil
		}
		r.Files++
		r.Bytes += o.Size
		if err := a.store.Unpin(o); err != nil {
			return err
		}
		r.Changed++
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("unpin %s: %w", path, err)
	}
	return r, nil
}

// Evict frees what is cached at or below a path, unless any of it is pinned.
func (a *Agent) Evict(ctx context.Context, path string) (gateway.Evicted, error) {
	r := gateway.Evicted{Path: path}
	err := a.sweep(ctx, path, func(du blockstore.Du) error {
		if du.Pinned > 0 {
			return fmt.Errorf("%d of the files there are %w", du.Pinned, blockstore.ErrPinned)
		}
		return nil
	}, func(p place, o covey.Object) error {
		freed, err := a.evictObject(ctx, p.ds, o)
		r.Freed += freed
		if err == nil {
			r.Files++
		}
		return err
	})
	if err != nil {
		return r, fmt.Errorf("evict %s: %w", path, err)
	}
	return r, nil
}

// sweep calls do for every object of a path that is cached or pinned, at any
// version, until it fails, after check (which may be nil) agreed to their sum.
// Nobody else changes pins or evicts by path meanwhile.
func (a *Agent) sweep(ctx context.Context, path string, check func(blockstore.Du) error, do func(place, covey.Object) error) error {
	p, err := a.place(ctx, path)
	if err != nil {
		return err
	}
	defer p.release()
	done, err := a.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	du, err := a.store.Du(p.holds)
	if err != nil {
		return err
	}
	if du.Objects+du.Pinned == 0 {
		return p.known(ctx)
	}
	if check != nil {
		if err := check(du); err != nil {
			return err
		}
	}
	// The store holds no lock while it asks, so that the answer may be to evict.
	var failed error
	_, err = a.store.Du(func(o covey.Object) bool {
		if failed == nil && p.holds(o) {
			if failed = ctx.Err(); failed == nil {
				failed = do(p, o)
			}
		}
		return false
	})
	return errors.Join(failed, err)
}

// slots are an object's blocks in one extent.
type slots struct {
	extent *covey.Extent
	of     covey.Bitmap
}

// evictObject evicts, and then tells the extents' homes, so that they send no
// neighbour here.
func (a *Agent) evictObject(ctx context.Context, ds *dataset.Dataset, o covey.Object) (freed int64, err error) {
	held := a.heldSlots(ctx, ds, o)
	if freed, err = a.store.Evict(o); err != nil {
		return freed, err
	}
	for id, s := range held {
		// A reader may have brought some of it back already.
		if gone := s.of &^ a.store.Present(s.extent); gone != 0 {
			a.directory.Announce(dht.Have{Extent: id, Gone: gone})
		}
	}
	return freed, nil
}

// heldSlots returns where the blocks of an object that are here are advertised.
// Blocks whose extent cannot be told (they were cut to another block size once)
// are left out: who is sent here for them is told that they are gone.
func (a *Agent) heldSlots(ctx context.Context, ds *dataset.Dataset, o covey.Object) map[covey.ExtentID]slots {
	file := strings.TrimPrefix(o.Key, ds.Prefix())
	entry := dataset.Entry{Name: path.Base(file), Kind: dataset.File, Size: o.Size, Version: o.Version}
	held := map[covey.ExtentID]slots{}
	if ds.Object(file, entry) != o {
		return held
	}
	for i := range o.Blocks() {
		e, slot, err := ds.Extent(ctx, file, entry, i)
		if err != nil {
			a.log.Debug("extent of an evicted block is not known", "key", o.Key, "error", err)
			break
		}
		if a.store.Present(e).Has(slot) {
			s := held[e.ID]
			held[e.ID] = slots{extent: e, of: s.of | covey.Bitmap(1)<<slot}
		}
	}
	return held
}
