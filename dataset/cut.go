package dataset

import (
	"sort"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/covey-cache/covey"
)

// How blocks are grouped into extents. Every peer must come to the same groups
// from the same listing, and a changed listing should leave most of them alone,
// because the directory and the DHT know blocks by their extent.
//
// An object of 16 blocks or more is large: it has extents of its own, of 64
// blocks each but the last. What follows is about the small files of one
// directory, with 1 to 15 blocks; empty files and links have none.
//
// The small files are taken in ascending byte order of the name. An extent ends
// in front of a file when that would not fit into 64 blocks, or when the extent
// has at least 16 blocks and the file is a boundary: when the lowest five bits of
// the first byte of BLAKE3-256 of the whole key are less than the file's number
// of blocks. That is one in 32 of one-block files and one block in 32 of any, so
// that the mean extent has about 40 blocks. After a file comes or goes, the
// groups agree again from the first boundary on that both have reached with 16
// blocks, which takes two or three extents.
//
// Only the first 262,144 entries of a directory are grouped; each small file
// behind them is an extent of its own. A peer that has not listed the directory
// thus knows the extent of any file after ten seconds of listing at most. The
// price is that advertising those files costs up to 40 times as much, so it
// pays to spread larger sets over directories, as most do.
const (
	largeBlocks  = 16
	minGroup     = 16
	boundaryMask = 1<<5 - 1
	groupedFirst = 1 << 18
)

// boundary reports whether an extent may end in front of the file of that many
// blocks.
func boundary(key string, blocks int) bool {
	h := blake3.Sum256([]byte(key))
	return int(h[0]&boundaryMask) < blocks
}

// cuts finds the groups of a listing. It takes in entries as far as somebody
// asked, so that a directory that is only looked at costs nothing.
type cuts struct {
	// mu is a leaf lock.
	mu sync.Mutex
	// starts are the indexes of the first file of each group, ascending.
	starts []uint32
	fed    int // entries taken in
	blocks int // in the last group so far
}

// group returns the entries from which on and up to which the group of small
// file i reaches. ok is false as long as its end is not listed yet.
func (c *cuts) group(v *view, i int, prefix string, blockSize int64) (start, end int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.feed(v, prefix, blockSize)
	k := sort.Search(len(c.starts), func(k int) bool { return int(c.starts[k]) > i })
	if k == 0 {
		return 0, 0, false
	}
	start = int(c.starts[k-1])
	switch {
	case k < len(c.starts):
		return start, int(c.starts[k]), true
	case c.fed == groupedFirst || v.done && v.err == nil && c.fed >= v.n:
		return start, min(v.n, groupedFirst), true
	}
	return 0, 0, false
}

func (c *cuts) feed(v *view, prefix string, blockSize int64) {
	if c.fed >= min(v.n, groupedFirst) {
		return
	}
	for ch, j := range v.from(c.fed) {
		if c.fed == groupedFirst {
			return
		}
		if n := smallBlocks(&ch.recs[j], blockSize); n > 0 {
			if len(c.starts) == 0 || c.blocks+n > covey.MaxExtentBlocks ||
				c.blocks >= minGroup && boundary(prefix+ch.name(j), n) {
				c.starts = append(c.starts, uint32(c.fed))
				c.blocks = 0
			}
			c.blocks += n
		}
		c.fed++
	}
}

// smallBlocks returns the blocks of a small file, and 0 for everything else.
func smallBlocks(r *record, blockSize int64) int {
	if r.kind != File || r.size <= 0 {
		return 0
	}
	if n := (r.size + blockSize - 1) / blockSize; n < largeBlocks {
		return int(n)
	}
	return 0
}
