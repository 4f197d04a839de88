package blockstore

import (
	"hash/crc32"
	"runtime"

	"github.com/covey-cache/covey"
)

// sums are what a block's bytes are recognised by.
type sums struct {
	digest covey.Digest
	crc    uint32
}

// sumAside is the least data that is summed on another processor than the one
// that writes it. Handing work over and waiting for it takes some 5 us; hashing
// this much takes 60, checking it 10.
const sumAside = 256 << 10

// startSums begins to sum a block's bytes, beside what its caller does next, and
// returns a function that waits for the result. The CRC32C is computed always, the
// digest only if it is not known. The bytes must not change meanwhile, and the
// function must be called.
func startSums(data []byte, known covey.Digest) (wait func() sums) {
	sum := func() sums {
		s := sums{digest: known, crc: crcOf(data)}
		if known.IsZero() {
			s.digest = covey.Sum(data)
		}
		return s
	}
	if len(data) < sumAside || runtime.GOMAXPROCS(0) == 1 {
		return sum
	}
	c := make(chan sums, 1)
	go func() { c <- sum() }()
	return func() sums { return <-c }
}

// crcOf is what a record has of the bytes in a slot.
func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
