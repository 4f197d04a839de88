package scenario

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

func TestShippedScenariosParse(t *testing.T) {
	names := Shipped()
	if len(names) == 0 {
		t.Fatal("no scenario is embedded")
	}
	for _, name := range names {
		s, err := Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.About == "" || s.Name != name {
			t.Errorf("%s: name %q, about %q", name, s.Name, s.About)
		}
		for _, c := range s.Cases {
			if len(c.Expect) == 0 {
				t.Errorf("%s %s expects nothing", name, c.Name)
			}
		}
	}
}

func TestParseTakesCasesOverTheBase(t *testing.T) {
	s, err := Parse("x", []byte(`
about: two
nodes: 7
cache: 80%
rates: {nic: 10Gbit}
expect: [origin_ratio <= 1.5]
cases:
  - name: a
  - name: b
    nodes: 9
    cache: 2GiB
    faults:
      - {at: 1s, kind: kill, nodes: 10%, for: 500ms, every: 2s, times: 3}
    expect: [longest_read <= 1m30s]
`), "epochs=4", "rates.far=2ms")
	if err != nil {
		t.Fatal(err)
	}
	a, b := s.Cases[0], s.Cases[1]
	if a.Name != "a" || a.Nodes != 7 || a.Cache.Share != 0.8 || a.Rates.NIC != 1.25e9 || a.Epochs != 4 || a.Expect[0].Want != 1.5 {
		t.Errorf("case a is %+v", a)
	}
	if a.Rates.Far.D() != 2*time.Millisecond || a.Rates.SameZone == 0 {
		t.Errorf("rates of case a are %+v: a setting must leave the rest alone", a.Rates)
	}
	if b.Nodes != 9 || b.Cache.N != 2<<30 || b.Cache.Share != 0 || b.Expect[0].Want != 90 || len(b.Expect) != 1 {
		t.Errorf("case b is %+v", b)
	}
	if f := b.Faults[0]; f.Nodes.Of(50) != 5 || f.Nodes.Of(3) != 1 || f.Repeats() != 3 {
		t.Errorf("fault of case b is %+v", f)
	}
	if end, ok := b.End(); !ok || end != 5500*time.Millisecond {
		t.Errorf("faults of case b end at %v, %v", end, ok)
	}
}

// Every mistake is one line that says where and what.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "nothing in it"},
		{"nodes: 3\nnodez: 4", "line 2: field nodez not found"},
		{"nodes: three", "line 1"},
		{"nodes: 0", "nodes: 0"},
		{"data: {size: 4MB, block: 4Mib}", `"4Mib" is no size`},
		{"data: {size: -4MB}", "is no size"},
		{"data: {size: 0x10}", "is no size"},
		{"data: {block: 1GiB}", "block of other than"},
		{"data: {objects: 1000000, size: 1TiB}", "blocks"},
		{"rates: {nic: 25}", "is no rate"},
		{"rates: {nic: 0Gbit}", "is no rate"},
		{"rates: {far: 5}", "is no duration"},
		{"share: some", `share: "some"`},
		{"order: wild", `order: "wild"`},
		{"expect: [origin_ratio < 1]", "want <=, >= or =="},
		{"expect: [origin_rato <= 1]", `"origin_rato" is not measured`},
		{"expect: [origin_ratio <= one]", "is no number"},
		{"expect: [origin_ratio]", "write it like"},
		{"faults: [{kind: quake, nodes: 1}]", `fault 1: kind: "quake" is unknown`},
		{"faults: [{kind: kill}]", "how many"},
		{"faults: [{kind: slow, nodes: 1}]", "factor"},
		{"faults: [{kind: join, nodes: 5%}]", "want a number"},
		{"faults: [{kind: kill, nodes: 1, times: 2}]", "times without every"},
		{"faults: [{kind: join, nodes: 9999}]", "more than 10000 nodes"},
		{"chaos: {faults: 3}", "chaos"},
		{"cases: [{nodes: 3}]", "without a name"},
		{"cases: [{name: a, nodez: 3}]", "field nodez not found"},
		{"cases: [{name: a, nodes: -1}]", "case a: nodes"},
		{"nodes: 3\n---\nnodes: 4", "more than one"},
		{"nodes: [3", "line"},
	} {
		_, err := Parse("x", []byte(c.text))
		switch {
		case err == nil:
			t.Errorf("%q was taken", c.text)
		case !errors.Is(err, covey.ErrInvalid):
			t.Errorf("%q: %v does not say that the input is wrong", c.text, err)
		case !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "scenario."):
			t.Errorf("%q: %q, want %q in one line", c.text, err, c.want)
		}
	}
}

func TestLoadNamesWhatThereIs(t *testing.T) {
	if _, err := Load("no-such"); err == nil || !strings.Contains(err.Error(), "epoch") {
		t.Errorf("unknown scenario: %v", err)
	}
	file := filepath.Join(t.TempDir(), "mine.yaml")
	if err := os.WriteFile(file, []byte("nodes: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load(file, "seed=9")
	if err != nil || s.Name != "mine" || s.Cases[0].Seed != 9 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, set := range []string{"seed", "=1", "seed=x", "no.such=1"} {
		if _, err := Load(file, set); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("setting %q: %v", set, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range Shipped() {
		b, err := shipped.ReadFile("shipped/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("faults: [{at: 1s, kind: slow, nodes: 5%, factor: 0.5, over: 2s}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse("x", b)
		if err != nil {
			if !errors.Is(err, covey.ErrInvalid) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q", err)
			}
			return
		}
		for _, c := range s.Cases {
			if c.Nodes < 1 || c.Nodes+c.Joiners() > maxNodes || c.Data.Blocks() > maxBlocks {
				t.Errorf("accepted %+v", c)
			}
		}
	})
}
