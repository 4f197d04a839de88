package sim

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/testnet/scenario"
)

// payload is the real bytes that stand for one whole block. A digest of them is
// a digest, and a wrong bit in them is a wrong bit; only the clock takes them
// for the block's full length. 256 bytes hash in a microsecond, which is what
// lets a thousand nodes read twenty million blocks in minutes.
const payload = 256

// data is the data set: its objects, blocks and extents, and what is in them.
// It is immutable.
//
// Sizes in locators are those of the payload; wire turns them into what the
// scenario says.
type data struct {
	scale   float64 // bytes on the wire for one byte of payload
	objects []covey.Object
	first   []int // of each object, the number of its first block
	blocks  []block
	content []byte // of all blocks, payload each
	extents []*covey.Extent
	starts  []int // of each extent, the number of its first block; they are contiguous
	byID    map[covey.ExtentID]int
	bytes   int64 // on the wire, of all blocks
}

// block is one block by number.
type block struct {
	locator covey.Locator
	digest  covey.Digest
	extent  int32
	slot    uint8
	len     uint16 // of payload
}

const (
	originName = "sim://origin"
	keyPrefix  = "data/"
)

func newData(d scenario.Data, seed uint64) *data {
	w := &data{scale: float64(d.Block) / payload, byID: map[covey.ExtentID]int{}}
	size := max(1, int64(float64(d.Size)/w.scale+0.5))
	for i := range d.Objects {
		o := covey.Object{
			Origin: originName, Key: fmt.Sprintf("%s%08d", keyPrefix, i), Version: fmt.Sprintf("v%d", seed),
			Size: size, BlockSize: payload,
		}
		w.objects = append(w.objects, o)
		w.first = append(w.first, len(w.blocks))
		for b := range o.Blocks() {
			n := o.BlockRange(b).Len
			w.blocks = append(w.blocks, block{locator: o.Block(b), len: uint16(n)})
			w.bytes += w.wire(int(n))
		}
	}
	w.fill(seed)
	w.cut()
	return w
}

// fill makes the contents: f(seed, block, offset).
func (w *data) fill(seed uint64) {
	w.content = make([]byte, len(w.blocks)*payload)
	for i := range w.blocks {
		g := rand.NewPCG(seed, uint64(i))
		p := w.content[i*payload : (i+1)*payload]
		for at := 0; at < payload; at += 8 {
			binary.LittleEndian.PutUint64(p[at:], g.Uint64())
		}
		w.blocks[i].digest = covey.Sum(w.bytesOf(i))
	}
}

// cut makes the extents as a listing would be cut: large objects every 64
// blocks, small ones grouped at boundaries that a hash of the name decides, 16 to
// 64 blocks each.
func (w *data) cut() {
	var group []covey.Locator
	flush := func() {
		if len(group) == 0 {
			return
		}
		e := covey.NewExtent(group)
		n := len(w.extents)
		w.extents = append(w.extents, e)
		w.starts = append(w.starts, w.number(group[0]))
		w.byID[e.ID] = n
		for slot, l := range group {
			b := &w.blocks[w.number(l)]
			b.extent, b.slot = int32(n), uint8(slot)
		}
		group = nil
	}
	for i, o := range w.objects {
		id := o.ID()
		boundary := len(group) >= 16 && id[0] < 8
		if n := o.Blocks(); n >= covey.MaxExtentBlocks || boundary || len(group)+n > covey.MaxExtentBlocks {
			flush()
		}
		for b := range o.Blocks() {
			if group = append(group, o.Block(b)); len(group) == covey.MaxExtentBlocks {
				flush()
			}
		}
		if o.Blocks() >= covey.MaxExtentBlocks || i == len(w.objects)-1 {
			flush()
		}
	}
}

// number returns the number of a locator's block, -1 when it is not of this data
// set. The key says it, which is cheaper than a map of locators.
func (w *data) number(l covey.Locator) int {
	if len(l.Key) <= len(keyPrefix) {
		return -1
	}
	o, err := strconv.Atoi(l.Key[len(keyPrefix):])
	if err != nil || o < 0 || o >= len(w.objects) || l.Index < 0 || l.Index >= w.objects[o].Blocks() {
		return -1
	}
	return w.first[o] + l.Index
}

// bytesOf returns the payload of a block; nobody may change it.
func (w *data) bytesOf(i int) []byte {
	return w.content[i*payload : i*payload+int(w.blocks[i].len)]
}

// wire is how long n bytes of payload are for the clock and the counters.
func (w *data) wire(n int) int64 { return int64(float64(n) * w.scale) }

// size is the length of a block on the wire.
func (w *data) size(i int) int64 { return w.wire(int(w.blocks[i].len)) }
