package peer

import (
	"context"
	"fmt"
	"io"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/fetch/ahead"
	"github.com/covey-cache/covey/loaders/parquet"
	"github.com/covey-cache/covey/loaders/tfrecord"
	"github.com/covey-cache/covey/loaders/webdataset"
)

// maxFileSamples bounds the samples of one file that the agent looks for: a shard
// of 16 GiB with samples of a kilobyte.
const maxFileSamples = 16 << 20

// indexer finds the samples in files of a format, by reading them through the
// cache. Of a Parquet file only the footer is read; the heads of records and of
// tar members lie all through a file, so that finding them brings all of it.
func (a *Agent) indexer(ds *dataset.Dataset, format string) ahead.Indexer {
	return func(ctx context.Context, file string, e dataset.Entry) ([]covey.Range, error) {
		r := &blockReader{ctx: ctx, a: a, ds: ds, file: file, entry: e, index: -1}
		defer r.close()
		switch format {
		case "tfrecord":
			return tfrecord.Index(r, e.Size, maxFileSamples)
		case "webdataset":
			samples, err := webdataset.Index(r, e.Size, maxFileSamples)
			ranges := make([]covey.Range, len(samples))
			for i, s := range samples {
				ranges[i] = s.Range
			}
			return ranges, err
		case "parquet":
			f, err := parquet.ReadFooter(r, e.Size)
			if err != nil {
				return nil, err
			}
			ranges := make([]covey.Range, len(f.Groups))
			for i, g := range f.Groups {
				ranges[i] = g.Range
			}
			return ranges, nil
		}
		return nil, fmt.Errorf("format %q: %w", format, covey.ErrInvalid)
	}
}

// blockReader reads one file of a data set through the fetcher, and holds the block
// it read last. It is not safe for concurrent use.
type blockReader struct {
	ctx   context.Context // of every fetch; io.ReaderAt has no place for it
	a     *Agent
	ds    *dataset.Dataset
	file  string
	entry dataset.Entry
	index int
	block blockstore.Handle
}

func (r *blockReader) ReadAt(p []byte, off int64) (n int, err error) {
	size := r.ds.Options().BlockSize
	for n < len(p) {
		at := off + int64(n)
		if at >= r.entry.Size {
			return n, io.EOF
		}
		if err := r.hold(int(at / size)); err != nil {
			return n, err
		}
		within := at % size
		k := int(min(int64(len(p)-n), int64(r.block.Len())-within))
		if _, err := r.block.ReadAt(p[n:n+k], within); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

func (r *blockReader) hold(index int) error {
	if index == r.index {
		return nil
	}
	e, slot, err := r.ds.Extent(r.ctx, r.file, r.entry, index)
	if err != nil {
		return err
	}
	b, err := r.a.fetcher.Get(r.ctx, e, slot)
	if err != nil {
		return err
	}
	r.close()
	r.block, r.index = b, index
	return nil
}

func (r *blockReader) close() {
	if r.block != nil {
		r.block.Release()
		r.block, r.index = nil, -1
	}
}
