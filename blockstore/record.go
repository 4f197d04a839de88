package blockstore

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/covey-cache/covey"
)

// The kinds of record in the index, each the first byte of its key. FORMAT.md
// has the diagrams.
const (
	keyBlock    = 'b' // ObjectID, index: digest, checksum, place, form
	keyCipher   = 'c' // KeyID: blocks may be encrypted under that key
	keyExtent   = 'e' // ExtentID, slot: which block is advertised there
	keyPin      = 'k' // ObjectID: the name of an object that is to be kept
	keyMark     = 'm' // the last group, and whether the store was closed after it
	keyObject   = 'o' // ObjectID: the object's name, for people and eviction
	keyPresence = 'p' // ObjectID: which blocks are here; the table is read from it
)

// recordVersion is the first byte of every value. A record of another version is
// treated as unreadable, so that a later format can change one kind at a time.
const recordVersion = 1

// codedVersion is the version of a record of a block that is not stored as it is.
const codedVersion = 2

// record is what the index keeps of one block.
type record struct {
	digest covey.Digest
	crc    uint32 // CRC32C of the bytes in the slot
	place  covey.Place
	coding *coding // nil where those are the block's own
	// from says where the block came from; the index has that of all blocks of an
	// object together, in its presence.
	from provenance
}

// provenance is where a block came from.
type provenance struct {
	replica bool // from a neighbour
	many    bool // which has it with many others
}

// use is the disk use of a block of plain bytes.
func (r *record) use(plain int64) int64 {
	if r.coding != nil {
		return diskUse(int64(r.coding.stored))
	}
	return diskUse(plain)
}

// blockKey names a block within the store.
type blockKey struct {
	id    covey.ObjectID
	index uint32
}

func (k blockKey) append(b []byte) []byte {
	b = append(b, keyBlock)
	b = append(b, k.id[:]...)
	return binary.BigEndian.AppendUint32(b, k.index)
}

func objectKey(kind byte, id covey.ObjectID) []byte {
	return append(append(make([]byte, 0, 33), kind), id[:]...)
}

func extentKey(p covey.Place) []byte {
	b := append(make([]byte, 0, 34), keyExtent)
	b = append(b, p.Extent[:]...)
	return append(b, p.Slot)
}

const blockValueLen = 1 + 32 + 4 + 32 + 1

func (r record) encode() []byte {
	b := append(make([]byte, 0, blockValueLen), recordVersion)
	b = append(b, r.digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, r.crc)
	b = append(b, r.place.Extent[:]...)
	b = append(b, r.place.Slot)
	if r.coding == nil {
		return b
	}
	b[0] = codedVersion
	return r.coding.append(b)
}

func parseRecord(b []byte) (r record, err error) {
	if len(b) < blockValueLen || b[blockValueLen-1] >= covey.MaxExtentBlocks {
		return r, badRecord("block", b)
	}
	rest, ok := b[blockValueLen:], false
	switch b[0] {
	case recordVersion:
		ok = len(rest) == 0
	case codedVersion:
		r.coding, ok = parseCoding(rest)
	}
	if !ok {
		return record{}, badRecord("block", b)
	}
	copy(r.digest[:], b[1:])
	r.crc = binary.LittleEndian.Uint32(b[33:])
	copy(r.place.Extent[:], b[37:])
	r.place.Slot = b[69]
	return r, nil
}

// advert is a record of the extent index: the block in one slot.
type advert struct {
	key    blockKey
	place  covey.Place
	digest covey.Digest
}

const advertValueLen = 1 + 32 + 4 + 32

func (a advert) appendValue(b []byte) []byte {
	b = append(b, recordVersion)
	b = append(b, a.key.id[:]...)
	b = binary.BigEndian.AppendUint32(b, a.key.index)
	return append(b, a.digest[:]...)
}

func parseAdvert(key, value []byte) (a advert, err error) {
	if len(key) != 34 || key[33] >= covey.MaxExtentBlocks || len(value) != advertValueLen || value[0] != recordVersion {
		return a, badRecord("extent", value)
	}
	copy(a.place.Extent[:], key[1:])
	a.place.Slot = key[33]
	copy(a.key.id[:], value[1:])
	a.key.index = binary.BigEndian.Uint32(value[33:])
	copy(a.digest[:], value[37:])
	return a, nil
}

// presence is which blocks of an object are durable, with as much of its shape as
// the table and the budget need.
type presence struct {
	group           uint64 // that last changed it
	size, blockSize int64
	whole           bool
	bits            []byte // bit i of byte i/8; nil when whole
	// coded says that some block is not stored as it is; then use is what all
	// that are here take, in units.
	coded bool
	use   uint32
	// replica says that every block that is here came from a neighbour; else
	// replicas, unless nil, says which did.
	replica  bool
	replicas []byte
	added    uint32 // when it came, in seconds since 1970; 0 when that does not matter
}

// The bits of a presence record's second byte.
const (
	presenceWhole = 1 << iota
	presenceCoded
	presenceReplica
	presenceMixed
	presenceTimed
)

