package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/covey-cache/covey/testnet/scenario"
)

// Sources are bytes by where they came from.
type Sources struct {
	Local     int64 `json:"local"`
	Neighbour int64 `json:"neighbour"`
	Origin    int64 `json:"origin"`
}

func (s Sources) minus(o Sources) Sources {
	return Sources{s.Local - o.Local, s.Neighbour - o.Neighbour, s.Origin - o.Origin}
}

// EpochResult is one epoch.
type EpochResult struct {
	Epoch   int     `json:"epoch"`
	Seconds float64 `json:"seconds"`
	Bytes   Sources `json:"bytes"`
}

// Point is what moved in the Seconds before At, both in virtual time.
type Point struct {
	At      float64 `json:"at"`
	Seconds float64 `json:"seconds"`
	Bytes   Sources `json:"bytes"`
}

// Strike is a fault that struck, or ended.
type Strike struct {
	At   float64 `json:"at"`
	Kind string  `json:"kind"`
	What string  `json:"what"`
	Ends bool    `json:"ends"`
}

// Check is an expectation and what came of it.
type Check struct {
	Text string  `json:"text"`
	Got  float64 `json:"got"`
	OK   bool    `json:"ok"`
}

// Result is one case of a scenario after its run.
type Result struct {
	Scenario string `json:"scenario"`
	Case     string `json:"case,omitempty"`
	Seed     uint64 `json:"seed"`
	Nodes    int    `json:"nodes"`
	Blocks   int    `json:"blocks"`
	// DataBytes is D, CacheBytes A; bytes are those on the wire throughout.
	DataBytes  int64         `json:"data_bytes"`
	CacheBytes int64         `json:"cache_bytes"`
	Bytes      Sources       `json:"bytes"`
	Epochs     []EpochResult `json:"epochs"`
	Series     []Point       `json:"series"`
	Faults     []Strike      `json:"faults,omitempty"`
	// By node: Served are the directory requests that it answered as a home, Sent
	// the messages that it sent, Gave the bytes of blocks that it sent.
	Served []int64 `json:"served"`
	Sent   []int64 `json:"sent"`
	Gave   []int64 `json:"gave"`
	// ReadP50 and ReadP99 are in seconds, within 9 %.
	Reads   int64   `json:"reads"`
	ReadP50 float64 `json:"read_p50"`
	ReadP99 float64 `json:"read_p99"`
	// Figures has what expectations can name.
	Figures map[string]float64 `json:"figures"`
	Checks  []Check            `json:"checks"`
	// Marks are the hard states that were reached, and how often.
	Marks          map[string]int64 `json:"marks"`
	VirtualSeconds float64          `json:"virtual_seconds"`
}

// OK reports whether everything was as expected.
func (r *Result) OK() bool {
	return !slices.ContainsFunc(r.Checks, func(c Check) bool { return !c.OK })
}

// result adds up what the world counted.
func (w *world) result(name string, ended time.Time) *Result {
	r := &Result{
		Scenario: name, Case: w.c.Name, Seed: w.c.Seed, Nodes: len(w.nodes), Blocks: len(w.data.blocks),
		DataBytes: w.data.bytes, CacheBytes: w.cacheBytes(), Bytes: w.totals(),
		Epochs: w.taken, Series: w.series.points, Faults: w.struck, Marks: w.marks.counts(),
		Reads: w.reads.count, ReadP50: w.reads.quantile(0.5).Seconds(), ReadP99: w.reads.quantile(0.99).Seconds(),
		VirtualSeconds: ended.Sub(w.began).Seconds(),
	}
	for _, n := range w.nodes {
		r.Served = append(r.Served, n.served.Load())
		r.Sent = append(r.Sent, n.sent.Load())
		r.Gave = append(r.Gave, n.gave.Load())
	}
	r.Figures = w.figures(r)
	// Whatever a scenario expects, bytes are those of the origin.
	safe := scenario.Expectation{Figure: "wrong_reads", Op: "=="}
	checks := append([]scenario.Expectation{safe}, w.c.Expect...)
	for _, e := range checks {
		got := r.Figures[e.Figure]
		text := cmp.Or(e.String(), "wrong_reads == 0")
		r.Checks = append(r.Checks, Check{Text: text, Got: got, OK: e.Holds(got)})
	}
	if left := r.Figures["unread"]; w.limit.Load() {
		r.Checks = append(r.Checks, Check{Text: fmt.Sprintf("all read within %v", w.c.Limit.D()), Got: left})
	}
	return r
}

