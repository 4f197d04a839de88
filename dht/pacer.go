package dht

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// maxPaced is how many origins a home slows down at once; the one that was
	// throttled longest ago gives way.
	maxPaced = 64

	// cutEvery is how often the rate is halved at most: the requests that were
	// under way when the origin began to refuse all report the same event.
	cutEvery = time.Second

	// minGrantRate keeps an origin probed, in grants a second at one home.
	minGrantRate = 0.5

	// heardRate is what a home that only heard of a refusal goes down to at most:
	// it does not know what its own grants had to do with it.
	heardRate = 4

	// pacedFor is how long after the last refusal an origin is slowed down. S3
	// scales a prefix up within minutes.
	pacedFor = time.Minute

	// rateWindow is over what time the rate before the first refusal is measured.
	rateWindow = time.Second

	// maxThrottleWait bounds what an asker is told to wait.
	maxThrottleWait = 5 * time.Second
)

// pacer slows the grants of origins that throttle: halved at a refusal, and
// raised by a twentieth of the rate at that refusal (at least half a grant a
// second) each second without one. Every home paces what it grants itself; the
// askers carry the news from one home to the next.
//
// mu is a leaf lock and guards all of it.
type pacer struct {
	mu      sync.Mutex
	buckets map[uint64]*pace
}

// pace is one origin's. rate is 0 while the origin is not slowed down.
type pace struct {
	rate, step float64 // grants a second, and what it gains each second
	tokens     float64
	last       time.Time // when tokens and rate were brought up to date
	cut        time.Time // when the rate was last halved
	// granted counts in the window that began at since, before any refusal.
	granted int
	since   time.Time
	before  float64 // grants a second in the window before
}

// take asks for one grant. When it may not be, after is when to ask again.
func (p *pacer) take(bucket uint64, now time.Time) (after time.Duration, ok bool) {
	if bucket == 0 {
		return 0, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.of(bucket, now)
	b.advance(now)
	if b.rate == 0 {
		b.granted++
		return 0, true
	}
	if b.tokens >= 1 {
		b.tokens--
		return 0, true
	}
	// Whoever asks now is not alone: spread over twice the time to a token.
	wait := time.Duration((1 - b.tokens) / b.rate * (1 + rand.Float64()) * float64(time.Second))
	return min(wait, maxThrottleWait), false
}

// throttled takes the news that the origin refuses requests: of a read that was
// granted here, or only heard.
func (p *pacer) throttled(bucket uint64, heard bool, now time.Time) {
	if bucket == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.of(bucket, now)
	b.advance(now)
	if b.rate > 0 && now.Sub(b.cut) < cutEvery {
		return
	}
	rate := b.rate
	if rate == 0 {
		rate = max(b.before, float64(b.granted)/rateWindow.Seconds())
		b.tokens = 0
	}
	least := minGrantRate
	if heard {
		least = heardRate
		if b.rate > 0 {
			least = min(least, b.rate)
		}
	}
	b.rate = max(rate/2, least)
	b.step = max(b.rate/20, minGrantRate)
	b.cut = now
}

func (p *pacer) of(bucket uint64, now time.Time) *pace {
	b := p.buckets[bucket]
	if b != nil {
		return b
	}
	if p.buckets == nil {
		p.buckets = map[uint64]*pace{}
	}
	if len(p.buckets) >= maxPaced {
		var oldest uint64
		for k, b := range p.buckets {
			if o := p.buckets[oldest]; o == nil || b.last.Before(o.last) {
				oldest = k
			}
		}
		delete(p.buckets, oldest)
	}
	b = &pace{last: now, since: now}
	p.buckets[bucket] = b
	return b
}

// advance brings the rate, the tokens and the window up to now.
func (b *pace) advance(now time.Time) {
	if b.rate > 0 && now.Sub(b.cut) >= pacedFor {
		*b = pace{last: now, since: now}
	}
	passed := now.Sub(b.last).Seconds()
	b.last = now
	if b.rate > 0 {
		// A tenth of a second may come at once: a question asks for several.
		b.tokens = min(b.tokens+b.rate*passed, max(1, b.rate/10))
		b.rate += b.step * passed
		return
	}
	if age := now.Sub(b.since); age >= rateWindow {
		b.before = float64(b.granted) / age.Seconds()
		b.granted, b.since = 0, now
	}
}
