package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/loaders/train"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "measure",
		Example: "  covey bench train --load resnet50 --scale 0.05 /mnt/source",
		Args:    a.needVerb,
		RunE:    func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(a.benchTrainCommand())
	return cmd
}

// trainFlags are the flags of covey bench train.
type trainFlags struct {
	load                    string
	scale                   float64
	accelerators, world     uint32
	firstRank               uint32
	epochs, generate        int
	seed                    uint64
	startup                 time.Duration
	planned, free, jsonLine bool
}

func (a *app) benchTrainCommand() *cobra.Command {
	var f trainFlags
	names := strings.Join(slices.Sorted(maps.Keys(train.Loads)), ", ")
	cmd := &cobra.Command{
		Use:   "train DIR",
		Short: "read a directory as a training job does, and say how busy its accelerators were",
		Long: `Reads the files of DIR as one of the loads of MLPerf Storage does: batches read by
threads, computing as sleep with the benchmark's times for an H100, all accelerators
in step. It prints for each epoch the accelerators' utilisation, samples a second, the
time to the first batch, and what the agent of this machine read from its origin.

With --plan the job tells the agent what it will read. MLPerf's rules forbid that, so
only a run without it can be compared with the benchmark's results.`,
		Example: `  covey bench train --load resnet50 --scale 0.05 --generate 16 /data/source
  covey mount /data/source /mnt/source
  covey bench train --load resnet50 --scale 0.05 --plan /mnt/source`,
		Args: exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.jsonLine = wantJSON(cmd)
			return a.benchTrain(cmd, args[0], f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.load, "load", "resnet50", "which load: "+names)
	fs.Float64Var(&f.scale, "scale", 1, "how long samples are, of their real length; the computing stays as it is")
	fs.Uint32Var(&f.accelerators, "accelerators", 1, "how many accelerators of this machine")
	fs.Uint32Var(&f.world, "world", 0, "how many accelerators of all machines; 0 means this one's")
	fs.Uint32Var(&f.firstRank, "first-rank", 0, "the rank of this machine's first accelerator")
	fs.IntVar(&f.epochs, "epochs", 2, "how many epochs; the first is cold when nothing is cached yet")
	fs.IntVar(&f.generate, "generate", 0, "write so many files of the load into DIR, and do nothing else")
	fs.Uint64Var(&f.seed, "seed", 1, "the seed of the order")
	fs.DurationVar(&f.startup, "startup", time.Second, "how long the job takes to begin, after it has told its plan where it tells one")
	fs.BoolVar(&f.planned, "plan", false, "tell the agent what will be read")
	fs.BoolVar(&f.free, "no-compute", false, "do not sleep: as fast as it can be read")
	addClientFlags(cmd)
	addJSONFlag(cmd)
	return cmd
}

// trainReport is what covey bench train prints.
type trainReport struct {
	Load         string       `json:"load"`
	Scale        float64      `json:"scale"`
	Planned      bool         `json:"planned"`
	Accelerators uint32       `json:"accelerators"`
	World        uint32       `json:"world"`
	Files        int          `json:"files"`
	Bar          float64      `json:"bar"`
	Epochs       []trainEpoch `json:"epochs"`
	// Origin says whether an agent answered, so that origin bytes are known.
	Origin bool `json:"origin_known"`
	// FloorBytes is what the origin has to give for this node's reads when nothing
	// is cached, with the agent's cache and no other.
	FloorBytes int64 `json:"floor_bytes,omitempty"`
}

type trainEpoch struct {
	train.Epoch
	OriginBytes int64 `json:"origin_bytes"`
}

func (a *app) benchTrain(cmd *cobra.Command, dir string, f trainFlags) error {
	load, ok := train.Loads[f.load]
	switch {
	case !ok:
		return misuse("no load %q: give one of %s", f.load, strings.Join(slices.Sorted(maps.Keys(train.Loads)), ", "))
	case !(f.scale > 0 && f.scale <= 1):
		return misuse("scale %v: give a number above 0, up to 1", f.scale)
	case f.generate < 0 || f.epochs < 1 || f.accelerators < 1 || f.startup < 0:
		return misuse("epochs and accelerators must be 1 or more, and files 0 or more")
	}
	load = load.Scaled(f.scale)
	if f.generate > 0 {
		return load.Generate(dir, f.generate)
	}
	if f.world == 0 {
		f.world = f.firstRank + f.accelerators
	}
	if f.firstRank+f.accelerators > f.world {
		return misuse("ranks %d to %d of a world of %d", f.firstRank, f.firstRank+f.accelerators-1, f.world)
	}
	at, err := absPath(dir)
	if err != nil {
		return misuse("%w", err)
	}
	o := train.Options{Load: load, Dir: at, Epochs: f.epochs, World: f.world, Seed: f.seed, Compute: !f.free}
	for i := range f.accelerators {
		o.Ranks = append(o.Ranks, f.firstRank+i)
	}
	report, err := a.trainOn(cmd, o, f)
	if err != nil {
		return err
	}
	if f.jsonLine {
		return a.printJSON(report)
	}
	return report.show(a.stdout)
}

// trainOn runs the job, with the agent that the command means where there is one.
func (a *app) trainOn(cmd *cobra.Command, o train.Options, f trainFlags) (*trainReport, error) {
	ctx := cmd.Context()
	names, err := o.Files()
	if err != nil {
		return nil, err
	}
	r := &trainReport{Load: f.load, Scale: f.scale, Planned: f.planned, Accelerators: f.accelerators, World: f.world,
		Files: len(names), Bar: o.Load.Bar}
	c, err := a.client(cmd)
	switch {
	case err == nil:
		defer c.Close()
		r.Origin = true
	case f.planned || !errors.Is(err, gateway.ErrNoAgent):
		return nil, err
	}
	var origin []int64
	// What is read ahead while the job begins is of its first epoch.
	note := func(epoch int) error {
		if c == nil || epoch == 0 {
			return nil
		}
		s, err := c.Status(ctx)
		origin = append(origin, s.OriginBytes)
		return err
	}
	o.Between = note
	if err := note(-1); err != nil {
		return nil, err
	}
	if f.planned {
		end, err := postPlan(ctx, c, &o, len(names))
		if err != nil {
			return nil, err
		}
		defer end()
	}
	select {
	case <-time.After(f.startup):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	epochs, err := train.Run(ctx, o)
	if err != nil {
		return nil, err
	}
	for i, e := range epochs {
		one := trainEpoch{Epoch: e}
		if r.Origin {
			one.OriginBytes = origin[i+1] - origin[i]
		}
		r.Epochs = append(r.Epochs, one)
	}
	if r.Origin {
		return r, r.setFloor(ctx, c)
	}
	return r, nil
}

// setFloor computes what no policy can read less than.
func (r *trainReport) setFloor(ctx context.Context, c *gateway.Client) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	var room int64
	for _, t := range s.Tiers {
		room += t.Budget
	}
	read := r.Epochs[0].Bytes
	r.FloorBytes = read + int64(len(r.Epochs)-1)*max(0, read-room)
	return nil
}

// postPlan tells the agent what the job reads, and has the job count in the plan's
// cursor file. The function that is returned ends the plan.
func postPlan(ctx context.Context, c *gateway.Client, o *train.Options, files int) (end func(), err error) {
	b, err := o.Spec(files).MarshalBinary()
	if err != nil {
		return nil, err
	}
	p, err := c.AddPlan(ctx, gateway.PlanRequest{
		Job: "covey bench train " + o.Load.Name, Source: o.Dir, Spec: base64.StdEncoding.EncodeToString(b),
		Epochs: o.Epochs, Ranks: o.Ranks,
	})
	if err != nil {
		return nil, err
	}
	cursor, err := os.OpenFile(p.Cursor, os.O_WRONLY, 0)
	if err != nil {
		return nil, errors.Join(err, c.CancelPlan(ctx, p.ID))
	}
	counts := make([]atomic.Uint64, len(o.Ranks))
	o.Taken = func(rank int, files uint64) {
		for {
			n := counts[rank].Load()
			if files <= n {
				return
			}
			if counts[rank].CompareAndSwap(n, files) {
				break
			}
		}
		_, _ = cursor.WriteAt(binary.LittleEndian.AppendUint64(nil, files), int64(64+8*rank)) // advice
	}
	return func() {
		cursor.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = c.CancelPlan(ctx, p.ID) // its lease ends by itself
	}, nil
}

func (r *trainReport) show(out io.Writer) error {
	kind := "hint-free"
	if r.Planned {
		kind = "planned"
	}
	fmt.Fprintf(out, "%s at %g of its samples' length, %s: %d of %d accelerators, %d files, bar %.0f %%\n",
		r.Load, r.Scale, kind, r.Accelerators, r.World, r.Files, 100*r.Bar)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "epoch\tutilisation\tsamples/s\tMiB/s\tfirst batch\ttook\torigin\t")
	var origin int64
	for i, e := range r.Epochs {
		from := "-"
		if r.Origin {
			from = formatSize(e.OriginBytes)
			origin += e.OriginBytes
		}
		s := e.Took.Seconds()
		fmt.Fprintf(w, "%d\t%.1f %%\t%.0f\t%.1f\t%v\t%v\t%s\t\n", i+1, 100*e.Utilisation, float64(e.Samples)/s,
			float64(e.Bytes)/s/(1<<20), e.FirstBatch.Round(time.Millisecond), e.Took.Round(time.Millisecond), from)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if r.Origin && r.FloorBytes > 0 {
		fmt.Fprintf(out, "origin bytes / floor: %.4f (floor %s, for this node alone with nothing cached)\n",
			float64(origin)/float64(r.FloorBytes), formatSize(r.FloorBytes))
	}
	return nil
}
