package fetch

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// neighbourCollectors are the metrics of how neighbours are chosen and left.
func (f *Fetcher) neighbourCollectors() []prometheus.Collector {
	count := func(name, help string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, load(n))
	}
	h := f.hedges
	audited := func(result string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "covey_audits_total", ConstLabels: prometheus.Labels{"result": result},
			Help: "Blocks from neighbours that were read from the origin as well, by what came of it.",
		}, load(n))
	}
	return []prometheus.Collector{
		audited("same", &f.audits.same), audited("differ", &f.audits.differ), audited("failed", &f.audits.failed),
		count("covey_quarantined_blocks_total", "Blocks of which two values were seen, read from the origin only for a while.", &f.audits.quarantined),
		count("covey_fetch_hedges_total", "Blocks that a second neighbour was asked for because the first was silent or late.", &h.begun),
		count("covey_fetch_hedges_won_total", "Hedges that had the block first.", &h.won),
		count("covey_fetch_hedges_denied_total", "Hedges that did not begin because too much had been wasted.", &h.denied),
		count("covey_fetch_hedge_wasted_bytes_total", "Bytes that two neighbours sent and one was used of.", &h.wasted),
		count("covey_fetch_slow_neighbours_total", "Times that a neighbour was left in the middle of a block for carrying too little.", &h.left),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "covey_fetch_banned_peers",
			Help: "Peers that are not asked for blocks because they sent wrong bytes.",
		}, func() float64 { return float64(f.neighbours.bans()) }),
	}
}
