package dataset

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the counters of all data sets of an agent.
type Metrics struct {
	stale    prometheus.Counter
	hidden   prometheus.Counter
	listings *prometheus.CounterVec
}

// NewMetrics registers the counters; it must be called once per registry.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := newMetrics()
	reg.MustRegister(m.stale, m.hidden, m.listings)
	return m
}

func newMetrics() *Metrics {
	return &Metrics{
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "covey_dataset_stale_answers_total",
			Help: "Lookups and directory reads answered from what was known, past its age, because the origin could not be reached.",
		}),
		hidden: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "covey_dataset_hidden_keys_total",
			Help: "Keys met in listings that cannot be shown as file names.",
		}),
		listings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_dataset_listings_total",
			Help: "Directory listings, by how they ended.",
		}, []string{"result"}),
	}
}
