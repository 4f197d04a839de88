package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/testnet"
)

// stallCommand measures what a reader notices of a neighbour that fails.
func stallCommand() *cobra.Command {
	opts := testnet.StallOptions{Out: os.Stdout}
	c := &cobra.Command{
		Use: "stall", Short: "The longest read while the best neighbour is killed, or stopped", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return testnet.BenchStall(c.Context(), opts) },
	}
	c.Flags().StringVar(&opts.Binary, "binary", beside("covey"), "the covey program")
	c.Flags().IntVar(&opts.Rounds, "rounds", 5, "rounds; the median counts")
	return c
}
