package blockstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/covey-cache/covey"
)

// DefaultScrubRate reads 2 TiB in three days, with a four-hundredth of a core to
// hash it: often enough to find a block that rots before its last copy elsewhere
// does, and little beside what any disk gives.
const DefaultScrubRate int64 = 8 << 20

const (
	// scrubQuiet is how long nobody must have used the store before a block is
	// scrubbed: longer than the gaps of a training job that reads from it.
	scrubQuiet = 2 * time.Second
	// scrubPressure is the share of the last ten seconds, in percent, in which
	// something on the host waited for a disk, above which the scrubber rests.
	// Reads that are passed through to the kernel show there alone. The scrubber's
	// own are 1 on an NVMe disk and 6 on a hard disk.
	scrubPressure = 20.0
	// scrubPause is how often a busy host is looked at again.
	scrubPause = time.Second
	// scrubRest is the pause between two passes over everything. It keeps a
	// small cache from being read over and over.
	scrubRest = time.Hour
)

// Scrub reads every block again and compares its digest, over and over, at no more
// than the given bytes a second for each tier, while the store is idle and nothing
// on the host waits for a disk. Bad blocks are dropped and told as by Verify. It
// returns nil when ctx ends or the store is closed.
func (s *Store) Scrub(ctx context.Context, bytesPerSecond int64) error {
	if bytesPerSecond <= 0 {
		return fmt.Errorf("scrub at %d bytes a second: %w", bytesPerSecond, covey.ErrInvalid)
	}
	var all sync.WaitGroup
	for _, sh := range s.shelves {
		all.Go(func() { sh.scrub(ctx, bytesPerSecond) })
	}
	all.Wait()
	return nil
}

// scrub scrubs whichever tier is on the shelf, pass after pass.
func (sh *shelf) scrub(ctx context.Context, bytesPerSecond int64) {
	for ctx.Err() == nil {
		t := sh.at.Load()
		rest := scrubRest
		if t == nil {
			rest = scrubQuiet // it may be brought back
		} else if err := t.scrub(ctx, bytesPerSecond); err != nil && !errors.Is(err, errClosed) && ctx.Err() == nil {
			t.log.Warn("scrub", "tier", t.opts.Dir, "err", err)
		}
		if !sh.rest(ctx, t, rest) {
			return
		}
	}
}

// rest pauses, unless the tier is closed meanwhile. It reports whether to go on:
// not when the store is closed, or ctx is done.
func (sh *shelf) rest(ctx context.Context, t *tier, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	var closed <-chan struct{}
	if t != nil {
		closed = t.stop
	}
	select {
	case <-ctx.Done():
		return false
	case <-closed:
		return sh.at.Load() != t
	case <-timer.C:
		return true
	}
}

// scrub passes over the tier once, from an object by chance on: an agent that is
// often restarted gets everywhere, too.
func (s *tier) scrub(ctx context.Context, bytesPerSecond int64) error {
	v := verification{s: s, ctx: ctx, pause: s.awaitIdle}
	v.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), int(covey.MaxBlockSize))
	v.limit.AllowN(time.Now(), int(covey.MaxBlockSize))
	v.progress = func(d Verified) { s.metrics.scrubbed.Add(float64(d.Bytes)); v.done.Bytes = 0 }
	var from covey.ObjectID
	_, _ = rand.Read(from[:]) // it never fails; it ends the process instead
	start := objectKey(keyObject, from)
	if err := v.span(start, []byte{keyObject + 1}); err != nil {
		return err
	}
	return v.span([]byte{keyObject}, start)
}

// span verifies the objects of a range of the index.
func (v *verification) span(next, upper []byte) error {
	for next != nil && bytes.Compare(next, upper) < 0 {
		var batch []covey.Object
		var err error
		if next, err = v.s.objectBatch(next, upper, &batch); err != nil {
			return err
		}
		for _, o := range batch {
			if err := v.object(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// inUse notes that somebody uses the tier.
func (s *tier) inUse() { s.lastUse.Store(time.Now().UnixNano()) }

// awaitIdle waits until the tier has not been used for a while, and no disk of the
// host is waited for.
func (s *tier) awaitIdle(ctx context.Context) error {
	for {
		quiet := time.Since(time.Unix(0, s.lastUse.Load())) >= scrubQuiet
		if quiet && (!s.at.os || diskPressure(pressureFile) <= scrubPressure) {
			return nil
		}
		timer := time.NewTimer(scrubPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-s.stop:
			timer.Stop()
			return errClosed
		case <-timer.C:
		}
	}
}

// pressureFile is the kernel's account of who waits for disks. Kernels without it
// say nothing, and then only the tier's own use counts.
const pressureFile = "/proc/pressure/io"

// diskPressure returns the share of the last ten seconds, in percent, in which
// something waited for a disk; 0 when that is not known.
func diskPressure(file string) float64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	_, rest, ok := bytes.Cut(text, []byte("some avg10="))
	if !ok {
		return 0
	}
	figure, _, _ := bytes.Cut(rest, []byte(" "))
	share, err := strconv.ParseFloat(string(figure), 64)
	if err != nil {
		return 0
	}
	return share
}
