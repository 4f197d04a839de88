package blockstore

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// Options configure a store. The zero value of every field but Dir works. Dir,
// Budget and FS are its first tier.
type Options struct {
	// Dir is the cache directory. It is made when missing, with mode 0700, and
	// owned by one process at a time (a lock file).
	Dir string
	// Budget is the most bytes of block data the store may hold, counted as
	// disk blocks used; 0 means a tenth of what is free on Dir's file system
	// when the store opens.
	Budget int64
	// FS is the file system under data and index; nil means the operating
	// system's. It is the seam for simulation and fault injection. With any
	// other than the operating system's, OpenWhole has no descriptor to give and
	// finds nothing.
	FS vfs.FS
	// Slower are further tiers, the fastest first.
	Slower []TierOptions
	// SyncEvery is how long an admitted block may stay unsynced; 0 means 1 s.
	SyncEvery time.Duration
	// Policy says what gives way when the budget is used up; "" means
	// [PolicyEpoch].
	Policy Policy
	// Datasets are kept in ways of their own.
	Datasets []Dataset
	// IdleAfter is how long nothing of a data set may be used before it gives way
	// to any other; 0 means 24 h, less than 0 means for ever.
	IdleAfter time.Duration
	// Compress says how new blocks are compressed; the zero value is not at all.
	// Blocks that are here are read whatever it says.
	Compress Compression
	// Keys, if set, encrypt every new block, under the first of them. Blocks that
	// are here are read under the key they were written with, and those that were
	// written without one stay as they are.
	Keys *Keys
	// DecodedBytes bounds the memory for the plain bytes of blocks that are
	// compressed or encrypted on disk; 0 means 64 MiB.
	DecodedBytes int64
	// MoveRate is the most bytes a second that are moved between tiers; 0 means
	// 64 MiB.
	MoveRate int64
	// VerifyRate is the most bytes a second that Verify reads; 0 means 64 MiB.
	VerifyRate int64
	// OnCorrupt, if set, is called for every block whose bytes on disk turned
	// out wrong. It must not block.
	OnCorrupt func(covey.Locator)
	// OnLost, if set, is called for every block that was dropped because its
	// bytes were wrong or the disk did not give them back, with the place it was
	// advertised under, which is zero when the index does not say. Not for what
	// is evicted, or dropped by its caller. It must not block.
	OnLost func(covey.Locator, covey.Place)
	// Spare is the memory, in bytes, that stands in for the tiers while none of
	// them can be opened because of its disk; 0 means none.
	Spare    int64
	Log      *slog.Logger
	Registry prometheus.Registerer

	// memtable is how many bytes of records the index keeps in memory before it
	// writes a table; 0 means indexMemtableBytes.
	memtable uint64
	// coder is what all tiers of a store share.
	coder *coder
	// rules are what all tiers of a store share.
	rules *rules
	// handed are objects whose files readers may have open since before the tier
	// failed and was opened anew.
	handed map[covey.ObjectID]struct{}
	// still keeps objects where they are, for tests that move them by hand.
	still bool
	// onHot, if set, is called, with the tier's lock, for an object that is used often.
	onHot func(*tier, covey.ObjectID)
	// onFault, if set, is called when a fault ends a tier's admission.
	onFault func()
}

// TierOptions are one more tier of a store: see the fields of these names in
// [Options].
type TierOptions struct {
	Dir    string
	Budget int64
	FS     vfs.FS
}

// maxTiers bounds the tiers of a store. A node has three or four kinds of storage;
// each tier costs an index cache of 16 MiB, and a look at its table for each miss.
const maxTiers = 16

// tiers are the options of each tier, as a store of its own.
func (o Options) tiers() []Options {
	all := make([]Options, 0, 1+len(o.Slower))
	slower := o.Slower
	o.Slower = nil
	all = append(all, o)
	for _, t := range slower {
		o.Dir, o.Budget, o.FS = t.Dir, t.Budget, t.FS
		all = append(all, o)
	}
	return all
}

// defaultSyncEvery is how much admission a power loss may undo. One second of
// origin reads is cheap to repeat, and one sync a second costs a disk nothing.
const defaultSyncEvery = time.Second

// defaultVerifyRate reads 2 TiB in nine hours, a thirtieth of what an NVMe disk
// gives and half of what a hard disk does, with a fiftieth of a core to hash it.
const defaultVerifyRate int64 = 64 << 20

// defaultIdleAfter is a job that runs once a day: what it reads is there the next day
// if nobody else needs the room, and somebody who does has it after that day.
const defaultIdleAfter = 24 * time.Hour

// memBudget is the default budget on a file system that cannot tell how much is
// free, which only one in memory does. It keeps a simulation of 20 nodes within
// a laptop.
const memBudget int64 = 1 << 30

// Validate reports every field that is wrong.
func (o Options) Validate() error {
	var errs []error
	tiers := o.tiers()
	for _, t := range tiers {
		if t.Dir == "" {
			errs = append(errs, fmt.Errorf("cache directory is not set: %w", covey.ErrInvalid))
		}
		if t.Budget < 0 {
			errs = append(errs, fmt.Errorf("cache budget of %d bytes: %w", t.Budget, covey.ErrInvalid))
		}
	}
	errs = append(errs, checkTiers(tiers))
	if o.Spare < 0 {
		errs = append(errs, fmt.Errorf("spare memory of %d bytes: %w", o.Spare, covey.ErrInvalid))
	}
	if o.SyncEvery < 0 {
		errs = append(errs, fmt.Errorf("sync interval %v: %w", o.SyncEvery, covey.ErrInvalid))
	}
	if !o.Policy.known() || o.Policy == PolicyTTL {
		errs = append(errs, fmt.Errorf("cache policy %q, none of epoch, lru and lfu: %w", o.Policy, covey.ErrInvalid))
	}
	for _, d := range o.Datasets {
		errs = append(errs, d.validate())
	}
	if o.DecodedBytes < 0 {
		errs = append(errs, fmt.Errorf("%d bytes for decoded blocks: %w", o.DecodedBytes, covey.ErrInvalid))
	}
	if o.MoveRate < 0 {
		errs = append(errs, fmt.Errorf("move rate of %d bytes a second: %w", o.MoveRate, covey.ErrInvalid))
	}
	if o.VerifyRate < 0 {
		errs = append(errs, fmt.Errorf("verify rate of %d bytes a second: %w", o.VerifyRate, covey.ErrInvalid))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.SyncEvery == 0 {
		o.SyncEvery = defaultSyncEvery
	}
	if o.MoveRate == 0 {
		o.MoveRate = defaultMoveRate
	}
	if o.VerifyRate == 0 {
		o.VerifyRate = defaultVerifyRate
	}
	if o.DecodedBytes == 0 {
		o.DecodedBytes = defaultDecodedBytes
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FS == vfs.Default {
		o.FS = nil
	}
	if o.Policy == "" {
		o.Policy = PolicyEpoch
	}
	if o.IdleAfter == 0 {
		o.IdleAfter = defaultIdleAfter
	}
	if o.rules == nil {
		o.rules = newRules(o.Policy, o.Datasets)
	}
	return o
}
