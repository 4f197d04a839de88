package blockstore

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/covey-cache/covey"
)

// unit is what file systems allocate: a block takes its length rounded up to it.
const unit = 4 << 10

func diskUse(n int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// blockUse is the disk use of one block of the object. Where the block size is
// not a multiple of unit, neighbours share one and it is counted twice.
func blockUse(o covey.Object, i int) int64 { return diskUse(o.BlockRange(i).Len) }

// objectUse is the disk use of the blocks of an entry.
func (t *table) objectUse(e *entry, o covey.Object) int64 {
	if e.flags&flagCoded != 0 {
		return int64(e.use) * unit
	}
	return t.plainUse(e, o)
}

// account adds a block's disk use, or takes it off, where that does not follow
// from which blocks are here: as soon as one of the object's is coded. It goes
// before the block is set, and after it is unset.
func (t *table) account(e *entry, o covey.Object, use int64, coded bool) {
	if coded && e.flags&flagCoded == 0 {
		e.use = uint32(t.plainUse(e, o) / unit)
		e.flags |= flagCoded
	}
	if e.flags&flagCoded != 0 {
		e.use = uint32(int64(e.use) + use/unit)
	}
}

// maxCoded bounds the objects that are compressed or encrypted, so that their disk
// use can be counted in 32 bits.
const maxCoded int64 = 8 << 40

// plainUse is what the blocks of an entry take, or would if they were stored as
// they are.
func (t *table) plainUse(e *entry, o covey.Object) int64 {
	if e.count == 0 {
		return 0
	}
	n := int64(e.count) * diskUse(o.BlockSize)
	if last := int(e.blocks) - 1; t.has(e, last) {
		n += blockUse(o, last) - diskUse(o.BlockSize)
	}
	return n
}

// maxReserve is the most that is left free on the file system whatever the
// budget says, and a twentieth of the file system where that is less. The index
// needs room to rewrite its tables before it can delete the old ones, and who
// shares the file system (often its logs) must not fail because a cache, which
// could do with less, took the last byte.
const maxReserve int64 = 1 << 30

// unlimited is the room of a file system that cannot tell.
const unlimited int64 = 1 << 62

// measure asks the file system for its room, and returns the budget.
func (s *tier) measure() (budget int64, err error) {
	du, err := s.at.fs.GetDiskUsage(s.opts.Dir)
	budget, s.room = s.opts.Budget, unlimited
	switch {
	case errors.Is(err, vfs.ErrUnsupported):
		if budget == 0 {
			budget = memBudget
		}
		return budget, nil
	case err != nil:
		return 0, err
	}
	s.room, s.roomAt = roomOf(du), time.Now()
	if budget == 0 {
		budget = (int64(du.AvailBytes) + s.used) / 10
	}
	return budget, nil
}

func roomOf(du vfs.DiskUsage) int64 {
	return int64(du.AvailBytes) - min(maxReserve, int64(du.TotalBytes/20))
}

// remeasure brings the room up to date; others write to the file system as well.
func (s *tier) remeasure() {
	du, err := s.at.fs.GetDiskUsage(s.opts.Dir)
	if err != nil {
		return // the last figure, less what was admitted since, still holds
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room, s.roomAt = roomOf(du), time.Now()
}

// errBudget says that the budget, not the file system, has no room.
var errBudget = fmt.Errorf("the budget is used up: %w", covey.ErrFull)

// errReserve says that the file system, not the budget, has no room.
var errReserve = fmt.Errorf("the file system's reserve: %w", covey.ErrFull)

// askEvery is how often a full file system is asked whether it still is. Refusing
// must stay cheap: it happens for every block of a data set that does not fit.
const askEvery = time.Second

// reserve takes room for a block. mu is held; it is given up while the file
// system is asked.
func (s *tier) reserve(id covey.ObjectID, use int64) error {
	err := s.admit(id, use)
	if !errors.Is(err, errReserve) || time.Since(s.roomAt) < askEvery {
		return err
	}
	s.roomAt = time.Now()
	s.mu.Unlock()
	s.remeasure()
	s.mu.Lock()
	return s.admit(id, use)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }

// isTransient reports whether the process, not the disk, is short of something,
// so that trying again later may succeed.
func isTransient(err error) bool {
	return isStall(err) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN)
}

// isPlanted reports whether something that is neither file nor directory stands in
// the way of one. It is not followed, and no reason to stop using the disk.
func isPlanted(err error) bool {
	return errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENOTDIR)
}
