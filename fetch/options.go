package fetch

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// Options configure a Fetcher. Store, Directory, Exchange and Origins are
// needed; the zero value of everything else works.
type Options struct {
	// Self is this peer; it is never asked as a neighbour.
	Self      covey.PeerID
	Store     Store
	Directory Directory
	Exchange  Exchange
	Origins   Origins
	// Topology says how far peers are; nil means that all are equally far.
	Topology Topology

	// Manifest, if set, says what every block must hash to: nothing else is read.
	Manifest Manifest
	// AuditEvery is one in how many blocks from neighbours is read from the origin
	// as well and compared; 0 means none.
	AuditEvery int

	// OnCorrupt, if set, hears of every block whose bytes contradict the digest
	// that a home gave: source "neighbour" with the peer that sent them, source
	// "origin" with no peer when the origin itself does (then either the pinned
	// digest or the transfer is wrong, and the origin's bytes are believed). It
	// must not block.
	OnCorrupt func(source string, l covey.Locator, from covey.PeerID)

	// Crowded, if set, says that the store has no room but what it would take from
	// other blocks. It is asked for each small random read.
	Crowded func() bool

	// Deadline bounds one fetch from its first caller on; 0 means 30 s, what a
	// read through the mount waits before it is EIO.
	Deadline time.Duration
	// StagingBytes is the most memory that blocks under way, and handles on
	// bytes that the store has no room for, may take together; 0 means 256 MiB.
	// A single block larger than that is let in when it is alone.
	StagingBytes int64
	// Overrides is how many reads from the origin that no home has granted may
	// run at once; 0 means 8.
	Overrides int
	// Strict refuses every read from the origin that no home has granted: what no
	// home grants and nobody sends until the deadline is ErrUnavailable.
	Strict bool
	// Scale is how many bytes on the wire one byte of a block stands for, where
	// the fetcher measures how fast a peer is or how much a hedge may cost; 0 means
	// 1. Only a simulation has another: its blocks are short and stand for long
	// ones.
	Scale float64
	// PrefetchQueue is how many blocks may wait to be prefetched; 0 means 1024.
	PrefetchQueue int
	// PrefetchFlights is how many blocks are prefetched at once; 0 means 32.
	PrefetchFlights int

	Log      *slog.Logger          // nil discards
	Registry prometheus.Registerer // nil registers nothing
}

// The defaults of Options.
const (
	defaultDeadline = 30 * time.Second
	// defaultStaging is 64 blocks of 4 MiB: with 16 reading processes a host,
	// three blocks ahead each and the block being read. Twice that gains nothing
	// at 100 Gb/s, where 64 blocks are 21 ms of line rate.
	defaultStaging = 256 << 20
	// defaultOverrides keeps a node that lost the mesh below what an origin's
	// connection pool has (32 in package origin), so that granted reads go on.
	defaultOverrides = 8
	// defaultQueue is 16 whole extents: some seconds of work at most, since what
	// waits longer is overtaken by the read it was meant for.
	defaultQueue = 1024
	// defaultPrefetchFlights fill the half of the staging area that prefetch may
	// use.
	defaultPrefetchFlights = 32
)

// Validate reports every fault of the options, joined.
func (o *Options) Validate() error {
	var faults []error
	for _, f := range [...]struct {
		bad  bool
		text string
	}{
		{o.Store == nil, "fetch: no store"},
		{o.Directory == nil, "fetch: no directory"},
		{o.Exchange == nil, "fetch: no exchange"},
		{o.Origins == nil, "fetch: no origins"},
		{o.Deadline < 0, "fetch: negative deadline"},
		{o.StagingBytes < 0, "fetch: negative staging bytes"},
		{o.Overrides < 0, "fetch: negative overrides"},
		{o.Scale < 0, "fetch: negative scale"},
		{o.PrefetchQueue < 0, "fetch: negative prefetch queue"},
		{o.PrefetchFlights < 0, "fetch: negative prefetch flights"},
	} {
		if f.bad {
			faults = append(faults, errors.New(f.text))
		}
	}
	return errors.Join(faults...)
}

func (o *Options) setDefaults() {
	setDefault(&o.Deadline, defaultDeadline)
	setDefault(&o.StagingBytes, defaultStaging)
	setDefault(&o.Overrides, defaultOverrides)
	setDefault(&o.Scale, 1)
	setDefault(&o.PrefetchQueue, defaultQueue)
	setDefault(&o.PrefetchFlights, defaultPrefetchFlights)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnCorrupt == nil {
		o.OnCorrupt = func(string, covey.Locator, covey.PeerID) {}
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
