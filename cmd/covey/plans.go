package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
)

func (a *app) plansCommand() *cobra.Command {
	return query(a, &cobra.Command{
		Use:     "plans",
		Short:   "list the plans of training jobs that the agent holds",
		Example: "  covey plans\n  covey plans --json | jq '.[].ranks'",
		Args:    exactly(),
	}, func(ctx context.Context, c *gateway.Client, _ []string) ([]gateway.Plan, error) {
		return c.Plans(ctx)
	}, showPlans)
}

func showPlans(w io.Writer, plans []gateway.Plan) {
	fmt.Fprintln(w, "JOB\tSOURCE\tSTATE\tRANK\tPOSITION\tOF\tAHEAD\tLEASE")
	for _, p := range plans {
		lease := time.Until(p.Expires).Round(time.Second)
		for _, r := range p.Ranks {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", planName(p), p.Source, p.State, r.Rank,
				r.Position, r.Samples, formatSize(r.AheadBytes), lease)
		}
	}
}

// planName is what people know a plan by.
func planName(p gateway.Plan) string {
	if p.Job != "" {
		return oneLine(p.Job)
	}
	return p.ID
}

// describePlan is a plan in one line.
func describePlan(p gateway.Plan) string {
	line := fmt.Sprintf("%s: %s, %s, %d of %d ranks on %d nodes", planName(p), p.Source, p.State, len(p.Ranks), p.World, p.Nodes)
	switch {
	case p.Reason != "":
		line += ": " + oneLine(p.Reason)
	case len(p.Ranks) > 0:
		slowest := p.Ranks[0]
		for _, r := range p.Ranks {
			if r.Position < slowest.Position {
				slowest = r
			}
		}
		line += fmt.Sprintf(", at sample %d of %d, %s ahead", slowest.Position, slowest.Samples, formatSize(slowest.AheadBytes))
	}
	return line
}
