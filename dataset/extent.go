package dataset

import (
	"context"
	"fmt"

	"github.com/covey-cache/covey"
)

// maxExtents bounds the extents that are kept made up. Making one up costs 64
// hashes, about 20 µs, and a read of a large file asks for the same one 64
// times. 2,048 of about 10 KB are 20 MB.
const maxExtents = 2048

// extentKey names a made-up extent: of a listing (by its seq) and the index of
// its first file, or of one object and the index of its first block.
type extentKey struct {
	listing uint64
	path    string
	version string
	size    int64
	first   int
}

// Extent returns the extent that holds block index of the file, and the block's
// slot in it. It needs the directory's listing, at least up to the file, when
// the file is small, whatever the listing's age.
//
// A small file that the listing has in another version, or not at all, is an
// extent of its own, and so is one whose directory has more than MaxEntries or
// cannot be listed at the moment. Peers with the newer listing look for its
// blocks elsewhere then, which can cost one more read of them from the origin.
//
// It is ErrInvalid to ask for what is no file or has no such block.
func (d *Dataset) Extent(ctx context.Context, path string, e Entry, index int) (*covey.Extent, int, error) {
	o := d.Object(path, e)
	blocks := o.Blocks()
	if err := o.Validate(); err != nil {
		return nil, 0, fmt.Errorf("extent of %q in %s: %w", path, d.src.URL, err)
	}
	if e.Kind != File || index < 0 || index >= blocks {
		return nil, 0, fmt.Errorf("extent of block %d of %q in %s, a %s of %d blocks: %w",
			index, path, d.src.URL, e.Kind, blocks, covey.ErrInvalid)
	}
	if blocks >= largeBlocks {
		first := index - index%covey.MaxExtentBlocks
		return d.ownExtent(path, o, first), index - first, nil
	}
	g, err := d.grouped(ctx, path, e)
	if err != nil {
		return nil, 0, err
	}
	if g.listing == nil {
		return d.ownExtent(path, o, 0), index, nil
	}
	return d.groupExtent(g), g.slot + index, nil
}

// ownExtent returns the extent of up to 64 blocks of one object.
func (d *Dataset) ownExtent(path string, o covey.Object, first int) *covey.Extent {
	key := extentKey{path: path, version: o.Version, size: o.Size, first: first}
	return d.extent(key, func() []covey.Locator {
		last := min(first+covey.MaxExtentBlocks, o.Blocks())
		blocks := make([]covey.Locator, 0, last-first)
		for i := first; i < last; i++ {
			blocks = append(blocks, o.Block(i))
		}
		return blocks
	})
}

// group is where in a listing a small file's extent is. The zero group means
// that the file is an extent of its own.
type group struct {
	listing    *listing
	view       *view
	start, end int
	slot       int // of the file's first block
}

func (d *Dataset) groupExtent(g group) *covey.Extent {
	key := extentKey{listing: g.listing.seq, first: g.start}
	return d.extent(key, func() []covey.Locator {
		blocks := make([]covey.Locator, 0, covey.MaxExtentBlocks)
		for c, i := range g.view.between(g.start, g.end) {
			n := smallBlocks(&c.recs[i], d.opts.BlockSize)
			if n == 0 {
				continue
			}
			e := c.entry(i)
			o := d.Object(joinPath(g.listing.path, e.Name), e)
			for b := range n {
				blocks = append(blocks, o.Block(b))
			}
		}
		return blocks
	})
}

// extent returns the extent from the cache or makes it up. Two callers may do so
// at the same time; the extents are equal.
func (d *Dataset) extent(key extentKey, blocks func() []covey.Locator) *covey.Extent {
	d.mu.Lock()
	x, ok := d.extents.get(key)
	d.mu.Unlock()
	if ok {
		return x
	}
	x = covey.NewExtent(blocks())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.extents.put(key, x, 1)
	return x
}

// grouped finds the group of a small file, in the cached listing or in one that
// it waits for.
func (d *Dataset) grouped(ctx context.Context, path string, e Entry) (group, error) {
	dir, _ := splitPath(path)
	d.mu.Lock()
	l, ok := d.listings.get(dir)
	var r *run
	var err error
	if !ok {
		r, err = d.join(dir, nil)
	}
	d.mu.Unlock()
	if ok {
		g, _ := d.groupIn(l, e)
		return g, nil
	}
	if err != nil {
		return group{}, err
	}
	// A read under way wants the listing even when its caller gives up: the next
	// read of the same file would begin it again.
	defer d.leave(r, true)
	for {
		grown := r.view.Load().grown
		if g, ok := d.groupIn(r.listing, e); ok {
			return g, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return group{}, fmt.Errorf("extent of %q in %s: %w", path, d.src.URL, ctx.Err())
		}
	}
}

// groupIn finds the group of a file in a listing. ok is false as long as a
// listing under way has not got far enough.
func (d *Dataset) groupIn(l *listing, e Entry) (g group, ok bool) {
	v := l.view.Load()
	c, j, settled := v.find(e.Name)
	switch {
	case c == nil:
		return group{}, settled || v.done || v.n >= groupedFirst
	case c.base+j >= groupedFirst || !sameObject(c.entry(j), e):
		return group{}, true
	}
	i := c.base + j
	start, end, ok := l.cuts.group(v, i, d.dirKey(l.path), d.opts.BlockSize)
	if !ok {
		return group{}, v.done // a failed run knows only the groups in front
	}
	g = group{listing: l, view: v, start: start, end: end}
	for c, j := range v.between(start, i) {
		g.slot += smallBlocks(&c.recs[j], d.opts.BlockSize)
	}
	return g, true
}
