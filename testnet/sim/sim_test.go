package sim

import (
	"testing"
	"testing/synctest"

	"github.com/covey-cache/covey/testnet/scenario"
)

// run runs a case in virtual time.
func run(t *testing.T, name string, c scenario.Case) (r *Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = Run(t.Context(), c, Options{Scenario: name}); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// load loads a shipped scenario with some settings changed.
func load(t *testing.T, name string, set ...string) *scenario.Scenario {
	t.Helper()
	s, err := scenario.Load(name, set...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verify fails the test for each expectation that does not hold, with the seed.
func verify(t *testing.T, r *Result) {
	t.Helper()
	for _, c := range r.Checks {
		if !c.OK {
			t.Errorf("%s/%s with seed %d: %s, got %v (`covey testnet run %s --case %s --seed %d`)",
				r.Scenario, r.Case, r.Seed, c.Text, c.Got, r.Scenario, r.Case, r.Seed)
		}
	}
}

// Shipped scenarios hold at a tenth of the data.
func TestShipped(t *testing.T) {
	for _, name := range scenario.Shipped() {
		for _, c := range load(t, name, "data.size=8MiB").Cases {
			t.Run(name+"/"+c.Name, func(t *testing.T) { verify(t, run(t, name, c)) })
		}
	}
}
