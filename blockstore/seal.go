package blockstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/covey-cache/covey"
)

const (
	nonceLen = 24
	tagLen   = 16
	ivLen    = 12
)

// blockCipher makes the AES-256-GCM cipher and the initialisation vector of one
// writing of one block: both are derived from the key and a random nonce of 192
// bits. GCM by itself has 96 bits, after 2^32 random ones of which one key must not
// be used any more, and a thousand nodes with one key file write that in weeks.
func blockCipher(key *[keyLen]byte, nonce *[nonceLen]byte) (cipher.AEAD, []byte, error) {
	var material [keyLen + nonceLen]byte
	copy(material[copy(material[:], key[:]):], nonce[:])
	var out [32 + ivLen]byte
	blake3.DeriveKey("covey 2026-01-01 cache block key v1", material[:], out[:])
	b, err := aes.NewCipher(out[:32])
	if err != nil {
		return nil, nil, err
	}
	gcm, err := cipher.NewGCM(b)
	return gcm, out[32:], err
}

// sealedFor is what a block's encryption is bound to: which block of which object
// it is, in which form and of what length. A block that was moved to another slot
// or file, with its record or without, does not open there.
func sealedFor(k blockKey, c codec, plain int) []byte {
	b := append(make([]byte, 0, 64), "covey/block/1"...)
	b = append(b, byte(c))
	b = append(b, k.id[:]...)
	b = binary.BigEndian.AppendUint32(b, k.index)
	return binary.BigEndian.AppendUint64(b, uint64(plain))
}

// coder is how a store codes blocks, in all of its tiers. Its methods may be called
// concurrently.
type coder struct {
	pack    *packer
	keys    *Keys
	decoded *decodedCache
}

func newCoder(opts Options) (*coder, error) {
	pack, err := newPacker(opts.Compress)
	if err != nil {
		return nil, fmt.Errorf("compress with %s: %w", opts.Compress, err)
	}
	return &coder{pack: pack, keys: opts.Keys, decoded: newDecodedCache(opts.DecodedBytes)}, nil
}

// encode brings a block into the form in which it is stored: the coding, and the
// bytes in a buffer that the caller frees. Both are nil for a block that is stored
// as it is. compress says to try that, if the store compresses at all.
func (f *coder) encode(k blockKey, data []byte, compress bool) (*coding, *buffer, error) {
	if f.keys == nil && !compress {
		return nil, nil, nil
	}
	c := &coding{}
	buf := getBuffer(len(data) + tagLen)
	plain := data // of the encryption
	if compress && f.pack.pack(data, buf) {
		c.codec, plain = codecZstd, buf.b
	} else if f.keys == nil {
		buf.free()
		return nil, nil, nil
	}
	if f.keys != nil {
		if err := f.seal(k, c, len(data), plain, buf); err != nil {
			buf.free()
			return nil, nil, err
		}
	}
	c.stored = uint32(len(buf.b))
	return c, buf, nil
}

// seal encrypts b into buf, which b may be the whole of. The tag goes into the
// record, so that a block never needs more than its slot.
func (f *coder) seal(k blockKey, c *coding, plain int, b []byte, buf *buffer) error {
	c.codec |= codecSealed
	c.key = f.keys.ids[0]
	_, _ = rand.Read(c.nonce[:]) // it never fails; it ends the process instead
	gcm, iv, err := blockCipher(f.keys.byID[c.key], &c.nonce)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	sealed := gcm.Seal(buf.b[:0], iv, b, sealedFor(k, c.codec, plain))
	n := len(sealed) - tagLen
	copy(c.tag[:], sealed[n:])
	buf.b = sealed[:n]
	return nil
}

// errNoKey says that a block is encrypted under a key that the store was not given.
var errNoKey = fmt.Errorf("its key is missing: %w", covey.ErrUnavailable)

// decode brings a block that is stored as c says back into plain, whose length is
// the block's. An error that wraps errMismatch says that the bytes are not those
// that were stored.
func (f *coder) decode(k blockKey, r *record, file io.ReaderAt, off int64, plain []byte) error {
	c := r.coding
	if int64(c.stored) > int64(len(plain)) {
		return fmt.Errorf("record of %d bytes for a block of %d: %w", c.stored, len(plain), errMismatch)
	}
	buf := getBuffer(int(c.stored) + tagLen)
	defer buf.free()
	stored := buf.b[:c.stored]
	if n, err := file.ReadAt(stored, off); n < len(stored) {
		if err == nil || errors.Is(err, io.EOF) {
			return fmt.Errorf("file ends within the block: %w", errMismatch)
		}
		return err
	}
	if crcOf(stored) != r.crc {
		return errMismatch
	}
	switch c.codec {
	case codecZstd:
		return f.pack.unpack(stored, plain)
	case codecSealed:
		return f.open(k, c, stored, plain, len(plain))
	}
	if err := f.open(k, c, stored, stored, len(plain)); err != nil {
		return err
	}
	return f.pack.unpack(stored, plain)
}

// open decrypts stored, which has room for the tag behind it, into to, which is
// the same or as long.
func (f *coder) open(k blockKey, c *coding, stored, to []byte, plain int) error {
	if len(to) != len(stored) {
		return fmt.Errorf("record of %d bytes for a block of %d: %w", len(stored), plain, errMismatch)
	}
	if !f.keys.has(c.key) {
		return fmt.Errorf("key %s: %w", c.key, errNoKey)
	}
	gcm, iv, err := blockCipher(f.keys.byID[c.key], &c.nonce)
	if err != nil {
		return fmt.Errorf("decrypt: %w: %w", err, covey.ErrUnavailable)
	}
	if _, err := gcm.Open(to[:0], iv, append(stored, c.tag[:]...), sealedFor(k, c.codec, plain)); err != nil {
		return fmt.Errorf("decrypt: %w: %w", err, errMismatch)
	}
	return nil
}
