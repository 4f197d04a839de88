package peer

import (
	"errors"

	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey/peer/internal/member"
)

// networkMetrics are what a network counts. Families that the fixed list of
// metrics names keep those names.
type networkMetrics struct {
	live           prometheus.Gauge
	sent, received prometheus.Counter
	violations     *prometheus.CounterVec
	refusedJoins   prometheus.Counter
	refusedStreams prometheus.Counter
	refusedPlain   prometheus.Counter
	foreign        *prometheus.CounterVec
	trimmed        prometheus.Counter
}

// newNetworkMetrics registers the metrics. A registry that already has them (a
// second network in one process) is an error.
func newNetworkMetrics(r prometheus.Registerer) (*networkMetrics, error) {
	m := &networkMetrics{
		live:           prometheus.NewGauge(prometheus.GaugeOpts{Name: "covey_peers", Help: "Live members other than this one."}),
		sent:           prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_exchange_sent_bytes_total", Help: "Block bytes sent to other members."}),
		received:       prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_exchange_received_bytes_total", Help: "Block bytes received from other members."}),
		violations:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "covey_protocol_violations_total", Help: "Streams ended because the other side broke the protocol."}, []string{"protocol"}),
		refusedJoins:   prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_refused_joins_total", Help: "Joins that failed the membership check, on either side."}),
		refusedStreams: prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_refused_streams_total", Help: "Streams of unknown peers that were reset."}),
		refusedPlain:   prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_refused_plain_connections_total", Help: "Connections to the plain data plane that showed no good token, or were too many."}),
		foreign:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "covey_foreign_protocols_total", Help: "Times that a member was found to speak no version of a protocol that this node does."}, []string{"protocol"}),
		trimmed:        prometheus.NewCounter(prometheus.CounterOpts{Name: "covey_trimmed_connections_total", Help: "Members' connections that were closed, by either side, for being too many."}),
	}
	var errs []error
	for _, c := range m.all() {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *networkMetrics) violation(p protocol.ID) {
	m.violations.WithLabelValues(string(p)).Inc()
}

func (m *networkMetrics) setLive(t *member.Table) {
	ids, _ := t.Live()
	m.live.Set(float64(len(ids) - 1))
}

// unregister lets another network use the registry.
func (m *networkMetrics) unregister(r prometheus.Registerer) {
	for _, c := range m.all() {
		r.Unregister(c)
	}
}

func (m *networkMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.live, m.sent, m.received, m.violations, m.refusedJoins, m.refusedStreams, m.refusedPlain, m.foreign, m.trimmed}
}
