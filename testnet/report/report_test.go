package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/covey-cache/covey/testnet/sim"
)

func sample() *sim.Result {
	return &sim.Result{
		Scenario: "x<b>", Case: "y&z", Seed: 7, Nodes: 3, Blocks: 10, DataBytes: 10 << 20, CacheBytes: 8 << 20,
		Bytes:  sim.Sources{Local: 1 << 20, Neighbour: 7 << 20, Origin: 12 << 20},
		Epochs: []sim.EpochResult{{Epoch: 1, Seconds: 2, Bytes: sim.Sources{Origin: 10 << 20}}, {Epoch: 2, Seconds: 0.5, Bytes: sim.Sources{Neighbour: 7 << 20, Origin: 2 << 20}}},
		Series: []sim.Point{{At: 1, Seconds: 1, Bytes: sim.Sources{Origin: 10 << 20}}, {At: 2.5, Seconds: 1.5, Bytes: sim.Sources{Local: 1 << 20, Neighbour: 7 << 20, Origin: 2 << 20}}},
		Faults: []sim.Strike{{At: 0.5, Kind: "kill", What: "kill of 1: 2"}, {At: 1.5, Kind: "kill", What: "end of kill of 1: 2", Ends: true}, {At: 2, Kind: "outage", What: "outage"}},
		Served: []int64{5, 1, 3}, Sent: []int64{2, 2, 9}, Gave: []int64{0, 1 << 20, 6 << 20}, Reads: 20, ReadP50: 0.001, ReadP99: 0.02,
		Figures: map[string]float64{"origin_ratio": 1.2, "origin_floor": 1.0, "busiest_home": 1.6667},
		Checks:  []sim.Check{{Text: "wrong_reads == 0", OK: true}, {Text: "origin_ratio <= 1.01", Got: 1.2}},
		Marks:   map[string]int64{"grant": 3, "stall": 1}, VirtualSeconds: 2.5,
	}
}

// The page loads nothing, escapes what it shows, and its charts are well-formed
// and inside their frames.
func TestHTML(t *testing.T) {
	var b bytes.Buffer
	if err := HTML(&b, "x<b>", "about <i>", []*sim.Result{sample(), {Scenario: "empty"}}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, bad := range []string{"http://", "https://", "<script", "<link", "<img", "@import", "url(", "x<b>", "<i>", "NaN", "Inf"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	charts := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(page, -1)
	if len(charts) != 2*len(figures(sample())) {
		t.Fatalf("%d charts", len(charts))
	}
	for _, c := range charts {
		for d := xml.NewDecoder(strings.NewReader(c)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("chart is not well-formed: %v: %s", err, c)
			}
		}
	}
	for _, want := range []string{`class="band"`, "kill of 1: 2", "origin_ratio &lt;= 1.01", `class="bad"`, "the least that any policy reads"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	Table(&b, []*sim.Result{sample()})
	for _, want := range []string{"x<b>/y&z: 3 nodes", "seed 7", "12 MiB", "1.2000", "FAILED", "grant, stall"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table does not have %q:\n%s", want, b.String())
		}
	}
}

func TestTicks(t *testing.T) {
	for _, most := range []float64{0, 0.003, 0.7, 1, 1.1, 9, 10, 123, 4.5e9} {
		all := ticks(most, 4)
		if len(all) < 2 || len(all) > 7 || all[0] != 0 || all[len(all)-1] > 1.001*positive(most) {
			t.Errorf("ticks up to %v: %v", most, all)
		}
	}
}
