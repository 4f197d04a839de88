// Command covey-testnet runs meshes on one machine: the demo and the
// measurements that BENCHMARKS.md quotes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/testnet"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := &cobra.Command{
		Use: "covey-testnet", Short: "Runs covey meshes on this machine", Version: version,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(demoCommand(), benchCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "covey-testnet: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// beside returns the program of this name that was built together with this one.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return filepath.Join("bin", name)
	}
	return filepath.Join(filepath.Dir(self), name)
}

func demoCommand() *cobra.Command {
	opts := testnet.DemoOptions{Out: os.Stdout}
	c := &cobra.Command{
		Use: "demo", Short: "Four agents, one real S3 server, one read each", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if opts.Tree == "" {
				opts.Tree = testnet.GoRoot()
			}
			return testnet.Demo(c.Context(), opts)
		},
	}
	c.Flags().StringVar(&opts.Binary, "binary", beside("covey"), "the covey program")
	c.Flags().StringVar(&opts.S3Server, "s3-server", beside("versitygw"), "the S3 server")
	c.Flags().StringVar(&opts.Tree, "tree", "", "the directory to read; the installed Go toolchain when not given")
	c.Flags().IntVar(&opts.Agents, "agents", 4, "how many agents")
	c.Flags().IntVar(&opts.Readers, "readers", 4, "files open at once on each mount")
	c.Flags().BoolVar(&opts.Keep, "keep", false, "leave the working directory and its logs behind")
	return c
}

func benchCommand() *cobra.Command {
	opts := testnet.BenchOptions{Out: os.Stdout}
	c := &cobra.Command{
		Use: "bench", Short: "Warm reads through a mount over the native file, as ratios", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if cold, _ := c.Flags().GetBool("cold"); cold {
				return testnet.BenchCold(c.Context(), opts)
			}
			if n, _ := c.Flags().GetInt("names"); n > 0 {
				return testnet.BenchNames(c.Context(), opts, n)
			}
			if whole, _ := c.Flags().GetBool("mount"); whole {
				return testnet.BenchMount(c.Context(), opts)
			}
			return testnet.Bench(c.Context(), opts)
		},
	}
	c.Flags().Int("names", 0, "one directory with that many entries instead, on /dev/shm")
	c.Flags().Bool("cold", false, "first reads from an origin with 20 ms and 1 GiB/s instead")
	c.Flags().Bool("mount", false, "every row of the mount's budget instead")
	c.Flags().StringVar(&opts.Binary, "binary", beside("covey"), "the covey program")
	c.Flags().IntVar(&opts.Rounds, "rounds", 5, "rounds; the median counts")
	c.AddCommand(stallCommand(), exchangeCommand())
	return c
}
