package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/covey-cache/covey"
)

// Verified is how far a Verify has come.
type Verified struct {
	Objects int   // begun
	Blocks  int   // checked
	Of      int   // blocks to check, as of the start
	Bytes   int64 // checked
	// Bad and Unreadable are the blocks that were dropped: their bytes were not
	// those admitted, or the disk did not give them back.
	Bad, Unreadable int
}

// Verify reads every block of the objects for which match says yes (all of them
// when it is nil) from the disk, past the page cache where that is possible, and
// compares its BLAKE3 digest, whether or not it was checked before. What does not
// match, or cannot be read, is dropped and counted as Get would; a pin of the
// object stays. It reads at most [Options.VerifyRate] bytes a second and keeps
// nobody waiting. Several may run at once, each at that rate.
//
// progress, if not nil, is called after each block, from the goroutine of Verify.
// Blocks that come or go while it runs may be checked or not.
//
// An error says that not everything was checked: ctx is done, the store was
// closed, the index cannot be read, or the process is out of descriptors. Bad
// blocks are no error.
func (s *tier) Verify(ctx context.Context, match func(covey.Object) bool, progress func(Verified)) (Verified, error) {
	v := verification{s: s, ctx: ctx, progress: progress}
	// No credit at the start, and later that of one block of the largest size.
	v.limit = rate.NewLimiter(rate.Limit(s.opts.VerifyRate), int(covey.MaxBlockSize))
	v.limit.AllowN(time.Now(), int(covey.MaxBlockSize))
	if err := v.run(match); err != nil {
		return v.done, fmt.Errorf("verify %s: %w", s.opts.Dir, err)
	}
	return v.done, nil
}

// verification is one Verify under way.
type verification struct {
	s        *tier
	ctx      context.Context //nolint:containedctx // it lives as long as the call
	limit    *rate.Limiter
	pause    func(context.Context) error // before each block, if not nil
	progress func(Verified)
	done     Verified
}

func (v *verification) run(match func(covey.Object) bool) error {
	du, err := v.s.Du(match)
	if err != nil {
		return err
	}
	v.done.Of = du.Blocks
	for o, err := range v.s.known() {
		if err != nil {
			return err
		}
		if match != nil && !match(o) {
			continue
		}
		v.done.Objects++
		if err := v.object(o); err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) object(o covey.Object) error {
	id := o.ID()
	for i := range o.Blocks() {
		v.s.mu.Lock()
		e := v.s.table.find(&id)
		gone, here := e == nil, e != nil && v.s.table.has(e, i)
		v.s.mu.Unlock()
		if gone {
			return nil
		}
		if !here {
			continue
		}
		if v.pause != nil {
			if err := v.pause(v.ctx); err != nil {
				return err
			}
		}
		if err := v.limit.WaitN(v.ctx, int(o.BlockRange(i).Len)); err != nil {
			return err
		}
		if err := v.block(o.Block(i)); err != nil {
			return err
		}
	}
	return nil
}

// block checks one block, unless it is gone.
func (v *verification) block(l covey.Locator) error {
	if err := v.s.enter(); err != nil {
		return err
	}
	defer v.s.leave()
	bad, err := v.s.recheck(l)
	switch {
	case errors.Is(bad, errMismatch):
		v.done.Bad++
	case bad != nil:
		v.done.Unreadable++
	case errors.Is(err, covey.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	v.done.Blocks++
	v.done.Bytes += l.Range().Len
	if v.progress != nil {
		v.progress(v.done)
	}
	return nil
}

// recheck compares a block with its digest. bad says why the block was dropped;
// err that it could not be checked, [covey.ErrNotFound] that it is not here.
func (s *tier) recheck(l covey.Locator) (bad, err error) {
	k := blockKey{l.Object.ID(), uint32(l.Index)}
	f, _, _, err := s.hold(k)
	if err != nil {
		return s.judge(l, err)
	}
	r, err := s.record(k)
	if err == nil {
		rng := l.Range()
		h := &handle{s: s, f: f, l: l, off: rng.Off, len: int(rng.Len), r: r}
		dropPages(f, rng)
		err = h.verify(true)
	}
	s.mu.Lock()
	same := s.open[k.id] == f
	if e := s.table.find(&k.id); err == nil && same && e != nil && s.table.has(e, l.Index) {
		s.table.mark(e, l.Index)
	}
	s.mu.Unlock()
	s.letGo(f, l.Index) // before it may be dropped, so that the object stays
	if err != nil && !same {
		return nil, covey.ErrNotFound // the file was unlinked meanwhile, and says nothing of a new one
	}
	return s.judge(l, err)
}

// judge drops a block that is bad, and tells that from one that is not here and
// from a process that is short of something.
func (s *tier) judge(l covey.Locator, err error) (bad, other error) {
	if err == nil {
		return nil, nil
	}
	absent := errors.Is(err, covey.ErrNotFound) && !errors.Is(err, fs.ErrNotExist)
	if told := s.unreadable(l, err); absent || !errors.Is(told, covey.ErrNotFound) {
		return nil, told
	}
	return err, nil
}

// dropPages makes the kernel read the range from the disk again, as far as nobody
// has it mapped. Otherwise memory would be verified, not the disk.
func dropPages(f *openFile, r covey.Range) {
	if file, ok := f.dataFile.(*os.File); ok {
		_ = unix.Fadvise(int(file.Fd()), r.Off, r.Len, unix.FADV_DONTNEED) // advice
	}
}
