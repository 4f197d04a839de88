package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
)

func (a *app) stagedCommand() *cobra.Command {
	cmd := query(a, &cobra.Command{
		Use:   "staged",
		Short: "list files that were written to a mount and are not at their origin yet",
		Long: `staged lists the files that programs wrote to mounts with rw and that are not at their
origin: those being written or uploaded now, those whose upload failed (their writer was
told at close), and those that were being written when an agent ended.

The last two kinds stay until they are uploaded or dropped.`,
		Example: "  covey staged\n  covey staged upload ID\n  covey staged drop ID",
		Args:    exactly(),
	}, func(ctx context.Context, c *gateway.Client, _ []string) ([]gateway.StagedFile, error) {
		s, err := c.Status(ctx)
		return s.Staged, err
	}, showStaged)
	cmd.AddCommand(
		a.stagedAction("upload", "upload a staged file under its path now"),
		a.stagedAction("drop", "delete a staged file; what was written to it is lost"))
	return cmd
}

func (a *app) stagedAction(action, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: action + " ID", Short: short, Args: exactly("ID"), Example: "  covey staged " + action + " ID",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, func(ctx context.Context, c *gateway.Client) error {
				return c.Staged(ctx, gateway.StagedRequest{ID: args[0], Action: action})
			})
		},
	}
	addClientFlags(cmd)
	return cmd
}

func showStaged(w io.Writer, files []gateway.StagedFile) {
	fmt.Fprintln(w, "ID\tSTATE\tSIZE\tAGE\tPATH\tSOURCE\tERROR")
	for _, f := range files {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%q\t%s\t%s\n", f.ID, f.State, formatSize(f.Size), since(f.Created), f.Path, f.Source, oneLine(f.Error))
	}
}
