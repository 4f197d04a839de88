package train

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/ahead"
	"github.com/covey-cache/covey/fetch/plan"
)

// Options are one job, or the part of it that is on this node.
type Options struct {
	Load Load
	// Dir has the files, directly below it.
	Dir    string
	Epochs int
	// Ranks are this node's accelerators, of World in all.
	Ranks []uint32
	World uint32
	Seed  uint64
	// Compute says whether to sleep for the accelerator; without it the figures
	// are what the storage can do.
	Compute bool
	// Taken, if set, hears of each file that a rank is about to read: how many the
	// rank at that place in Ranks has begun, that one included.
	Taken func(rank int, files uint64)
	// Between, if set, is called before the first epoch and after each one.
	Between func(epoch int) error
}

// Epoch is what one epoch was like on this node.
type Epoch struct {
	Took time.Duration `json:"took_ns"`
	// FirstBatch is the time from the epoch's begin to the moment when every
	// accelerator had its first batch.
	FirstBatch time.Duration `json:"first_batch_ns"`
	Samples    int64         `json:"samples"`
	Bytes      int64         `json:"bytes"`
	// Utilisation is the time that the accelerators computed over the epoch's.
	Utilisation float64 `json:"utilisation"`
}

// Spec is the order in which the job reads its files.
func (o *Options) Spec(files int) plan.Spec {
	return plan.Spec{Samples: uint64(files), World: o.World, Seed: o.Seed, Shuffle: true, DropLast: true}
}

// Files lists the job's files.
func (o *Options) Files() ([]string, error) {
	list, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list { // in the order of their names
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	if len(names) < int(o.World) || o.World == 0 || len(o.Ranks) == 0 || o.Epochs < 1 {
		return nil, fmt.Errorf("%d files in %s for %d of %d accelerators and %d epochs: %w",
			len(names), o.Dir, len(o.Ranks), o.World, o.Epochs, covey.ErrInvalid)
	}
	return names, nil
}

// Run trains and returns what each epoch was like.
func Run(ctx context.Context, o Options) ([]Epoch, error) {
	names, err := o.Files()
	if err != nil {
		return nil, err
	}
	order, err := ahead.NewOrder(o.Spec(len(names)), o.Epochs)
	if err != nil {
		return nil, err
	}
	j := &job{Options: o, names: names, order: order, per: order.Total(o.Ranks[0]) / uint64(o.Epochs)}
	var epochs []Epoch
	for e := range o.Epochs {
		if o.Between != nil {
			if err := o.Between(e); err != nil {
				return epochs, err
			}
		}
		one, err := j.epoch(ctx, e)
		if err != nil {
			return epochs, err
		}
		epochs = append(epochs, one)
	}
	if o.Between != nil {
		err = o.Between(o.Epochs)
	}
	return epochs, err
}

// job is a run under way.
type job struct {
	Options
	names []string
	order *ahead.Order
	per   uint64 // files of one rank in one epoch
}

// epoch runs one epoch on all of this node's accelerators. They step together, as
// they do when gradients are exchanged.
func (j *job) epoch(ctx context.Context, number int) (Epoch, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	e := Epoch{}
	var readers sync.WaitGroup
	var bytes atomic.Int64
	queues := make([]chan struct{}, len(j.Ranks))
	for i := range j.Ranks {
		// Two batches are read ahead, as the benchmark has it.
		queues[i] = make(chan struct{}, 2*j.Load.Batch)
		readers.Go(func() {
			if err := j.read(ctx, number, i, queues[i], &bytes); err != nil {
				cancel(err)
			}
			close(queues[i])
		})
	}
	err := j.compute(ctx, queues, &e, began)
	if err != nil {
		cancel(err)
	}
	readers.Wait()
	e.Took, e.Bytes = time.Since(began), bytes.Load()
	if err == nil {
		err = context.Cause(ctx)
	}
	steps := float64(e.Samples) / float64(j.Load.Batch*len(j.Ranks))
	e.Utilisation = steps * j.Load.Compute.Seconds() / e.Took.Seconds()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil && context.Cause(ctx) == nil {
		err = nil
	}
	return e, err
}

// compute takes batches until the queues end.
func (j *job) compute(ctx context.Context, queues []chan struct{}, e *Epoch, began time.Time) error {
	for step := 0; ; step++ {
		for _, q := range queues {
			for range j.Load.Batch {
				select {
				case _, more := <-q:
					if !more {
						return nil // what is less than a batch is left out
					}
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		if step == 0 {
			e.FirstBatch = time.Since(began)
		}
		e.Samples += int64(j.Load.Batch * len(queues))
		if j.Compute {
			time.Sleep(j.Load.Compute)
		}
	}
}

// read reads one rank's files of one epoch with the load's threads, and puts a
// mark into the queue for each sample.
func (j *job) read(ctx context.Context, epoch, place int, queue chan<- struct{}, bytes *atomic.Int64) error {
	var next atomic.Uint64
	var threads sync.WaitGroup
	errs := make([]error, j.Load.Threads)
	for t := range errs {
		threads.Go(func() {
			buf := make([]byte, 1<<20)
			var index [1]uint32
			for errs[t] == nil {
				at := next.Add(1) - 1
				if at >= j.per {
					return
				}
				position := uint64(epoch)*j.per + at
				if _, errs[t] = j.order.Read(ctx, j.Ranks[place], position, index[:]); errs[t] != nil {
					return
				}
				if j.Taken != nil {
					j.Taken(place, position+1)
				}
				errs[t] = j.file(ctx, j.names[index[0]], buf, queue, bytes)
			}
		})
	}
	threads.Wait()
	return errors.Join(errs...)
}

// file reads one file from its begin to its end, sample by sample.
func (j *job) file(ctx context.Context, name string, buf []byte, queue chan<- struct{}, bytes *atomic.Int64) error {
	f, err := os.Open(filepath.Join(j.Dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for left := j.Load.FileSamples; left > 0; left-- {
		at, _ := f.Seek(0, io.SeekCurrent) // a regular file tells
		for size := (info.Size() - at) / int64(left); size > 0; {
			n, err := f.Read(buf[:min(size, int64(len(buf)))])
			size -= int64(n)
			bytes.Add(int64(n))
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
		}
		select {
		case queue <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