func (p *presence) has(i int) bool { return p.whole || p.bits[i/8]>>(uint(i)%8)&1 == 1 }

func (p *presence) object() covey.Object {
	return covey.Object{Size: p.size, BlockSize: p.blockSize}
}

func (p *presence) encode() []byte {
	b := []byte{recordVersion, 0}
	if p.whole {
		b[len(b)-1] |= presenceWhole
	}
	if p.coded {
		b[len(b)-1] |= presenceCoded
	}
	if p.replica {
		b[len(b)-1] |= presenceReplica
	}
	if p.replicas != nil {
		b[len(b)-1] |= presenceMixed
	}
	if p.added > 0 {
		b[len(b)-1] |= presenceTimed
	}
	b = binary.AppendUvarint(b, p.group)
	b = binary.AppendUvarint(b, uint64(p.size))
	b = binary.AppendUvarint(b, uint64(p.blockSize))
	if p.coded {
		b = binary.AppendUvarint(b, uint64(p.use))
	}
	if p.added > 0 {
		b = binary.AppendUvarint(b, uint64(p.added))
	}
	b = append(b, p.bits...)
	return append(b, p.replicas...)
}

func parsePresence(b []byte) (p presence, err error) {
	if len(b) < 2 || b[0] != recordVersion || b[1] > presenceWhole|presenceCoded|presenceReplica|presenceMixed|presenceTimed {
		return p, badRecord("presence", b)
	}
	p.whole, p.coded = b[1]&presenceWhole != 0, b[1]&presenceCoded != 0
	p.replica = b[1]&presenceReplica != 0
	mixed, timed := b[1]&presenceMixed != 0, b[1]&presenceTimed != 0
	rest := b[2:]
	var f [5]uint64
	for i := range f {
		if i == 3 && !p.coded || i == 4 && !timed {
			continue
		}
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return p, badRecord("presence", b)
		}
		f[i], rest = v, rest[n:]
	}
	if f[1] > uint64(covey.MaxObjectSize) || f[2] < uint64(covey.MinBlockSize) || f[2] > uint64(covey.MaxBlockSize) {
		return p, badRecord("presence", b)
	}
	if f[4] > math.MaxUint32 || p.replica && mixed {
		return p, badRecord("presence", b)
	}
	p.group, p.size, p.blockSize, p.added = f[0], int64(f[1]), int64(f[2]), uint32(f[4])
	n := p.object().Blocks()
	mask := (n + 7) / 8
	want := mask
	if p.whole {
		want = 0
	}
	if mixed {
		want += mask
	}
	if n > math.MaxUint32 || len(rest) != want {
		return p, badRecord("presence", b)
	}
	if mixed {
		p.replicas, rest = rest[len(rest)-mask:], rest[:len(rest)-mask]
	}
	if p.coded {
		if f[3] > uint64(DiskUse(p.object())/unit) || p.size > maxCoded {
			return p, badRecord("presence", b)
		}
		p.use = uint32(f[3])
	}
	p.bits = rest
	return p, nil
}

func encodeObject(o covey.Object) []byte {
	b := []byte{recordVersion}
	for _, s := range [...]string{o.Origin, o.Key, o.Version} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = binary.AppendUvarint(b, uint64(o.Size))
	return binary.AppendUvarint(b, uint64(o.BlockSize))
}

func parseObject(b []byte) (o covey.Object, err error) {
	if len(b) == 0 || b[0] != recordVersion {
		return o, badRecord("object", b)
	}
	rest := b[1:]
	for _, to := range [...]*string{&o.Origin, &o.Key, &o.Version} {
		n, k := binary.Uvarint(rest)
		if k <= 0 || n > uint64(len(rest)-k) {
			return o, badRecord("object", b)
		}
		*to, rest = string(rest[k:k+int(n)]), rest[k+int(n):]
	}
	for _, to := range [...]*int64{&o.Size, &o.BlockSize} {
		n, k := binary.Uvarint(rest)
		if k <= 0 || n > uint64(covey.MaxObjectSize) {
			return o, badRecord("object", b)
		}
		*to, rest = int64(n), rest[k:]
	}
	if len(rest) != 0 {
		return o, badRecord("object", b)
	}
	return o, o.Validate()
}

// mark says how far the index is durable.
type mark struct {
	group uint64 // the last one written
	clean bool   // the store was closed after it
}

func (m mark) encode() []byte {
	b := []byte{recordVersion, 0}
	if m.clean {
		b[len(b)-1] = 1
	}
	return binary.LittleEndian.AppendUint64(b, m.group)
}

func parseMark(b []byte) (m mark, err error) {
	if len(b) != 10 || b[0] != recordVersion || b[1] > 1 {
		return m, badRecord("mark", b)
	}
	return mark{group: binary.LittleEndian.Uint64(b[2:]), clean: b[1] == 1}, nil
}

func badRecord(kind string, b []byte) error {
	return fmt.Errorf("%s record of %d bytes in the index: %w", kind, len(b), covey.ErrCorrupt)
}
