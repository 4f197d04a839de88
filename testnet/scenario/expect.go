package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Expectation is what must hold of one figure at the end: "origin_ratio <= 1.01".
type Expectation struct {
	Figure string
	Op     string // <=, >=, ==
	Want   float64
	text   string
}

// figures are those that a run measures, with what each means. Times are in
// seconds here and may be written as durations.
var figures = map[string]string{
	"origin_ratio":     "bytes from the origin over the data set's",
	"origin_floor":     "bytes from the origin over D + (E-1) max(0, D-A)",
	"origin_avoidable": "bytes from the origin that a reachable node held or was reading, over the data set's",
	"late_avoidable":   "the same of after the last fault had ended",
	"origin_requests":  "requests that the origin answered, over the blocks read",
	"overrides":        "reads from the origin without a grant, over the blocks read",
	"read_errors":      "reads that ended in an error",
	"wrong_reads":      "reads that returned other bytes than the origin's; must be 0 in any case",
	"unread":           "blocks that were not read in the end",
	"longest_read":     "the longest read, in seconds",
	"late_reads":       "the longest that a read took after the last fault had ended, in seconds",
	"late_errors":      "reads begun after the last fault had ended that failed",
	"epoch_over_ideal": "time of the first epoch over S / min(origin rate, NIC rate)",
	"busiest_home":     "directory requests of the busiest home over the mean",
	"messages":         "directory messages that a node sent a second, on average",
	"message_bytes":    "bytes of directory messages that a node sent a second, on average",
	"corrupt":          "blocks from neighbours that did not match their digest",
}

// Figures returns the names of what is measured, sorted.
func Figures() []string {
	names := make([]string, 0, len(figures))
	for name := range figures {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// About says what a figure means.
func About(figure string) string { return figures[figure] }

func parseExpectation(s string) (Expectation, error) {
	f := strings.Fields(s)
	if len(f) != 3 {
		return Expectation{}, fmt.Errorf("expectation %q: write it like origin_ratio <= 1.01", s)
	}
	e := Expectation{Figure: f[0], Op: f[1], text: s}
	if figures[e.Figure] == "" {
		return e, fmt.Errorf("expectation %q: %q is not measured: want one of %s", s, e.Figure, strings.Join(Figures(), ", "))
	}
	if !slices.Contains([]string{"<=", ">=", "=="}, e.Op) {
		return e, fmt.Errorf("expectation %q: want <=, >= or ==, not %q", s, e.Op)
	}
	if d, err := time.ParseDuration(f[2]); err == nil && strings.HasSuffix(f[2], "s") {
		e.Want = d.Seconds()
		return e, nil
	}
	n, unit, err := quantity(f[2])
	if err != nil || unit != "" {
		return e, fmt.Errorf("expectation %q: %q is no number", s, f[2])
	}
	e.Want = n
	return e, nil
}

// UnmarshalYAML reads an expectation.
func (e *Expectation) UnmarshalYAML(n *yaml.Node) error { return decode(e, n, parseExpectation) }

// Holds reports whether the figure's value is as expected.
func (e Expectation) Holds(got float64) bool {
	switch e.Op {
	case "<=":
		return got <= e.Want
	case ">=":
		return got >= e.Want
	}
	return got == e.Want
}

// String returns the expectation as it was written.
func (e Expectation) String() string { return e.text }
