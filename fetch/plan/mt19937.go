package plan

// The Mersenne Twister's constants, as its authors gave them.
const (
	twisterSize  = 624
	twisterShift = 397
	twisterUpper = 0x80000000
	twisterLower = 0x7fffffff
	twisterXor   = 0x9908b0df
)

// twister is MT19937 as torch's generator for CPUs runs it. Only the low 32 bits
// of a seed count there, so seeds 5 and 2^32+5 give one stream.
//
// It is not safe for concurrent use.
type twister struct {
	state [twisterSize]uint32
	next  int // the first word of state not yet given out
}

func (t *twister) seed(seed uint64) {
	t.state[0] = uint32(seed)
	for i := 1; i < twisterSize; i++ {
		before := t.state[i-1]
		t.state[i] = 1812433253*(before^before>>30) + uint32(i)
	}
	t.next = twisterSize
}

// refill computes the next 624 words at once.
func (t *twister) refill() {
	s := &t.state
	for i := range twisterSize - twisterShift {
		s[i] = s[i+twisterShift] ^ twist(s[i], s[i+1])
	}
	for i := twisterSize - twisterShift; i < twisterSize-1; i++ {
		s[i] = s[i+twisterShift-twisterSize] ^ twist(s[i], s[i+1])
	}
	s[twisterSize-1] = s[twisterShift-1] ^ twist(s[twisterSize-1], s[0])
	t.next = 0
}

func twist(u, v uint32) uint32 {
	// The mask is all ones when v is odd: a branch here would be mispredicted
	// every other word.
	return (u&twisterUpper|v&twisterLower)>>1 ^ -(v&1)&twisterXor
}

// uint32 is ATen's random().
func (t *twister) uint32() uint32 {
	if t.next == twisterSize {
		t.refill()
	}
	y := t.state[t.next]
	t.next++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}

// uint64 is ATen's random64(): the word drawn first is the upper half.
func (t *twister) uint64() uint64 {
	high := uint64(t.uint32())
	return high<<32 | uint64(t.uint32())
}
