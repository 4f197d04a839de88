package plan

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/covey-cache/covey"
)

// SpecSize is how many bytes a [Spec] takes.
const SpecSize = 40

const (
	specVersion = 1
	// kindDistributed is the order of torch's DistributedSampler, the only kind
	// so far.
	kindDistributed = 1

	flagShuffle  = 1 << 0
	flagDropLast = 1 << 1
	flagsKnown   = flagShuffle | flagDropLast

	// maxWorld bounds the ranks of a job, far above any and low enough that
	// Samples plus a round of ranks cannot overflow.
	maxWorld = 1 << 24
)

// Spec describes one epoch of one job, as torch's DistributedSampler would have
// it. The zero value is invalid, since a job has at least one rank.
type Spec struct {
	// Samples is the length of the data set, at most MaxSamples.
	Samples uint64
	// Seed is the sampler's seed; a negative one is its two's complement. The
	// epoch is added to it, so it must not be added before.
	Seed  uint64
	Epoch uint32
	// World is the number of ranks.
	World uint32
	// Base is where in the epoch's order this world takes over, in samples of
	// all ranks together. It is 0 unless a job went on with another number of
	// ranks, or from a checkpoint.
	Base uint64
	// RankMap names the table of which node has which rank, among those posted
	// with the job's manifest. 0 means that nobody said.
	RankMap uint32
	// Shuffle says that the order is a permutation and not 0, 1, 2, …
	Shuffle bool
	// DropLast leaves out the samples that do not fill a round of all ranks;
	// otherwise the order begins again to fill it.
	DropLast bool
}

// Validate returns every fault of the spec, each wrapping ErrInvalid.
func (s Spec) Validate() error {
	var faults []error
	if s.Samples > MaxSamples {
		faults = append(faults, fmt.Errorf("plan of %d samples, more than %d: %w", s.Samples, uint64(MaxSamples), covey.ErrInvalid))
	}
	if s.World == 0 || s.World > maxWorld {
		faults = append(faults, fmt.Errorf("plan for %d ranks, not 1 to %d: %w", s.World, maxWorld, covey.ErrInvalid))
	}
	// The last round may have been padded by less than a round of ranks.
	if s.Base > s.Samples+maxWorld {
		faults = append(faults, fmt.Errorf("plan from sample %d of %d: %w", s.Base, s.Samples, covey.ErrInvalid))
	}
	return errors.Join(faults...)
}

// PerRank is how many samples each rank reads.
func (s Spec) PerRank() uint64 {
	if s.World == 0 || s.Base >= s.Samples {
		return 0
	}
	left, world := s.Samples-s.Base, uint64(s.World)
	if !s.DropLast {
		left += world - 1
	}
	return left / world
}

// OrderBytes is what an [Order] of the spec needs in memory when it was read to
// its end: 4 bytes a sample, 400 MB for 100 million. Without Shuffle it needs
// nothing.
func (s Spec) OrderBytes() int64 {
	if !s.Shuffle {
		return 0
	}
	return 4 * int64(min(s.Samples, MaxSamples))
}

// AppendBinary appends the 40 bytes to b. All numbers are little-endian:
//
//	 0  version, 1
//	 1  kind, 1: DistributedSampler
//	 2  flags, 2 bytes: 1 shuffle, 2 drop last
//	 4  world, 4 bytes
//	 8  samples, 8 bytes
//	16  seed, 8 bytes
//	24  base, 8 bytes
//	32  epoch, 4 bytes
//	36  rank map, 4 bytes
//
// The error is that of Validate.
func (s Spec) AppendBinary(b []byte) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return b, err
	}
	var flags uint16
	if s.Shuffle {
		flags |= flagShuffle
	}
	if s.DropLast {
		flags |= flagDropLast
	}
	b = append(b, specVersion, kindDistributed)
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = binary.LittleEndian.AppendUint32(b, s.World)
	b = binary.LittleEndian.AppendUint64(b, s.Samples)
	b = binary.LittleEndian.AppendUint64(b, s.Seed)
	b = binary.LittleEndian.AppendUint64(b, s.Base)
	b = binary.LittleEndian.AppendUint32(b, s.Epoch)
	return binary.LittleEndian.AppendUint32(b, s.RankMap), nil
}

// MarshalBinary returns the 40 bytes that AppendBinary appends.
func (s Spec) MarshalBinary() ([]byte, error) {
	return s.AppendBinary(make([]byte, 0, SpecSize))
}

// UnmarshalBinary reads what AppendBinary wrote. Bytes of another length, of a
// version, kind or flag that is not known, or of an invalid spec are refused with
// ErrInvalid, and s is unchanged.
func (s *Spec) UnmarshalBinary(b []byte) error {
	if len(b) != SpecSize {
		return fmt.Errorf("plan of %d bytes, not %d: %w", len(b), SpecSize, covey.ErrInvalid)
	}
	if b[0] != specVersion || b[1] != kindDistributed {
		return fmt.Errorf("plan of version %d, kind %d: %w", b[0], b[1], covey.ErrInvalid)
	}
	flags := binary.LittleEndian.Uint16(b[2:])
	if flags&^flagsKnown != 0 {
		return fmt.Errorf("plan with flags %#x: %w", flags, covey.ErrInvalid)
	}
	read := Spec{
		World:    binary.LittleEndian.Uint32(b[4:]),
		Samples:  binary.LittleEndian.Uint64(b[8:]),
		Seed:     binary.LittleEndian.Uint64(b[16:]),
		Base:     binary.LittleEndian.Uint64(b[24:]),
		Epoch:    binary.LittleEndian.Uint32(b[32:]),
		RankMap:  binary.LittleEndian.Uint32(b[36:]),
		Shuffle:  flags&flagShuffle != 0,
		DropLast: flags&flagDropLast != 0,
	}
	if err := read.Validate(); err != nil {
		return err
	}
	*s = read
	return nil
}
