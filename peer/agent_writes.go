package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/origin"
)

const (
	// stagingDir is where mounts that may write stage files, in the first cache
	// directory, so that they are on a file system that can be passed through.
	stagingDir = "staging"
	// stagingShare is how much of the cache's budget may be staged beside it,
	// unless told otherwise: a quarter of it holds a checkpoint and its successor
	// on any node whose cache holds a share of a data set.
	stagingShare = 4
	// resumePause is how long after a failed attempt an upload that nobody waits
	// for any more is tried again.
	resumePause = 10 * time.Second
)

// openStaging opens the staging directory. Without it the agent runs, and only
// mounts that may write are refused.
func (a *Agent) openStaging() {
	if a.opts.StoreFS != nil {
		return
	}
	limit := a.opts.Staging
	if limit <= 0 {
		size := a.opts.Cache[0].Size
		if size == 0 {
			size = a.store.Usage().Budget
		}
		limit = max(size/stagingShare, 1)
	}
	dir := filepath.Join(a.opts.Cache[0].Dir, stagingDir)
	s, err := mount.OpenStaging(dir, limit, a.log)
	if err != nil {
		a.log.Warn("nothing can be mounted to write", "error", err)
		return
	}
	a.staging = s
}

// writeOptions are those of a mount of the data set that may write.
func (a *Agent) writeOptions(ds *dataset.Dataset) (*mount.WriteOptions, error) {
	if a.staging == nil {
		return nil, fmt.Errorf("the cache directory %s cannot be written to, and files are staged there: %w", a.opts.Cache[0].Dir, covey.ErrReadOnly)
	}
	return &mount.WriteOptions{Edits: ds, Staging: a.staging, Admit: func(ctx context.Context, path string, e dataset.Entry, f *os.File) error {
		return a.admitFile(ctx, ds, path, e, f)
	}}, nil
}

// admitFile gives the store a file that was written here, and tells the mesh: at
// once, and again when its directory was listed, if it is small.
func (a *Agent) admitFile(ctx context.Context, ds *dataset.Dataset, path string, e dataset.Entry, f *os.File) error {
	if err := mount.AdmitFile(ctx, ds, path, e, f, a.admitWritten); err != nil {
		return err
	}
	if n := ds.Object(path, e).Blocks(); n > 0 && n < covey.MaxExtentBlocks {
		a.written.add(ds.Name(), path, e)
	}
	return nil
}

// admitWritten gives the store a block of a file that was written here, and tells
// the mesh.
func (a *Agent) admitWritten(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error {
	if err := a.store.Put(l, p, d, data); err != nil {
		return err
	}
	a.directory.Announce(dht.Have{Extent: p.Extent, Have: covey.Bitmap(0).With(int(p.Slot)), Digests: []covey.Digest{d}})
	return nil
}

// describe says of a file of the data set what is cached of it and who has it.
func (a *Agent) describe(ds *dataset.Dataset) mount.DescribeFunc {
	return func(ctx context.Context, path string, e dataset.Entry) (cached int64, holders []string, err error) {
		o := ds.Object(path, e)
		// One block stands for its extent: holders have them together as a rule.
		for i := 0; i < o.Blocks(); {
			x, slot, err := ds.Extent(ctx, path, e, i)
			if err != nil {
				return 0, nil, err
			}
			at, err := a.directory.Lookup(ctx, x.ID, slot)
			if err != nil {
				return 0, nil, err
			}
			for _, p := range at.Holders {
				if name := peerName(p); !slices.Contains(holders, name) {
					holders = append(holders, name)
				}
			}
			i += len(x.Blocks) - slot
		}
		slices.Sort(holders)
		return a.store.Stat(o).Used, holders, nil
	}
}

// resumeStaged goes on with the uploads that an agent before this one was asked
// for, by a close, and did not finish. Nobody waits for them, so an origin that
// is away is asked again until ctx ends. What was still being written is left for
// a person to decide about.
func (a *Agent) resumeStaged(ctx context.Context) {
	if a.staging == nil {
		return
	}
	a.staging.DropRemoved()
	for _, s := range a.staging.List() {
		if s.State == mount.StagedInterrupted {
			a.log.Warn("a file was being written when the agent before ended; it is in staging (covey staged)",
				"id", s.ID, "source", s.Source, "path", s.Path, "bytes", s.Size)
		}
		if s.State != mount.StagedClosing {
			continue
		}
		for {
			err := a.UploadStaged(ctx, s.ID)
			if err == nil || ctx.Err() != nil || errors.Is(err, covey.ErrNotFound) {
				break
			}
			a.log.Error("a file that was closed before the agent ended cannot be uploaded; it stays in staging (covey staged)",
				"id", s.ID, "source", s.Source, "path", s.Path, "error", err)
			if !errors.Is(err, covey.ErrUnavailable) && !errors.Is(err, covey.ErrThrottled) {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(resumePause):
			}
		}
	}
}

// UploadStaged uploads a file that no mount has in hand, under its path.
func (a *Agent) UploadStaged(ctx context.Context, id string) error {
	if a.staging == nil {
		return fmt.Errorf("staged file %s: there is none: %w", id, covey.ErrNotFound)
	}
	err := a.staging.Retry(id, func(s mount.Staged, f *os.File) error {
		ds, release, err := a.OpenDataset(ctx, s.Source)
		if err != nil {
			return err
		}
		defer release()
		e, err := ds.Upload(ctx, s.Path, f, s.Size, origin.UploadOptions{IfAbsent: s.Exclusive, Mode: fs.FileMode(s.Mode)})
		if err != nil {
			return err
		}
		a.log.Info("uploaded from staging", "source", s.Source, "path", s.Path, "bytes", s.Size)
		if err := a.admitFile(ctx, ds, s.Path, e, f); err != nil {
			a.log.Debug("an uploaded file was not admitted to the cache", "path", s.Path, "error", err)
		}
		return nil
	})
	return stagedError(err)
}

// DropStaged gives up a file that no mount has in hand.
func (a *Agent) DropStaged(id string) error {
	if a.staging == nil {
		return fmt.Errorf("staged file %s: there is none: %w", id, covey.ErrNotFound)
	}
	return stagedError(a.staging.Drop(id))
}

// stagedError gives an error of the staging directory its kind.
func stagedError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, covey.ErrNotFound)
	case errors.Is(err, mount.ErrStagedBusy):
		return fmt.Errorf("%w: %w", err, covey.ErrInvalid)
	}
	return err
}

func (a *Agent) staged() []gateway.StagedFile {
	list := []gateway.StagedFile{}
	if a.staging == nil {
		return list
	}
	for _, s := range a.staging.List() {
		list = append(list, gateway.StagedFile{
			ID: s.ID, Source: s.Source, Path: s.Path, State: s.State, Error: s.Error, Size: s.Size, Created: s.Created,
		})
	}
	return list
}
