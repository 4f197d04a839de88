package blockstore

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/covey-cache/covey"
)

// Compression says how blocks are compressed on disk. The zero value is none.
type Compression struct {
	mode compressMode
	// level is one of zstd's, 1 to 22; 0 is its usual one.
	level int
}

type compressMode uint8

const (
	compressOff compressMode = iota
	// compressAuto compresses the objects of which a sample says that it pays.
	compressAuto
	compressZstd
)

// ParseCompression reads "off", "auto", "zstd" or "zstd:LEVEL", with zstd's levels
// 1 to 22, of which the encoder tells four apart (1, 3, 7 and 11). Errors wrap
// [covey.ErrInvalid].
func ParseCompression(s string) (Compression, error) {
	name, level, levelled := strings.Cut(s, ":")
	c := Compression{}
	switch name {
	case "off":
	case "auto":
		c.mode, c.level = compressAuto, 1
	case "zstd":
		c.mode = compressZstd
	default:
		return c, fmt.Errorf("compression %q, want off, auto, zstd or zstd:LEVEL: %w", s, covey.ErrInvalid)
	}
	if !levelled {
		return c, nil
	}
	n, err := strconv.Atoi(level)
	if name != "zstd" || err != nil || n < 1 || n > 22 {
		return Compression{}, fmt.Errorf("compression %q: a level is one of zstd:1 to zstd:22: %w", s, covey.ErrInvalid)
	}
	c.level = n
	return c, nil
}

// String is what ParseCompression reads.
func (c Compression) String() string {
	switch {
	case c.mode == compressOff:
		return "off"
	case c.mode == compressAuto:
		return "auto"
	case c.level == 0:
		return "zstd"
	}
	return "zstd:" + strconv.Itoa(c.level)
}

// packer compresses and expands blocks. Its methods may be called concurrently.
// It starts no goroutine.
type packer struct {
	mode compressMode
	enc  *zstd.Encoder // nil when nothing is compressed
	dec  *zstd.Decoder
	// probe is the encoder of samples.
	probe *zstd.Encoder
}

// packWindow is how far back a match may lie. A fourth of the default block finds
// nearly all there is to find, in a fourth of the memory for each encoder.
const packWindow = 1 << 20

func newPacker(c Compression) (p *packer, err error) {
	p = &packer{mode: c.mode}
	// The bound on memory is one for the frame's own claims; what is written is
	// bounded by the block's length.
	p.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(uint64(covey.MaxBlockSize)))
	if err != nil || c.mode == compressOff {
		return p, err
	}
	level := zstd.SpeedDefault
	if c.level != 0 {
		level = zstd.EncoderLevelFromZstd(c.level)
	}
	if p.enc, err = newEncoder(level); err != nil {
		return nil, err
	}
	p.probe, err = newEncoder(zstd.SpeedFastest)
	return p, err
}

func newEncoder(level zstd.EncoderLevel) (*zstd.Encoder, error) {
	// No checksum in the frame: the record has one of the bytes on disk, and the
	// digest of the plain ones. Literals are always entropy coded: arrays of numbers
	// have few matches, and bytes that are far from equally likely.
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithWindowSize(packWindow), zstd.WithEncoderCRC(false),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(true))
}

const (
	// sampleLen and samples say what is looked at of an object: 64 KiB of a block
	// take 0.2 ms, a tenth of what compressing all of it does.
	sampleLen = 8 << 10
	samples   = 8
	// payRatio is the most that a sample may keep of its length: below a tenth
	// of saving, the disk's room does not make up for passthrough, which only raw
	// objects have.
	payRatio = 0.9
)

// pays reports whether an object whose block this is should be compressed.
func (p *packer) pays(data []byte) bool {
	if p.mode != compressAuto {
		return p.mode == compressZstd
	}
	buf := getBuffer(2 * sampleLen)
	defer buf.free()
	taken, kept := 0, 0
	step := max(len(data)/samples, sampleLen)
	for off := 0; off < len(data); off += step {
		piece := data[off:min(off+sampleLen, len(data))]
		taken += len(piece)
		kept += len(p.probe.EncodeAll(piece, buf.b[:0]))
	}
	return float64(kept) <= payRatio*float64(taken)
}

