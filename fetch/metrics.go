package fetch

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Totals are what a Fetcher has counted since it was made.
type Totals struct {
	// Bytes by source, as covey_fetch_bytes_total: a local hit counts the
	// block's bytes at each Get, a fetch counts them once however many callers
	// share it.
	Local, Neighbour, Origin int64
	// Overrides are the reads from the origin that no home had granted.
	Overrides int64
	// StagingBytes is the memory now taken by blocks under way and by handles on
	// them; Handles are the holds on such blocks.
	StagingBytes, Handles int64
	// Flights are the fetches under way, Queued the blocks that wait to be
	// prefetched.
	Flights, Queued int
	// Of the blocks given to Prefetch: those queued, those begun that have ended
	// (well or not), and those dropped.
	PrefetchQueued, PrefetchEnded, PrefetchDropped int64
}

// metrics counts in atomics, which Totals and the registered collectors read.
type metrics struct {
	bytes           [3]atomic.Int64
	overrides       atomic.Int64
	prefetchQueued  atomic.Int64
	prefetchEnded   atomic.Int64
	prefetchDropped atomic.Int64
	prefetchForgone atomic.Int64
	ranged          atomic.Int64
	seconds         [3]prometheus.Observer
}

// fetchBuckets span a local hit in the page cache to the deadline of a fetch.
var fetchBuckets = []float64{
	100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3,
	.1, .25, .5, 1, 2.5, 5, 10, 30,
}

func newMetrics(f *Fetcher, reg prometheus.Registerer) *metrics {
	m := &metrics{}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "covey_fetch_seconds",
		Help:    "Time from asking for a block to having its bytes, by source.",
		Buckets: fetchBuckets,
	}, []string{"source"})
	collectors := []prometheus.Collector{seconds}
	for s := Local; s <= Origin; s++ {
		m.seconds[s] = seconds.WithLabelValues(s.String())
		collectors = append(collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "covey_fetch_bytes_total",
			Help:        "Bytes of blocks that reads and prefetch got, by source.",
			ConstLabels: prometheus.Labels{"source": s.String()},
		}, load(&m.bytes[s])))
	}
	collectors = append(collectors, f.neighbourCollectors()...)
	collectors = append(collectors,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "covey_origin_overrides_total",
			Help: "Reads from the origin that no home had granted.",
		}, load(&m.overrides)),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "covey_fetch_prefetch_dropped_total",
			Help: "Blocks that were not prefetched because the queue or the store was full.",
		}, load(&m.prefetchDropped)),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "covey_fetch_ranged_reads_total",
			Help: "Exact ranges that were read from the origin because the store has no room for their blocks.",
		}, load(&m.ranged)),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "covey_fetch_prefetch_forgone_total",
			Help: "Queued blocks that were taken back because their reader went elsewhere.",
		}, load(&m.prefetchForgone)),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "covey_fetch_staging_bytes",
			Help: "Memory taken by blocks under way and by handles on them.",
		}, func() float64 { return float64(f.staging.inUse()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "covey_fetch_flights",
			Help: "Fetches under way.",
		}, func() float64 { return float64(f.table.len()) }),
	)
	if reg != nil {
		reg.MustRegister(collectors...)
	}
	return m
}

func load(n *atomic.Int64) func() float64 {
	return func() float64 { return float64(n.Load()) }
}

// count adds one fetch, or one local hit.
func (m *metrics) count(s Source, bytes int, took time.Duration) {
	m.bytes[s].Add(int64(bytes))
	m.seconds[s].Observe(took.Seconds())
}

// Totals returns what was counted so far.
func (f *Fetcher) Totals() Totals {
	return Totals{
		Local:           f.metrics.bytes[Local].Load(),
		Neighbour:       f.metrics.bytes[Neighbour].Load(),
		Origin:          f.metrics.bytes[Origin].Load(),
		Overrides:       f.metrics.overrides.Load(),
		StagingBytes:    f.staging.inUse(),
		Handles:         f.staging.holds.Load(),
		Flights:         f.table.len(),
		Queued:          f.queue.len(),
		PrefetchQueued:  f.metrics.prefetchQueued.Load(),
		PrefetchEnded:   f.metrics.prefetchEnded.Load(),
		PrefetchDropped: f.metrics.prefetchDropped.Load(),
	}
}

// CountLocal adds to the bytes that were served from the local cache by a path
// that does not come through Get: a file that was whole when it was opened, and
// is read by the kernel itself.
func (f *Fetcher) CountLocal(n int64) { f.metrics.bytes[Local].Add(n) }
