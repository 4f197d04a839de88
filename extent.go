package covey

import (
	"fmt"
	"iter"
	"math/bits"

	"github.com/ipfs/go-cid"
	"github.com/zeebo/blake3"
)

// MaxExtentBlocks is how many blocks an extent can have: one for each bit of a
// [Bitmap].
const MaxExtentBlocks = 64

// ExtentID names an extent: BLAKE3-256 of its BlockIDs, one after the other.
type ExtentID [32]byte

// CID returns the extent's content identifier, under which the DHT knows it.
func (id ExtentID) CID() cid.Cid { return rawCID(id) }

// String returns the CID in base32.
func (id ExtentID) String() string { return id.CID().String() }

// Extent is up to 64 blocks that are advertised together. Which blocks belong
// together follows from the listing alone, so that every peer cuts the same
// extents without asking. An Extent is immutable once made.
type Extent struct {
	ID     ExtentID
	Blocks []Locator
}

// NewExtent returns the extent of the given blocks. It keeps the slice. It
// panics when there are none or more than [MaxExtentBlocks], which only a bug
// in the caller can bring about.
func NewExtent(blocks []Locator) *Extent {
	if len(blocks) == 0 || len(blocks) > MaxExtentBlocks {
		panic(fmt.Sprintf("covey: extent of %d blocks", len(blocks)))
	}
	ids := make([]byte, 0, 32*MaxExtentBlocks)
	for _, l := range blocks {
		id := l.ID()
		ids = append(ids, id[:]...)
	}
	return &Extent{ID: blake3.Sum256(ids), Blocks: blocks}
}

// All returns a bitmap with the bit of every block set.
func (e *Extent) All() Bitmap { return FirstBits(len(e.Blocks)) }

// Place is where in which extent a block is advertised.
type Place struct {
	Extent ExtentID
	// Slot is the block's position in the extent, from 0 to 63.
	Slot uint8
}

// Bitmap is a set of an extent's slots; bit i stands for slot i.
type Bitmap uint64

// FirstBits returns the bitmap of slots 0 to n-1.
func FirstBits(n int) Bitmap {
	if n >= MaxExtentBlocks {
		return ^Bitmap(0)
	}
	return Bitmap(1)<<n - 1
}

// Has reports whether slot i is in the set.
func (b Bitmap) Has(i int) bool { return b>>uint(i)&1 == 1 }

// With returns the set with slot i.
func (b Bitmap) With(i int) Bitmap { return b | 1<<uint(i) }

// Without returns the set without slot i.
func (b Bitmap) Without(i int) Bitmap { return b &^ (1 << uint(i)) }

// Len returns the number of slots in the set.
func (b Bitmap) Len() int { return bits.OnesCount64(uint64(b)) }

// Slots yields the slots in the set, lowest first.
func (b Bitmap) Slots() iter.Seq[int] {
	return func(yield func(int) bool) {
		for b != 0 {
			if !yield(bits.TrailingZeros64(uint64(b))) {
				return
			}
			b &= b - 1
		}
	}
}
