package blockstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// checkTiers reports what is wrong with the tiers' directories, taken together.
func checkTiers(tiers []Options) error {
	var errs []error
	if len(tiers) > maxTiers {
		errs = append(errs, fmt.Errorf("%d cache directories, more than %d: %w", len(tiers), maxTiers, covey.ErrInvalid))
	}
	dirs := make([]string, len(tiers))
	for i, t := range tiers {
		if t.Dir != "" {
			dirs[i] = resolve(t)
		}
	}
	for i, a := range dirs {
		for j := range i {
			if b := dirs[j]; a != "" && b != "" && tiers[i].FS == tiers[j].FS {
				errs = append(errs, apart(tiers[j].Dir, b, tiers[i].Dir, a))
			}
		}
	}
	return errors.Join(errs...)
}

// apart is an error when two directories are one, or one is within the other.
func apart(a, realA, b, realB string) error {
	switch {
	case realA == realB && a == b:
		return fmt.Errorf("cache directory %s is given twice; give each tier its own: %w", a, covey.ErrInvalid)
	case realA == realB:
		return fmt.Errorf("cache directories %s and %s are the same; give each tier its own: %w", a, b, covey.ErrInvalid)
	case within(realA, realB):
		return fmt.Errorf("cache directory %s is within %s; give each tier a directory of its own: %w", a, b, covey.ErrInvalid)
	case within(realB, realA):
		return fmt.Errorf("cache directory %s is within %s; give each tier a directory of its own: %w", b, a, covey.ErrInvalid)
	}
	return nil
}

func within(dir, of string) bool {
	return strings.HasPrefix(dir, strings.TrimSuffix(of, "/")+"/")
}

// resolve returns a directory's path without symbolic links, as far as it exists.
func resolve(t Options) string {
	dir := filepath.Clean(t.Dir)
	if t.FS != nil && t.FS != vfs.Default {
		return dir
	}
	rest := ""
	for at := dir; ; at = filepath.Dir(at) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(real, rest)
		}
		if at == filepath.Dir(at) {
			return dir
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}

// checkBudgets refuses budgets that a disk cannot hold, each and all those on one
// file system together: a typing error in a size must not become a full disk.
func checkBudgets(tiers []Options) error {
	type disk struct {
		asked, size int64
		dirs        []string
	}
	disks := make(map[uint64]*disk)
	var errs []error
	for _, t := range tiers {
		if t.FS != nil {
			continue
		}
		dev, size, ok := diskOf(t.Dir)
		if !ok {
			continue // opening it will say why
		}
		if t.Budget > size {
			errs = append(errs, fmt.Errorf("cache %s: a budget of %d bytes is above the %d of its disk; give it less: %w",
				t.Dir, t.Budget, size, covey.ErrInvalid))
			continue
		}
		d := disks[dev]
		if d == nil {
			d = &disk{size: size}
			disks[dev] = d
		}
		d.asked += t.Budget
		d.dirs = append(d.dirs, t.Dir)
		if d.asked > d.size {
			errs = append(errs, fmt.Errorf("caches %s: their budgets, %d bytes, are above the %d of the disk that they share; give them less: %w",
				strings.Join(d.dirs, " and "), d.asked, d.size, covey.ErrInvalid))
		}
	}
	return errors.Join(errs...)
}

// diskOf returns the file system that a directory is on, or will be.
func diskOf(dir string) (dev uint64, size int64, ok bool) {
	for {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if unix.Stat(dir, &st) == nil && unix.Statfs(dir, &fs) == nil {
			return st.Dev, int64(fs.Blocks) * fs.Bsize, fs.Blocks > 0
		}
		up := filepath.Dir(dir)
		if up == dir {
			return 0, 0, false
		}
		dir = up
	}
}
