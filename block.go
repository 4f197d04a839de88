package covey

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/zeebo/blake3"
)

// Locator names one block of an object before anyone has read it.
type Locator struct {
	Object
	// Index counts the object's blocks from 0.
	Index int
}

// BlockID is the BLAKE3-256 of a locator's canonical bytes: the part of the
// block's CID that is not constant. It says which block, not what is in it.
type BlockID [32]byte

// PeerID is a member's identity: the bytes of its libp2p peer ID. It is here so
// that packages can name a peer without importing libp2p.
type PeerID string

// Digest is the BLAKE3-256 of a block's plain bytes. The zero Digest means "not
// known".
type Digest [32]byte

// Range is Len bytes from Off on.
type Range struct{ Off, Len int64 }

// End returns the offset behind the last byte.
func (r Range) End() int64 { return r.Off + r.Len }

// AppendCanonical appends the locator's canonical bytes to b and returns it: the
// line "covey/locator/1", then origin, key and version each as an unsigned
// varint length and its bytes, then size, block size and index as unsigned
// varints. testdata/locators.json holds vectors for other languages.
func (l Locator) AppendCanonical(b []byte) []byte {
	b = l.appendFields(append(b, locatorDomain...))
	return binary.AppendUvarint(b, uint64(l.Index))
}

// ID returns the block's name.
func (l Locator) ID() BlockID {
	var buf [512]byte
	return blake3.Sum256(l.AppendCanonical(buf[:0]))
}

// Range returns the bytes of the object that the block holds.
func (l Locator) Range() Range { return l.BlockRange(l.Index) }

// Validate is [Object.Validate] and a check that the index is inside the object.
func (l Locator) Validate() error {
	if err := l.Object.Validate(); err != nil {
		return err
	}
	if l.Index < 0 || l.Index >= l.Blocks() {
		return fmt.Errorf("block %d of an object of %d blocks: %w", l.Index, l.Blocks(), ErrInvalid)
	}
	return nil
}

// String returns a form for logs, without the origin.
func (l Locator) String() string { return fmt.Sprintf("%s#%d", l.Key, l.Index) }

// ParseLocator decodes canonical bytes. What it accepts it would encode to the
// same bytes again; anything else is an error that wraps [ErrInvalid]. The
// result passes [Locator.Validate].
func ParseLocator(b []byte) (Locator, error) {
	var l Locator
	rest, ok := bytes.CutPrefix(b, []byte(locatorDomain))
	if !ok {
		return Locator{}, fmt.Errorf("locator without its domain line: %w", ErrInvalid)
	}
	for _, f := range [...]struct {
		to  *string
		max int
	}{{&l.Origin, MaxOriginLen}, {&l.Key, MaxKeyLen}, {&l.Version, MaxVersionLen}} {
		n, after, err := uvarint(rest)
		if err != nil {
			return Locator{}, err
		}
		if n > uint64(f.max) || n > uint64(len(after)) {
			return Locator{}, fmt.Errorf("locator field of %d bytes: %w", n, ErrInvalid)
		}
		*f.to, rest = string(after[:n]), after[n:]
	}
	var index int64
	for _, to := range [...]*int64{&l.Size, &l.BlockSize, &index} {
		n, after, err := uvarint(rest)
		if err != nil {
			return Locator{}, err
		}
		if n > uint64(MaxObjectSize) {
			return Locator{}, fmt.Errorf("locator number %d: %w", n, ErrInvalid)
		}
		*to, rest = int64(n), after
	}
	if len(rest) != 0 {
		return Locator{}, fmt.Errorf("%d bytes behind a locator: %w", len(rest), ErrInvalid)
	}
	if index > math.MaxUint32 {
		return Locator{}, fmt.Errorf("locator index %d: %w", index, ErrInvalid)
	}
	l.Index = int(index)
	return l, l.Validate()
}

// uvarint reads one varint in its shortest form, the only one that is canonical.
func uvarint(b []byte) (n uint64, rest []byte, err error) {
	n, k := binary.Uvarint(b)
	if k <= 0 || (k > 1 && b[k-1] == 0) {
		return 0, nil, fmt.Errorf("locator with a malformed varint: %w", ErrInvalid)
	}
	return n, b[k:], nil
}

// Sum returns the digest of a block's plain bytes.
func Sum(block []byte) Digest { return blake3.Sum256(block) }

// IsZero reports whether the digest is not known.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns the digest as lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// CID returns the block's content identifier: version 1, raw codec, BLAKE3-256.
func (id BlockID) CID() cid.Cid { return rawCID(id) }

// String returns the CID in base32.
func (id BlockID) String() string { return id.CID().String() }

func rawCID(sum [32]byte) cid.Cid {
	// Encode only fails for unknown codes and lengths; both are constant here.
	hash, err := mh.Encode(sum[:], mh.BLAKE3)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, hash)
}
