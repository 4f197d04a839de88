// Package tfrecord finds the records of TensorFlow's record files.
//
// A record is its length (8 bytes, little-endian), the masked CRC-32C of those 8
// bytes (4), the data, and the masked CRC-32C of the data (4). There is no index:
// records are found by going from one to the next, of which only the 12 bytes in
// front need be read.
package tfrecord

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/covey-cache/covey"
)

const (
	headSize = 12
	tailSize = 4
	// MaxRecord is the longest record that is believed: TensorFlow itself cannot
	// take apart a message of more than 2 GiB.
	MaxRecord = 2 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mask is what TensorFlow does to a checksum that is stored with its data.
func mask(crc uint32) uint32 { return (crc>>15 | crc<<17) + 0xa282ead8 }

// Index returns where each record of a file of the given size lies, framing
// included, so that the ranges follow each other without a gap. At most so many
// records are found; more are an error that wraps covey.ErrInvalid, as is a file
// that ends within a record. A length that its checksum contradicts is
// covey.ErrCorrupt.
//
// The data between is not read; [Check] holds it against its checksum.
func Index(r io.ReaderAt, size int64, most int) ([]covey.Range, error) {
	var found []covey.Range
	var head [headSize]byte
	for at := int64(0); at < size; {
		if len(found) == most {
			return nil, fmt.Errorf("more than %d records: %w", most, covey.ErrInvalid)
		}
		length, err := readHead(r, at, size, &head)
		if err != nil {
			return nil, fmt.Errorf("record %d at %d: %w", len(found), at, err)
		}
		whole := headSize + length + tailSize
		if whole > size-at {
			return nil, fmt.Errorf("record %d at %d of %d bytes ends behind the file's %d: %w", len(found), at, length, size, covey.ErrInvalid)
		}
		found = append(found, covey.Range{Off: at, Len: whole})
		at += whole
	}
	return found, nil
}

// readHead reads the length of the record at an offset.
func readHead(r io.ReaderAt, at, size int64, head *[headSize]byte) (int64, error) {
	if size-at < headSize {
		return 0, fmt.Errorf("the file ends %d bytes into it: %w", size-at, covey.ErrInvalid)
	}
	if n, err := r.ReadAt(head[:], at); n < headSize {
		if err == nil || errors.Is(err, io.EOF) {
			err = covey.ErrUnavailable
		}
		return 0, fmt.Errorf("%d bytes of its head: %w", n, err)
	}
	length := binary.LittleEndian.Uint64(head[:])
	if mask(crc32.Checksum(head[:8], castagnoli)) != binary.LittleEndian.Uint32(head[8:]) {
		return 0, fmt.Errorf("the checksum of its length is wrong: %w", covey.ErrCorrupt)
	}
	if length > MaxRecord {
		return 0, fmt.Errorf("%d bytes, more than %d: %w", length, int64(MaxRecord), covey.ErrInvalid)
	}
	return int64(length), nil
}

// Check reads a record, as [Index] found it, and returns its data if both
// checksums hold; covey.ErrCorrupt when one does not.
func Check(r io.ReaderAt, at covey.Range) ([]byte, error) {
	if at.Len < headSize+tailSize || at.Len > headSize+MaxRecord+tailSize {
		return nil, fmt.Errorf("record of %d bytes: %w", at.Len, covey.ErrInvalid)
	}
	b := make([]byte, at.Len)
	if n, err := r.ReadAt(b, at.Off); n < len(b) {
		return nil, fmt.Errorf("read the record at %d: %d of %d bytes: %w", at.Off, n, len(b), errors.Join(err, covey.ErrUnavailable))
	}
	data := b[headSize : len(b)-tailSize]
	switch {
	case binary.LittleEndian.Uint64(b) != uint64(len(data)),
		mask(crc32.Checksum(b[:8], castagnoli)) != binary.LittleEndian.Uint32(b[8:]),
		mask(crc32.Checksum(data, castagnoli)) != binary.LittleEndian.Uint32(b[len(b)-tailSize:]):
		return nil, fmt.Errorf("record at %d: a checksum is wrong: %w", at.Off, covey.ErrCorrupt)
	}
	return data, nil
}
