// Package report shows what a simulated mesh did: as a table for a terminal, and
// as one HTML page with charts that needs nothing else.
package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/covey-cache/covey/testnet/scenario"
	"github.com/covey-cache/covey/testnet/sim"
)

// Table writes the results for people.
func Table(out io.Writer, results []*sim.Result) {
	for i, r := range results {
		if i > 0 {
			fmt.Fprintln(out)
		}
		table(out, r)
	}
}

func table(out io.Writer, r *sim.Result) {
	fmt.Fprintf(out, "%s: %d nodes, %d blocks, %s, seed %d: %s of virtual time\n",
		Title(r), r.Nodes, r.Blocks, size(r.DataBytes), r.Seed, seconds(r.VirtualSeconds))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "epoch\ttime\tlocal\tneighbour\torigin\torigin / D\t")
	for _, e := range shown(r.Epochs) {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%.4f\t\n", e.Epoch, seconds(e.Seconds), size(e.Bytes.Local), size(e.Bytes.Neighbour),
			size(e.Bytes.Origin), float64(e.Bytes.Origin)/float64(r.DataBytes))
	}
	fmt.Fprintf(w, "all\t%s\t%s\t%s\t%s\t%.4f\t\n", seconds(r.VirtualSeconds), size(r.Bytes.Local), size(r.Bytes.Neighbour),
		size(r.Bytes.Origin), float64(r.Bytes.Origin)/float64(r.DataBytes))
	_ = w.Flush() // whoever reads out has the error
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d reads\tp50 %s, p99 %s, longest %s\t\n", r.Reads, seconds(r.ReadP50), seconds(r.ReadP99), seconds(r.Figures["longest_read"]))
	for _, name := range scenario.Figures() {
		if v, ok := r.Figures[name]; ok && v != 0 {
			fmt.Fprintf(w, "%s\t%s\t%s\n", name, number(v), scenario.About(name))
		}
	}
	if n := len(r.Faults); n > 0 {
		fmt.Fprintf(w, "faults\t%d\tthat struck or ended\n", n)
	}
	fmt.Fprintf(w, "states reached\t%d\t%s\n", len(r.Marks), marks(r))
	for _, c := range r.Checks {
		verdict := "ok"
		if !c.OK {
			verdict = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", verdict, number(c.Got), c.Text)
	}
	_ = w.Flush()
}

// maxEpochRows keeps a table on a screen; the JSON has all.
const maxEpochRows = 12

func shown(all []sim.EpochResult) []sim.EpochResult {
	return all[:min(len(all), maxEpochRows)]
}

// Title names a case.
func Title(r *sim.Result) string {
	if r.Case == "" {
		return r.Scenario
	}
	return r.Scenario + "/" + r.Case
}

func marks(r *sim.Result) string {
	names := make([]string, 0, len(r.Marks))
	for name := range r.Marks {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// number writes a figure with four digits that matter.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e9 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g", v)
}

func seconds(s float64) string {
	switch {
	case s == 0:
		return "0 s"
	case s < 1e-3:
		return fmt.Sprintf("%.0f µs", s*1e6)
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1e3)
	}
	return fmt.Sprintf("%.2f s", s)
}

func size(n int64) string {
	v := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"} {
		if v < 1024 || unit == "PiB" {
			if unit == "B" || v >= 100 {
				return fmt.Sprintf("%.0f %s", v, unit)
			}
			return fmt.Sprintf("%.3g %s", v, unit)
		}
		v /= 1024
	}
	return ""
}
