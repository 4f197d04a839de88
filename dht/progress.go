package dht

import (
	"context"
	"errors"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

// maxReadings is how many reads one PROGRESS reports: what a fetcher with 256 MiB
// of staging has under way. It is 60 KiB.
const maxReadings = 1024

// progressTimeout is how long a home may take for a report. Later ones do not wait
// for it, and it counts from when it is read.
const progressTimeout = 2 * time.Second

// Progress reports granted reads that are under way, to the home that granted
// each and to the extent's next one: so a grant survives the first home's death,
// and whoever waits for it sees that it makes progress. Call it for a read as
// soon as it was granted, with New, and every [ProgressEvery] until it ends.
// Homes that do not answer are told the next time; the first failure is returned.
func (d *Directory) Progress(ctx context.Context, reads []Reading) error {
	r := d.view()
	to := map[covey.PeerID][]*wire.Reading{}
	for _, x := range reads {
		second := false
		for _, h := range r.homes(x.Extent) {
			if h == x.Home || second {
				continue
			}
			second = true
			d.tellProgress(to, h, x, r)
		}
		if !x.New && x.Home != "" {
			d.tellProgress(to, x.Home, x, r)
		}
	}
	errs := make(chan error, len(to))
	for h, m := range to {
		if !d.calls.start(func() { errs <- d.sendProgress(ctx, h, m) }) {
			return unavailable("report progress in", covey.ExtentID{}, nil)
		}
	}
	var first error
	for range to {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// tellProgress adds a read to what a home is told, or tells this peer itself.
func (d *Directory) tellProgress(to map[covey.PeerID][]*wire.Reading, h covey.PeerID, x Reading, r *ring) {
	if h == d.self {
		d.table.progress(d.self, x, r)
		return
	}
	to[h] = append(to[h], &wire.Reading{Extent: x.Extent[:], Slot: uint32(x.Slot), Lease: x.Lease,
		Bytes: uint64(max(0, x.Bytes)), TtlMs: millis(x.TTL)})
}

func (d *Directory) sendProgress(ctx context.Context, h covey.PeerID, m []*wire.Reading) error {
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	var errs []error
	for len(m) > 0 {
		n := min(len(m), maxReadings)
		_, err := d.call(ctx, h, &wire.Request{Body: &wire.Request_Progress{Progress: &wire.Progress{Readings: m[:n]}}})
		errs = append(errs, err)
		m = m[n:]
	}
	return errors.Join(errs...)
}

func (d *Directory) serveProgress(from covey.PeerID, m *wire.Progress) error {
	if len(m.GetReadings()) > maxReadings {
		return invalid("progress of %d reads", len(m.GetReadings()))
	}
	r := d.view()
	for _, o := range m.GetReadings() {
		x, err := readingFrom(o)
		if err != nil {
			return err
		}
		d.table.progress(from, x, r)
	}
	return nil
}

func readingFrom(m *wire.Reading) (x Reading, err error) {
	if x.Extent, err = extentFrom(m.GetExtent()); err != nil {
		return x, err
	}
	if m.GetSlot() >= covey.MaxExtentBlocks || m.GetBytes() > uint64(covey.MaxBlockSize) {
		return x, invalid("progress of slot %d, %d bytes", m.GetSlot(), m.GetBytes())
	}
	x.Slot, x.Lease, x.Bytes, x.TTL = int(m.GetSlot()), m.GetLease(), int64(m.GetBytes()), fromMillis(m.GetTtlMs())
	return x, nil
}
