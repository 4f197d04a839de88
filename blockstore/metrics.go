package blockstore

import "github.com/prometheus/client_golang/prometheus"

// metrics are one tier's. The label is its directory.
type metrics struct {
	registry   prometheus.Registerer
	collectors []prometheus.Collector

	admitted, refused, corrupt, unreadable, evicted, stalls prometheus.Counter
	plainBytes, storedBytes, scrubbed                       prometheus.Counter
	commit                                                  prometheus.Histogram
}

func newMetrics(s *tier, r prometheus.Registerer) *metrics {
	tier := prometheus.Labels{"tier": s.opts.Dir}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_blockstore_" + name, Help: help, ConstLabels: tier})
	}
	gauge := func(name, help string, f func(Usage) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "covey_blockstore_" + name, Help: help, ConstLabels: tier},
			func() float64 { return f(s.Usage()) })
	}
	m := &metrics{
		registry:    r,
		admitted:    counter("admitted_blocks_total", "Blocks written."),
		refused:     counter("refused_blocks_total", "Blocks not admitted: no room, or a fault."),
		evicted:     counter("evicted_objects_total", "Objects that gave way."),
		corrupt:     counter("corrupt_blocks_total", "Blocks whose bytes on disk had changed."),
		unreadable:  counter("unreadable_blocks_total", "Blocks that the disk did not give back."),
		stalls:      counter("stalls_total", "Times that the disk did not answer and the tier was passed by."),
		plainBytes:  counter("plain_bytes_total", "Bytes of the blocks written, before compression."),
		storedBytes: counter("stored_bytes_total", "Bytes written for them."),
		scrubbed:    counter("scrubbed_bytes_total", "Bytes read again and compared in idle time."),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "covey_blockstore_commit_seconds", Help: "Time to make a group of blocks durable.",
			ConstLabels: tier,
			// From a fast NVMe's sync to a disk that stalls.
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
	m.collectors = []prometheus.Collector{
		m.admitted, m.refused, m.corrupt, m.unreadable, m.evicted, m.stalls, m.plainBytes, m.storedBytes, m.scrubbed, m.commit,
		gauge("bytes", "Disk use of the blocks held.", func(u Usage) float64 { return float64(u.Used) }),
		gauge("budget_bytes", "Most disk use allowed.", func(u Usage) float64 { return float64(u.Budget) }),
		gauge("reserved_bytes", "Room kept free for pinned objects that are not whole.", func(u Usage) float64 { return float64(u.Reserved) }),
		gauge("pinned_objects", "Objects that are pinned, here or not.", func(u Usage) float64 { return float64(u.Pinned) }),
		gauge("blocks", "Blocks held.", func(u Usage) float64 { return float64(u.Blocks) }),
		gauge("objects", "Objects of which any block is held.", func(u Usage) float64 { return float64(u.Objects) }),
		gauge("whole_objects", "Objects of which every block is held.", func(u Usage) float64 { return float64(u.Whole) }),
		gauge("read_only", "1 after a disk fault stopped admission.", func(u Usage) float64 {
			if u.ReadOnly {
				return 1
			}
			return 0
		}),
	}
	if r != nil {
		for _, c := range m.collectors {
			r.MustRegister(c)
		}
	}
	return m
}

// close takes the metrics off the registry, so that the directory can be opened
// again.
func (m *metrics) close() {
	if m.registry == nil {
		return
	}
	for _, c := range m.collectors {
		m.registry.Unregister(c)
	}
}

// watch registers what a coder did, for all tiers; the function returned takes it
// off again.
func (c *coder) watch(r prometheus.Registerer) (unwatch func()) {
	if r == nil {
		return func() {}
	}
	counter := func(result string, f func(decodedStats) int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "covey_blockstore_decoded_reads_total", ConstLabels: prometheus.Labels{"result": result},
			Help: "Reads of blocks that are compressed or encrypted on disk: hit where the plain bytes were in memory.",
		}, func() float64 { return float64(f(c.decoded.stats())) })
	}
	all := []prometheus.Collector{
		counter("hit", func(s decodedStats) int64 { return s.hits }),
		counter("miss", func(s decodedStats) int64 { return s.misses }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "covey_blockstore_decoded_bytes", Help: "Plain bytes of such blocks in memory.",
		}, func() float64 { return float64(c.decoded.stats().size) }),
	}
	for _, m := range all {
		r.MustRegister(m)
	}
	return func() {
		for _, m := range all {
			r.Unregister(m)
		}
	}
}
