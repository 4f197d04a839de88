package dataset

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/covey-cache/covey"
)

// Options are a data set's policy. The zero value works.
type Options struct {
	// BlockSize in bytes; 0 means covey.DefaultBlockSize.
	BlockSize int64
	// MaxAge is how long a listing is believed; 0 means DefaultMaxAge, negative
	// means not at all.
	MaxAge time.Duration
	// Immutable says that no object of the data set ever changes: listings are
	// believed for ever.
	Immutable bool
	// StaleIfError is how long beyond MaxAge known entries stay valid while the
	// origin cannot be reached; 0 means one hour, negative means not at all.
	StaleIfError time.Duration
	// MaxEntries bounds the directory entries kept in memory, those of listings
	// under way included; 0 means DefaultMaxEntries. The directory that was
	// used least recently goes first. A single directory with more entries than
	// that cannot be listed (ErrFull), only looked up by name.
	MaxEntries int64
	Log        *slog.Logger
	// Metrics are shared by all data sets of an agent; nil counts nowhere.
	Metrics *Metrics
}

const (
	// DefaultMaxAge is how long a listing is believed. A minute bounds the LIST
	// requests of a cluster to what an origin does not notice, and is the
	// freshness that training data needs.
	DefaultMaxAge = time.Minute

	// DefaultStaleIfError outlives the outages that an operator mends while the
	// job runs.
	DefaultStaleIfError = time.Hour

	// DefaultMaxEntries has room for the largest data sets seen, at about 100
	// bytes an entry; most use a hundredth of it.
	DefaultMaxEntries = 10_000_000
)

// Validate reports every option that is out of range, as one error that wraps
// ErrInvalid.
func (o Options) Validate() error {
	var errs []error
	if o.BlockSize != 0 && (o.BlockSize < covey.MinBlockSize || o.BlockSize > covey.MaxBlockSize) {
		errs = append(errs, fmt.Errorf("block size %d is not between %d and %d: %w",
			o.BlockSize, covey.MinBlockSize, covey.MaxBlockSize, covey.ErrInvalid))
	}
	if o.MaxEntries < 0 {
		errs = append(errs, fmt.Errorf("entry limit %d is negative: %w", o.MaxEntries, covey.ErrInvalid))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.BlockSize == 0 {
		o.BlockSize = covey.DefaultBlockSize
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.StaleIfError == 0 {
		o.StaleIfError = DefaultStaleIfError
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = newMetrics()
	}
	return o
}