// figures are what expectations can name; package scenario says what each means.
func (w *world) figures(r *Result) map[string]float64 {
	d, blocks := float64(r.DataBytes), float64(r.Blocks)
	beyond := max(0, d-float64(r.CacheBytes))
	ideal := d / min(float64(w.c.Origin.Rate), float64(w.c.Rates.NIC))
	var sent, sentBytes, served, busiest float64
	for _, n := range w.nodes {
		sent += float64(n.sent.Load())
		sentBytes += float64(n.sentBytes.Load())
		served += float64(n.served.Load())
		busiest = max(busiest, float64(n.served.Load()))
	}
	nodes := float64(len(w.nodes))
	f := map[string]float64{
		"origin_ratio":     float64(r.Bytes.Origin) / d,
		"origin_floor":     float64(r.Bytes.Origin) / (d + float64(w.c.Epochs-1)*beyond),
		"origin_avoidable": float64(w.origin.avoidable.Load()) / d,
		"late_avoidable":   float64(w.origin.late.Load()) / d,
		"origin_requests":  float64(w.origin.requests.Load()) / blocks,
		"overrides":        float64(w.overrides.Load()) / blocks,
		"read_errors":      float64(w.reads.errors),
		"wrong_reads":      float64(w.wrong.Load()),
		"unread":           float64(w.unread.Load()),
		"longest_read":     w.reads.longest.Seconds(),
		"late_reads":       w.reads.late.Seconds(),
		"late_errors":      float64(w.reads.lateErrors),
		"busiest_home":     busiest / max(1, served/nodes),
		"messages":         sent / nodes / r.VirtualSeconds,
		"message_bytes":    sentBytes / nodes / r.VirtualSeconds,
		"corrupt":          float64(w.corrupt.Load()),
	}
	if len(r.Epochs) > 0 {
		startUp := 5 * w.c.Origin.FirstByte.D().Seconds()
		f["epoch_over_ideal"] = (r.Epochs[0].Seconds - startUp) / ideal
	}
	return f
}

// maxPoints bounds a series: as many as a chart has pixels for. Beyond it two
// become one.
const maxPoints = 480

// series is bytes by source over time.
type series struct {
	step   time.Duration
	points []Point
}

// sample adds points until the run ends.
func (w *world) sample() {
	w.series.step = 20 * time.Millisecond
	last, at := w.totals(), time.Now()
	for {
		ok := w.sleep(w.ctx, w.series.step, nil)
		now, total := time.Now(), w.totals()
		w.series.points = append(w.series.points, Point{
			At: now.Sub(w.began).Seconds(), Seconds: now.Sub(at).Seconds(), Bytes: total.minus(last),
		})
		last, at = total, now
		if len(w.series.points) >= maxPoints {
			w.series.halve()
		}
		if !ok {
			return
		}
	}
}

func (s *series) halve() {
	s.step *= 2
	half := s.points[:0]
	for i := 0; i+1 < len(s.points); i += 2 {
		a, b := s.points[i], s.points[i+1]
		b.Seconds += a.Seconds
		b.Bytes = Sources{a.Bytes.Local + b.Bytes.Local, a.Bytes.Neighbour + b.Bytes.Neighbour, a.Bytes.Origin + b.Bytes.Origin}
		half = append(half, b)
	}
	s.points = half
}
