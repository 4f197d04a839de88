package ahead

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
)

// Fetcher is what this package needs of [fetch.Fetcher].
type Fetcher interface {
	Bring(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, fetch.Source, error)
	Present(e *covey.Extent) covey.Bitmap
	OriginLatency() (time.Duration, bool)
}

// Data is what this package needs of a manifest; [Layout] is one.
type Data interface {
	Digest() [32]byte
	Files() int
	Samples() uint64
	// Whole says that each sample is a whole file.
	Whole() bool
	Span(sample uint32) Span
	Object(file int) covey.Object
	Extent(ctx context.Context, file, block int) (*covey.Extent, int, error)
	// Has reports whether an object is one of the files.
	Has(o covey.Object) bool
}

// Options configure a Reader. Self, Fetch and Room are needed.
type Options struct {
	Self  covey.PeerID
	Fetch Fetcher
	// Room is how many bytes of a manifest's files this node's cache could hold:
	// what is free and what such files take already.
	Room func(Data) int64
	// StagingBytes bounds the blocks that are held in memory for the readers of
	// this node because the store has no room for them; 0 means 64 MiB.
	StagingBytes int64
	// Flights is how many blocks are read ahead at once; 0 means 32.
	Flights int
	// MaxDistance is how far ahead of each rank is read at most, in bytes; 0
	// means 1 GiB.
	MaxDistance int64
	Log         *slog.Logger          // nil discards
	Registry    prometheus.Registerer // nil registers nothing
}

const (
	// defaultStaging is a quarter of fetch's default; prefetch may use half, so
	// that blocks under way have the other quarter.
	defaultStaging = 64 << 20
	// defaultFlights is what an origin's connection pool has, as in fetch.
	defaultFlights = 32
	// defaultDistance is as much as the host memory that a job spends on
	// batches for one accelerator.
	defaultDistance = 1 << 30
)

// Validate reports every fault of the options, joined.
func (o *Options) Validate() error {
	var faults []error
	if o.Fetch == nil || o.Room == nil || o.Self == "" {
		faults = append(faults, errors.New("ahead: no fetcher, no room or no self"))
	}
	if o.StagingBytes < 0 || o.Flights < 0 || o.MaxDistance < 0 {
		faults = append(faults, errors.New("ahead: a negative bound"))
	}
	return errors.Join(faults...)
}

func (o *Options) setDefaults() {
	if o.StagingBytes == 0 {
		o.StagingBytes = defaultStaging
	}
	if o.Flights == 0 {
		o.Flights = defaultFlights
	}
	if o.MaxDistance == 0 {
		o.MaxDistance = defaultDistance
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}
