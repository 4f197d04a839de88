package plan

import (
	"context"
	"fmt"

	"github.com/covey-cache/covey"
)

const (
	// MaxSamples is how many samples a plan may have: each is named by a uint32,
	// which halves the memory that torch needs for the same order. 16 GiB of
	// memory is past what an agent has to spare; [Spec.OrderBytes] tells it before.
	MaxSamples = 1 << 32

	// wideSamples is where torch.randperm changes its algorithm, a twentieth of
	// the largest uint32: beyond it the remainder of a 32-bit draw is noticeably
	// skewed. Below it torch keeps its old behaviour for the sake of old seeds.
	wideSamples = (1<<32 - 1) / 20

	// shuffleChunk is how many draws are made between two looks at the context,
	// about ten milliseconds when each is a cache miss.
	shuffleChunk = 1 << 16
)

// shuffle is torch.randperm under way.
//
// Below wideSamples it goes forward: after k draws the first k positions are
// final, so whoever wants the start of an order does not wait for its end. The
// words hold element XOR position, so that memory fresh from the kernel already
// is the identity and a billion positions cost nothing until they are drawn. From
// wideSamples on torch builds the order inside out, and no position is final
// before the last draw.
//
// It is not safe for concurrent use.
type shuffle struct {
	rng   twister
	words []uint32
	drawn uint64
	wide  bool
}

func newShuffle(samples, seed uint64, wide bool) *shuffle {
	s := &shuffle{words: make([]uint32, samples), wide: wide}
	s.rng.seed(seed)
	return s
}

// final is how many positions at the front will not change any more.
func (s *shuffle) final() uint64 {
	if s.wide && s.drawn < uint64(len(s.words)) {
		return 0
	}
	return s.drawn
}

// at returns the element at a position below final.
func (s *shuffle) at(p uint64) uint32 {
	if s.wide {
		return s.words[p]
	}
	return s.words[p] ^ uint32(p)
}

// step makes at most shuffleChunk draws, and not more than makes the positions
// below until final.
func (s *shuffle) step(until uint64) {
	if s.wide {
		s.stepWide(min(s.drawn+shuffleChunk, uint64(len(s.words))))
		return
	}
	s.stepForward(min(s.drawn+shuffleChunk, until))
}

func (s *shuffle) stepForward(end uint64) {
	// Every index fits 32 bits below wideSamples, and a 32-bit division takes
	// half the time of a 64-bit one.
	words, left := s.words, uint32(uint64(len(s.words))-s.drawn)
	for i := uint32(s.drawn); i < uint32(end); i++ {
		if left == 1 { // torch draws nothing for the last one
			break
		}
		j := i + s.rng.uint32()%left
		a, b := words[i]^i, words[j]^j
		words[j] = a ^ j
		words[i] = b ^ i
		left--
	}
	s.drawn = end
}

func (s *shuffle) stepWide(end uint64) {
	for i := s.drawn; i < end; i++ {
		j := s.rng.uint64() % (i + 1)
		s.words[i] = s.words[j]
		s.words[j] = uint32(i)
	}
	s.drawn = end
}

// Permutation returns torch.randperm(samples, generator=g) for a generator of a
// CPU seeded with seed; a negative seed is its two's complement, as in torch. It
// needs 4 bytes a sample. The error is that of ctx, or wraps ErrInvalid.
func Permutation(ctx context.Context, samples, seed uint64) ([]uint32, error) {
	if samples > MaxSamples {
		return nil, fmt.Errorf("permutation of %d samples, more than %d: %w", samples, uint64(MaxSamples), covey.ErrInvalid)
	}
	s := newShuffle(samples, seed, samples >= wideSamples)
	for s.drawn < samples {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("shuffle %d samples: %w", samples, err)
		}
		s.step(samples)
	}
	if !s.wide {
		for i := range s.words {
			s.words[i] ^= uint32(i)
		}
	}
	return s.words, nil
}
