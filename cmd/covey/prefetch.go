package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/gateway"
)

const (
	// pollEvery is how often the agent is asked and the bar moves; faster than
	// eyes follow is waste.
	pollEvery = 200 * time.Millisecond
	// lineEvery is how often a line is printed where there is no terminal.
	lineEvery = time.Second
	// cancelTimeout bounds telling the agent that the user has enough.
	cancelTimeout = 3 * time.Second
)

func (a *app) prefetchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prefetch SOURCE|PATH",
		Short: "bring a data set into the cache before it is needed",
		Long: `prefetch brings everything below a mounted path, or of a source, into the agent's cache,
and shows how far it is. Ctrl-C cancels it. It fails when a file could not be fetched.`,
		Example: `  covey prefetch /mnt/imagenet/train
  covey prefetch s3://bucket/imagenet --rate 500MiB
  covey prefetch /mnt/imagenet --manifest imagenet.manifest
  covey prefetch /mnt/imagenet --detach --json | jq -r .id`,
		Args: exactly("SOURCE|PATH"),
		RunE: a.prefetch,
	}
	addClientFlags(cmd)
	addJSONFlag(cmd)
	cmd.Flags().Int("replicas", 0, "`N` copies that the mesh should hold; this version keeps one, on this agent, and refuses more")
	cmd.Flags().String("rate", "", "at most `BYTES` a second, like 500MiB; default unlimited")
	cmd.Flags().String("manifest", "", "write a signed list of the digests of everything to `FILE`, for --verify-manifest of an agent")
	cmd.Flags().Bool("detach", false, "return at once; the job goes on in the agent")
	return cmd
}

func (a *app) prefetch(cmd *cobra.Command, args []string) error {
	req, err := prefetchRequest(cmd, args[0])
	if err != nil {
		return err
	}
	client, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	job, err := client.Prefetch(ctx, req)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("prefetch %s: interrupted", req.Path)
		}
		return err
	}
	if detach, _ := cmd.Flags().GetBool("detach"); detach {
		if wantJSON(cmd) {
			return a.printJSON(job)
		}
		fmt.Fprintf(a.stdout, "prefetch %s goes on as job %s\n", job.Path, job.ID)
		return nil
	}
	return a.watch(ctx, cmd, client, job)
}

// watch shows a job until it ends, and returns its error.
func (a *app) watch(ctx context.Context, cmd *cobra.Command, client *gateway.Client, job gateway.Job) error {
	var show progress = silent{}
	if !wantJSON(cmd) {
		show = a.newProgress()
	}
	job, err := follow(ctx, client, job, show)
	if err != nil {
		return err
	}
	if wantJSON(cmd) {
		if err := a.printJSON(job); err != nil {
			return err
		}
	}
	return outcome(job)
}

func prefetchRequest(cmd *cobra.Command, arg string) (gateway.PrefetchRequest, error) {
	path, err := pathOrSource(arg)
	if err != nil {
		return gateway.PrefetchRequest{}, err
	}
	req := gateway.PrefetchRequest{Path: path}
	req.Replicas, _ = cmd.Flags().GetInt("replicas")
	if req.Replicas < 0 {
		return req, misuse("--replicas: %d is negative", req.Replicas)
	}
	if file, _ := cmd.Flags().GetString("manifest"); file != "" {
		if req.Manifest, err = absPath(file); err != nil {
			return req, misuse("--manifest: %w", err)
		}
	}
	if text, _ := cmd.Flags().GetString("rate"); text != "" {
		if req.Rate, err = parseSize(text); err != nil {
			return req, misuse("--rate: %w", err)
		}
	}
	return req, nil
}

// follow shows a job until it ends, and returns how it ended. When the user
// interrupts, the job is cancelled.
func follow(ctx context.Context, c *gateway.Client, job gateway.Job, show progress) (gateway.Job, error) {
	defer func() { show.end(job) }()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for job.State == "running" {
		select {
		case <-ctx.Done():
			return job, cancelJob(context.WithoutCancel(ctx), c, job)
		case <-tick.C:
		}
		now, err := c.Job(ctx, job.ID)
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			return job, fmt.Errorf("follow %s: %w", jobName(job), err)
		}
		job = now
		show.show(job)
	}
	return job, nil
}

func cancelJob(ctx context.Context, c *gateway.Client, job gateway.Job) error {
	ctx, cancel := context.WithTimeout(ctx, cancelTimeout)
	defer cancel()
	if err := c.CancelJob(ctx, job.ID); err != nil && !errors.Is(err, covey.ErrNotFound) {
		return fmt.Errorf("cancel %s: %w", jobName(job), err)
	}
	if job.Kind == "verify" {
		return fmt.Errorf("%s: cancelled: the rest is not checked", jobName(job))
	}
	return fmt.Errorf("%s: cancelled: what was fetched stays in the cache", jobName(job))
}

// jobName is what a job does, on what. An agent that does not say the kind knows
// only prefetches.
func jobName(job gateway.Job) string {
	kind, path := job.Kind, job.Path
	if kind == "" {
		kind = "prefetch"
	}
	if path == "" {
		path = "the cache"
	}
	return kind + " " + path
}

// outcome is the error of a job that has ended.
func outcome(job gateway.Job) error {
	switch {
	case job.State == "cancelled":
		return fmt.Errorf("%s: cancelled by somebody else", jobName(job))
	case job.FilesError > 0 && job.Error != "":
		return fmt.Errorf("%s: %d of %d files failed, one of them: %s", jobName(job), job.FilesError, job.Files, job.Error)
	case job.FilesError > 0:
		return fmt.Errorf("%s: %d of %d files failed: the agent's log names them", jobName(job), job.FilesError, job.Files)
	case job.State != "done":
		return fmt.Errorf("%s: %s", jobName(job), job.Error)
	case job.BadBlocks > 0:
		return fmt.Errorf("%s: %s bad and dropped: reads fetch them again; look at that disk", jobName(job), count(job.BadBlocks, "block"))
	}
	return nil
}