// pack compresses a block into buf, or reports that it saves no disk.
func (p *packer) pack(data []byte, buf *buffer) bool {
	buf.b = p.enc.EncodeAll(data, buf.b[:0])
	return diskUse(int64(len(buf.b))) < diskUse(int64(len(data)))
}

// unpack expands one frame that fills plain exactly. Anything else is an error that
// wraps errMismatch, and no more than plain is written or allocated for it.
func (p *packer) unpack(frame, plain []byte) error {
	if err := checkFrame(frame, len(plain)); err != nil {
		return fmt.Errorf("zstd frame of %d bytes: %w: %w", len(frame), err, errMismatch)
	}
	got, err := p.dec.DecodeAll(frame, plain[:0:len(plain)])
	switch {
	case err != nil:
		return fmt.Errorf("zstd frame of %d bytes: %w: %w", len(frame), err, errMismatch)
	case len(got) != len(plain):
		return fmt.Errorf("zstd frame of %d bytes has %d, not %d: %w", len(frame), len(got), len(plain), errMismatch)
	}
	return nil
}

// checkFrame sees to it that the bytes are one frame of the wanted length, made
// without a dictionary, and nothing else.
func checkFrame(frame []byte, plain int) error {
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return err
	}
	switch {
	case h.Skippable:
		return fmt.Errorf("skippable")
	case h.DictionaryID != 0:
		return fmt.Errorf("needs dictionary %d", h.DictionaryID)
	case h.HasCheckSum:
		return fmt.Errorf("has a checksum")
	case !h.HasFCS || h.FrameContentSize != uint64(plain):
		return fmt.Errorf("is of %d bytes, not %d", h.FrameContentSize, plain)
	}
	return checkBlocks(frame[h.HeaderSize:])
}

// checkBlocks walks a frame's blocks, which must end where the bytes do.
func checkBlocks(b []byte) error {
	for {
		if len(b) < 3 {
			return fmt.Errorf("ends within a block")
		}
		// Last block 1 bit, type 2, size 21.
		h := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		n := int(h >> 3)
		if h>>1&3 == 1 { // one byte, repeated
			n = 1
		}
		if b = b[3:]; n > len(b) {
			return fmt.Errorf("ends within a block")
		}
		if b = b[n:]; h&1 == 1 {
			break
		}
	}
	if len(b) > 0 {
		return fmt.Errorf("has %d bytes behind its end", len(b))
	}
	return nil
}

// coding is the form of a block that is not stored as it is.
type coding struct {
	codec  codec
	stored uint32 // bytes in the slot
	key    KeyID  // when sealed
	nonce  [nonceLen]byte
	tag    [tagLen]byte
}

// codec says what was done to a block's bytes: a set of steps, in this order.
type codec uint8

const (
	codecZstd codec = 1 << iota
	codecSealed
	codecAll = codecZstd | codecSealed
)

func (c *coding) append(b []byte) []byte {
	b = append(b, byte(c.codec))
	b = binary.AppendUvarint(b, uint64(c.stored))
	if c.codec&codecSealed == 0 {
		return b
	}
	b = append(b, c.key[:]...)
	b = append(b, c.nonce[:]...)
	return append(b, c.tag[:]...)
}

// parseCoding reads all of b.
func parseCoding(b []byte) (*coding, bool) {
	if len(b) == 0 || b[0] == 0 || codec(b[0])&^codecAll != 0 {
		return nil, false
	}
	c := &coding{codec: codec(b[0])}
	stored, n := binary.Uvarint(b[1:])
	if n <= 0 || stored == 0 || stored > math.MaxUint32 {
		return nil, false
	}
	c.stored = uint32(stored)
	b = b[1+n:]
	if c.codec&codecSealed == 0 {
		return c, len(b) == 0
	}
	if len(b) != len(c.key)+nonceLen+tagLen {
		return nil, false
	}
	b = b[copy(c.key[:], b):]
	b = b[copy(c.nonce[:], b):]
	copy(c.tag[:], b)
	return c, true
}

// buffer is memory for a block, from a pool.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// getBuffer returns a buffer of n bytes, with anything in them.
func getBuffer(n int) *buffer {
	b := buffers.Get().(*buffer)
	if cap(b.b) < n {
		b.b = make([]byte, n)
	}
	b.b = b.b[:n]
	return b
}

func (b *buffer) free() { buffers.Put(b) }
