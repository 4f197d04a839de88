package blockstore

import (
	"fmt"

	"github.com/covey-cache/covey"
)

// readAt reads from the block's bytes: those of the file, or what they decode to.
func (h *handle) readAt(p []byte, off int64) (int, error) {
	if h.r.coding == nil {
		return h.f.ReadAt(p, h.off+off)
	}
	b, err := h.decoded()
	if err != nil {
		return 0, err
	}
	defer h.s.coder.decoded.put(b)
	return copy(p, b.buf.b[off:]), nil
}

// decoded returns the block's plain bytes, which the caller gives back.
func (h *handle) decoded() (*decodedBlock, error) {
	key := decodedKey{h.key(), h.r.digest}
	return h.s.coder.decoded.get(key, h.len, h.decode)
}

func (h *handle) key() blockKey { return blockKey{h.l.Object.ID(), uint32(h.l.Index)} }

func (h *handle) decode(plain []byte) error {
	return h.s.coder.decode(h.key(), &h.r, h.f, h.off, plain)
}

// verifyCoded decodes the block, and compares the digest if asked to. Each decoding
// compares the checksum.
func (h *handle) verifyCoded(digest bool) error {
	if !digest {
		b, err := h.decoded() // whoever asked for the block reads it next
		if err == nil {
			h.s.coder.decoded.put(b)
		}
		return err
	}
	buf := getBuffer(h.len) // not through the cache: what is on disk counts
	defer buf.free()
	if err := h.decode(buf.b); err != nil {
		return err
	}
	if covey.Sum(buf.b) != h.r.digest {
		return errMismatch
	}
	return nil
}

// likeness is what the blocks of an object say about how the next is stored.
type likeness uint8

const (
	likeNone likeness = iota // there are none
	likeRaw
	likeCoded
)

// codedLike says how the blocks are stored that an object has already. A short last
// block says nothing of the others. mu is held.
func (s *tier) codedLike(o covey.Object, id covey.ObjectID) likeness {
	e := s.table.find(&id)
	switch last := o.Blocks() - 1; {
	case e == nil || e.count == 0:
		return likeNone
	case e.flags&flagCoded != 0:
		return likeCoded
	case e.count == 1 && last > 0 && s.table.has(e, last) && o.BlockRange(last).Len < samples*sampleLen:
		return likeNone
	}
	return likeRaw
}

// compresses decides whether a block is to be compressed. With auto, an object is
// sampled at its first block, and the others follow: one that is raw stays whole
// and fit for passthrough. Encrypted objects do not tell whether they are
// compressed as well, so each of their blocks is sampled.
func (s *tier) compresses(o covey.Object, data []byte, like likeness) bool {
	p := s.coder.pack
	switch {
	case p.mode == compressOff || o.Size > maxCoded:
		return false
	case p.mode == compressZstd:
		return true
	case like == likeNone || s.coder.keys != nil:
		return p.pays(data)
	}
	return like == likeCoded
}

// write writes the block in the form in which it is kept, and completes its record.
func (s *tier) write(l covey.Locator, k blockKey, r *record, data []byte, like likeness) error {
	if s.coder.keys != nil && l.Size > maxCoded {
		return fmt.Errorf("objects of more than %d bytes are not encrypted: %w", maxCoded, covey.ErrFull)
	}
	wait := startSums(data, r.digest)
	coding, buf, err := s.coder.encode(k, data, s.compresses(l.Object, data, like))
	stored := data
	if coding != nil {
		stored = buf.b
		defer buf.free()
	}
	if err == nil {
		err = s.writeSlot(l, k, stored)
		s.metrics.storedBytes.Add(float64(len(stored)))
	}
	sums := wait()
	r.digest, r.crc, r.coding = sums.digest, sums.crc, coding
	if coding != nil {
		r.crc = crcOf(stored)
	}
	return err
}

// writeSlot writes what is stored of a block into its slot. What a crash may have
// left behind the end of a shorter one is cleared out: it would take room that
// nobody counts, and may be what is not to be on this disk in the clear.
func (s *tier) writeSlot(l covey.Locator, k blockKey, stored []byte) error {
	r := l.Range()
	if int64(len(stored)) < r.Len && s.unswept.Load() {
		if err := ignoreMissing(s.data.punch(k.id, r)); err != nil {
			return err
		}
	}
	return s.data.write(k.id, r.Off, stored)
}
