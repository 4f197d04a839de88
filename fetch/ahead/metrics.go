package ahead

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey/fetch"
)

// metrics are this package's counters.
type metrics struct {
	bytes   [3]prometheus.Counter
	dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "covey_plan_bytes_total",
		Help: "Bytes of blocks that were fetched because a plan foresaw them, by source.",
	}, []string{"source"})
	m := &metrics{dropped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "covey_plans_dropped_total",
		Help: "Plans that more than 1 % of the reads contradicted.",
	})}
	for s := fetch.Local; s <= fetch.Origin; s++ {
		m.bytes[s] = bytes.WithLabelValues(s.String())
	}
	if reg != nil {
		reg.MustRegister(bytes, m.dropped)
	}
	return m
}

func (m *metrics) fetched(from fetch.Source, n int64) { m.bytes[from].Add(float64(n)) }
