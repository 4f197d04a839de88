package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
)

// orNothing wants one argument of that name, or none.
func orNothing(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return misuse("%d arguments given, want %s or none: see `%s --help`", len(args), name, cmd.CommandPath())
	}
}

// optionalPath is the path that the arguments name, "" when there are none.
func optionalPath(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	return pathOrSource(args[0])
}

// onPath makes a command that asks the agent one thing about one path.
func onPath[T any](a *app, cmd *cobra.Command,
	ask func(c *gateway.Client, ctx context.Context, path string) (T, error), show func(w io.Writer, v T)) *cobra.Command {
	return query(a, cmd, func(ctx context.Context, c *gateway.Client, args []string) (T, error) {
		path, err := optionalPath(args)
		if err != nil {
			var none T
			return none, err
		}
		return ask(c, ctx, path)
	}, show)
}

func (a *app) statCommand() *cobra.Command {
	return onPath(a, &cobra.Command{
		Use:   "stat PATH",
		Short: "show how much of a file or directory is cached here",
		Long: `stat lists what is at a mounted path, or in a source, and shows how much of it is in the
cache of this agent, as the origin has it now.`,
		Example: "  covey stat /mnt/imagenet/train\n  covey stat --json s3://bucket/imagenet | jq .files_cached",
		Args:    exactly("PATH"),
	}, (*gateway.Client).Stat, showStat)
}

func showStat(w io.Writer, s gateway.Stat) {
	fmt.Fprintf(w, "path\t%s\n", s.Path)
	if s.Key != "" {
		fmt.Fprintf(w, "key\t%s, version %s\n", s.Key, s.Version)
	}
	fmt.Fprintf(w, "kind\t%s\n", s.Kind)
	fmt.Fprintf(w, "size\t%s (%d bytes)\n", formatSize(s.Size), s.Size)
	fmt.Fprintf(w, "files\t%d of %d cached whole\n", s.FilesCached, s.Files)
	fmt.Fprintf(w, "blocks\t%d of %d cached, %s on disk\n", s.BlocksCached, s.Blocks, formatSize(s.Used))
	if s.BlocksCached > 0 {
		fmt.Fprintf(w, "copies\t%d primaries, %d replicas\n", s.BlocksCached-s.BlocksReplica, s.BlocksReplica)
	}
	fmt.Fprintf(w, "pinned\t%d of %d files\n", s.FilesPinned, s.Files)
	if len(s.Tiers) > 1 {
		for _, t := range s.Tiers {
			fmt.Fprintf(w, "tier\t%s: %d blocks, %s, %d files whole\n", t.Dir, t.Blocks, formatSize(t.Used), t.FilesCached)
		}
	}
}

func (a *app) duCommand() *cobra.Command {
	return onPath(a, &cobra.Command{
		Use:   "du [PATH]",
		Short: "show what is cached here, by data set or below a path",
		Long: `du adds up what the cache of this agent holds: by mounted data set, and by origin where
nothing of it is mounted; or at and below a path. Versions that the origin has no more
count as long as they are here.`,
		Example: "  covey du\n  covey du /mnt/imagenet/train --json | jq .total.used_bytes",
		Args:    orNothing("PATH"),
	}, (*gateway.Client).Du, showDu)
}

func showDu(w io.Writer, d gateway.Du) {
	fmt.Fprintln(w, "USED\tFILES\tWHOLE\tBLOCKS\tREPLICAS\tPINNED\tRESERVED\tSOURCE")
	row := func(s gateway.DuSource, name string) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", formatSize(s.Used), s.Files, s.FilesCached, s.Blocks,
			s.BlocksReplica, s.FilesPinned, formatSize(s.Reserved), name)
		if len(s.Tiers) < 2 {
			return
		}
		for _, t := range s.Tiers {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t\t  in %s\n", formatSize(t.Used), t.Files, t.FilesCached, t.Blocks,
				t.BlocksReplica, t.FilesPinned, t.Dir)
		}
	}
	for _, s := range d.Sources {
		row(s, s.Source)
	}
	if len(d.Sources) != 1 {
		row(d.Total, "total")
	}
}

func (a *app) pinCommand() *cobra.Command {
	return onPath(a, &cobra.Command{
		Use:   "pin PATH",
		Short: "keep a file or directory in the cache",
		Long: `pin keeps every file at or below a path from eviction, across restarts of the agent, and
reserves room for what is not cached yet; covey prefetch brings that. It pins all of the
files or, when they do not fit, none. Files that are added later are not pinned.`,
		Example: "  covey pin /mnt/imagenet/val && covey prefetch /mnt/imagenet/val",
		Args:    exactly("PATH"),
	}, (*gateway.Client).Pin, showPinned)
}

func showPinned(w io.Writer, p gateway.Pinned) {
	fmt.Fprintf(w, "%s: %s pinned, %s", p.Path, count(p.Files, "file"), formatSize(p.Bytes))
	if old := p.Files - p.Changed; old > 0 {
		fmt.Fprintf(w, ", %d of them before", old)
	}
	if p.Missing > 0 {
		fmt.Fprintf(w, "; %s are not cached yet: covey prefetch %s brings them", formatSize(p.Missing), p.Path)
	}
	fmt.Fprintln(w)
}

func (a *app) unpinCommand() *cobra.Command {
	return onPath(a, &cobra.Command{
		Use:     "unpin PATH",
		Short:   "end the pins of a file or directory",
		Long:    `unpin ends the pins of all files at or below a path. What is cached stays until its room is needed.`,
		Example: "  covey unpin /mnt/imagenet/val",
		Args:    exactly("PATH"),
	}, (*gateway.Client).Unpin, func(w io.Writer, p gateway.Pinned) {
		fmt.Fprintf(w, "%s: %s unpinned, %s\n", p.Path, count(p.Changed, "file"), formatSize(p.Bytes))
	})
}

func (a *app) evictCommand() *cobra.Command {
	return onPath(a, &cobra.Command{
		Use:   "evict PATH",
		Short: "free what a file or directory takes of the cache",
		Long: `evict frees what this agent has cached at or below a path; a later read fetches it again.
What is being read stays readable. Where a file is pinned, nothing is freed.`,
		Example: "  covey evict /mnt/imagenet/train",
		Args:    exactly("PATH"),
	}, (*gateway.Client).Evict, func(w io.Writer, e gateway.Evicted) {
		fmt.Fprintf(w, "%s: %s evicted, %s freed\n", e.Path, count(e.Files, "file"), formatSize(e.Freed))
	})
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.FormatInt(n, 10) + " " + what + "s"
}

func (a *app) verifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [PATH]",
		Short: "check cached blocks on the disk against their digests",
		Long: `verify reads what this agent has cached, all of it or what is at or below a path, from the
disk and compares it with its digests, at 64 MiB/s so that jobs do not notice. Blocks that
differ, or cannot be read, are dropped, and fetched again when they are read. It fails when
there were any. Ctrl-C cancels it.`,
		Example: "  covey verify\n  covey verify /mnt/imagenet --json | jq .bad_blocks",
		Args:    orNothing("PATH"),
		RunE:    a.verify,
	}
	addClientFlags(cmd)
	addJSONFlag(cmd)
	return cmd
}

func (a *app) verify(cmd *cobra.Command, args []string) error {
	path, err := optionalPath(args)
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
	job, err := client.Verify(ctx, path)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: interrupted", jobName(gateway.Job{Kind: "verify", Path: path}))
		}
		return err
	}
	return a.watch(ctx, cmd, client, job)
}
