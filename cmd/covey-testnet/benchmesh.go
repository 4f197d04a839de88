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

// exchangeCommand measures the data planes.
func exchangeCommand() *cobra.Command {
	opts := testnet.ExchangeOptions{Out: os.Stdout}
	c := &cobra.Command{
		Use: "exchange", Short: "Blocks between two members on each data plane, against a bare TCP copy with BLAKE3", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return testnet.BenchExchange(c.Context(), opts) },
	}
	c.Flags().IntVar(&opts.Rounds, "rounds", 5, "rounds of 1 GiB each; the median counts")
	return c
}
