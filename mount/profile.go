package mount

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// Profile says how a mount opens files. The two ways exclude each other on one
// FUSE connection: once the kernel has learnt to open by itself, it never asks
// for a backing file again.
type Profile uint8

// The profiles.
const (
	// Auto is Small for an immutable data set whose listing shows small files,
	// and Large otherwise. It decides at the first open and stays with it.
	Auto Profile = iota
	// Large passes whole files through to the kernel and serves the others.
	Large
	// Small has the kernel open and read small files without a message, from its
	// page cache, which covey fills ahead of the reader. It is for data sets that
	// are immutable: an open that nobody hears of cannot look for changes.
	Small
)

var profileNames = [...]string{Auto: "auto", Large: "large", Small: "small"}

// String returns the profile's name in settings.
func (p Profile) String() string { return profileNames[p] }

// ParseProfile is the inverse of String; "" is Auto.
func ParseProfile(s string) (Profile, error) {
	if s == "" {
		return Auto, nil
	}
	for p, name := range profileNames {
		if s == name {
			return Profile(p), nil
		}
	}
	return Auto, fmt.Errorf("profile %q: say %s: %w", s, strings.Join(profileNames[:], ", "), covey.ErrInvalid)
}

// checkProfile refuses what cannot be exact.
func checkProfile(p Profile, o dataset.Options) error {
	if p == Small && !o.Immutable {
		return fmt.Errorf("profile small needs an immutable data set, since the kernel opens files without asking: "+
			"say immutable for the agent, or profile large: %w", covey.ErrInvalid)
	}
	return nil
}

// The sample that Auto decides by: enough files to be no accident, in few enough
// directories that an origin lists them while a job starts.
const (
	sampleFiles   = 64
	sampleEntries = 1000 // of each directory: one page of S3
	sampleDirs    = 8
	sampleTime    = 5 * time.Second
	// smallFile is what the kernel reads with one request. A file of more is
	// worth a passthrough descriptor.
	smallFile = maxRequest
)

// profile is the mount's profile, decided at the first open at the latest. It
// stays what it is then: handles of both kinds on one inode would be EIO.
type profile struct {
	small   atomic.Bool
	decided atomic.Bool

	mu sync.Mutex // serialises the decision
}

func (p *profile) decide(small bool) {
	p.small.Store(small)
	p.decided.Store(true)
}

func (p *profile) now() Profile {
	switch {
	case !p.decided.Load():
		return Auto
	case p.small.Load():
		return Small
	}
	return Large
}

// zeroOpen reports whether the kernel is to open files by itself.
func (t *tree) zeroOpen(ctx context.Context) bool {
	if t.profile.decided.Load() {
		return t.profile.small.Load()
	}
	t.profile.mu.Lock()
	defer t.profile.mu.Unlock()
	if !t.profile.decided.Load() {
		t.beSmall(t.looksSmall(ctx))
	}
	return t.profile.small.Load()
}

// beSmall settles the profile.
func (t *tree) beSmall(small bool) {
	if small {
		t.ledger.small()
		t.passthrough.disable("profile small: the kernel opens files by itself")
	}
	t.profile.decide(small)
}

// looksSmall samples the data set's first directories: nine in ten of at least 64
// files must be small. What cannot be listed in time is not small.
func (t *tree) looksSmall(ctx context.Context) bool {
	if !t.names.Options().Immutable {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, sampleTime)
	defer cancel()
	files, small := 0, 0
	dirs := []string{""}
	for i := 0; i < len(dirs) && i < sampleDirs && files < sampleFiles; i++ {
		entries := 0
		for e, err := range t.names.ReadDir(ctx, dirs[i]) {
			if err != nil {
				return false
			}
			switch {
			case e.Kind == dataset.File:
				files++
				if e.Size <= smallFile {
					small++
				}
			case e.Kind == dataset.Dir && len(dirs) < sampleDirs:
				dirs = append(dirs, join(dirs[i], e.Name))
			}
			if entries++; entries == sampleEntries {
				break
			}
		}
	}
	return files >= sampleFiles && small*10 >= files*9
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
