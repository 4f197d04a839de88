package dht

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the directory's counters. They count whether or not anybody
// registered them.
type metrics struct {
	entries   prometheus.Gauge
	wants     *prometheus.CounterVec
	conflicts prometheus.Counter
	syncs     *prometheus.CounterVec
	resolves  *prometheus.CounterVec
	dropped   prometheus.Counter
	held      prometheus.Counter
	haves     *prometheus.CounterVec
	looks     *prometheus.CounterVec
	lost      *prometheus.CounterVec
}

// newMetrics makes the metrics and registers them where reg is not nil. A
// registry that has them already (several directories in one process) shares
// them.
func newMetrics(reg prometheus.Registerer) *metrics {
	return &metrics{
		entries: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "covey_directory_entries", Help: "Extents this peer keeps an entry of."})),
		wants: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_directory_wants_total", Help: "Blocks this peer was asked for as a home, by the answer."},
			[]string{"state"})),
		conflicts: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "covey_directory_digest_conflicts_total", Help: "Reports of a digest other than the pinned one."})),
		syncs: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_directory_syncs_total", Help: "Entries this home asked its fellow homes about, by whether any answered."},
			[]string{"result"})),
		resolves: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_directory_resolves_total", Help: "Questions this peer asked, by who answered."},
			[]string{"by"})),
		haves: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_directory_haves_total", Help: "Extents that members announced here, by form: full with digests, brief without, late and left out."},
			[]string{"form"})),
		held: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "covey_directory_held_total", Help: "Questions this home kept until it could say more than to wait."})),
		lost: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_directory_leases_lost_total", Help: "Leases that ended without a report, by why: not renewed, reader failed an asker, reader did not answer this home."},
			[]string{"why"})),
		looks: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "covey_directory_looks_total", Help: "Peers this home looked at because an asker could not get blocks from them, by what it found."},
			[]string{"result"})),
		dropped: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "covey_directory_announce_dropped_total", Help: "Extents whose announcement was left to the next full refresh."})),
	}
}

func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	var twice prometheus.AlreadyRegisteredError
	if errors.As(err, &twice) {
		if old, ok := twice.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}
