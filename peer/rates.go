package peer

import (
	"math"
	"sync/atomic"
	"time"
)

// rateEvery is how often throughput is sampled, and rateWeight the weight of a
// sample: the average follows within a few seconds, which is as fast as somebody
// looks again.
const (
	rateEvery  = time.Second
	rateWeight = 0.3
)

// throughput is the rate of a byte counter, an exponential average. Run alone
// samples it; anybody may read it.
type throughput struct {
	last    uint64
	average atomic.Uint64 // bits of a float64, bytes a second
}

func (r *throughput) sample(total uint64, over time.Duration) {
	now := float64(total-r.last) / over.Seconds()
	r.last = total
	old := math.Float64frombits(r.average.Load())
	r.average.Store(math.Float64bits(old + (now-old)*rateWeight))
}

// perSecond returns the average in bytes a second.
func (r *throughput) perSecond() float64 { return math.Float64frombits(r.average.Load()) }

// sampleRates takes the throughput of every link.
func (n *Network) sampleRates() {
	now := time.Now()
	over := now.Sub(n.sampled)
	if over < rateEvery {
		return
	}
	n.sampled = now
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.sentRate.sample(l.sent.Load(), over)
		l.receivedRate.sample(l.received.Load(), over)
	}
}
