package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/testnet/report"
	"github.com/covey-cache/covey/testnet/scenario"
	"github.com/covey-cache/covey/testnet/sim"
	"github.com/covey-cache/covey/testnet/virtual"
)

func (a *app) testnetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "testnet",
		Short: "run a mesh of many nodes through a scenario",
		Example: `  covey testnet list
  covey testnet run churn`,
		Args: a.needVerb,
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(a.testnetRunCommand(), a.testnetListCommand())
	return cmd
}

func (a *app) testnetListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "list the scenarios that are built in",
		Example: `  covey testnet list`,
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			for _, name := range scenario.Shipped() {
				s, err := scenario.Load(name)
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%s\t%s\n", name, oneLine(s.About))
			}
			return w.Flush()
		},
	}
}

// simulation is what covey testnet run was asked for.
type simulation struct {
	seed           uint64
	set            []string
	only           string
	report, events string
}

func (a *app) testnetRunCommand() *cobra.Command {
	var o simulation
	cmd := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "simulate a mesh in virtual time, and report",
		Long: `run simulates a mesh in this process, in virtual time: many nodes that read a data set
through the directory and the fetcher of the product, over a simulated network, origin and
cache, with the faults that the scenario has. SCENARIO is the name of one that is built in
(covey testnet list) or a YAML file. The exit code is 1 when something was not as the
scenario expects; the seed repeats the inputs and the faults.`,
		Example: `  covey testnet run epoch
  covey testnet run churn --seed 7 --set nodes=200 --report churn.html
  covey testnet run ./mine.yaml --events events.jsonl --json`,
		Args: exactly("SCENARIO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("seed") {
				o.set = append(o.set, fmt.Sprintf("seed=%d", o.seed))
			}
			s, err := scenario.Load(args[0], o.set...)
			if err == nil && o.only != "" {
				err = keepCase(s, o.only)
			}
			if err != nil {
				return err
			}
			return a.simulate(cmd, s, o)
		},
	}
	cmd.Flags().Uint64Var(&o.seed, "seed", 0, "decide inputs, topology and faults by `N`; default what the scenario says")
	cmd.Flags().StringArrayVar(&o.set, "set", nil, "put `KEY=VALUE` over what the scenario says: nodes=200, data.objects=50")
	cmd.Flags().StringVar(&o.only, "case", "", "run only the case called `NAME`")
	cmd.Flags().StringVar(&o.report, "report", "", "write the page with the charts to `FILE`; default covey-SCENARIO.html here, - for none")
	cmd.Flags().StringVar(&o.events, "events", "", "write every event to `FILE`, a line of JSON each")
	addJSONFlag(cmd)
	return cmd
}

func keepCase(s *scenario.Scenario, name string) error {
	var names []string
	for _, c := range s.Cases {
		names = append(names, c.Name)
	}
	s.Cases = slices.DeleteFunc(s.Cases, func(c scenario.Case) bool { return c.Name != name })
	if len(s.Cases) == 0 {
		return misuse("scenario %s has no case %q: want one of %s", s.Name, name, strings.Join(names, ", "))
	}
	return nil
}

// simulate runs the cases and shows what came of them.
func (a *app) simulate(cmd *cobra.Command, s *scenario.Scenario, o simulation) (err error) {
	out := sim.Options{Scenario: s.Name}
	if o.events != "" {
		f, err := os.Create(o.events)
		if err != nil {
			return fmt.Errorf("log the events: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out.Events = f
	}
	var results []*sim.Result
	// The command's context is none of virtual time's, and could not end anything
	// there. An interrupt ends the process, which has nothing to clean up.
	err = virtual.Run(func() error {
		for _, c := range s.Cases {
			r, err := sim.Run(context.Background(), c, out)
			if err != nil {
				return err
			}
			results = append(results, r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if o.report == "" {
		o.report = "covey-" + s.Name + ".html"
	}
	if err := a.showSimulation(cmd, s, results, o.report); err != nil {
		return err
	}
	return asExpected(results)
}

func (a *app) showSimulation(cmd *cobra.Command, s *scenario.Scenario, results []*sim.Result, page string) error {
	if page != "-" {
		if err := writeFile(page, func(w io.Writer) error { return report.HTML(w, s.Name, s.About, results) }); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	if wantJSON(cmd) {
		return a.printJSON(results)
	}
	report.Table(a.stdout, results)
	if page != "-" {
		fmt.Fprintf(a.stdout, "\nreport: %s\n", page)
	}
	return nil
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// asExpected is an error when anything was not as expected; it names the seed.
func asExpected(results []*sim.Result) error {
	var failed []string
	for _, r := range results {
		for _, c := range r.Checks {
			if !c.OK {
				failed = append(failed, fmt.Sprintf("%s: %s, got %.4g with seed %d", report.Title(r), c.Text, c.Got, r.Seed))
			}
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("not as expected: %s", strings.Join(failed, "; "))
	}
	return nil
}
