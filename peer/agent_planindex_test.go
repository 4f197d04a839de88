package peer

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/covey-cache/covey/fetch/plan"
	"github.com/covey-cache/covey/gateway"
)

// The agent finds the samples of files that TensorFlow, webdataset and pyarrow
// wrote by itself.
func TestPlanOfAFormat(t *testing.T) {
	a, _ := planned(t, 1)
	for format, c := range map[string]struct {
		golden  string
		samples uint64
	}{
		"tfrecord":   {"tfrecord/testdata/some.tfrecord", 7},
		"webdataset": {"webdataset/testdata/some.tar", 20},
		"parquet":    {"parquet/testdata/snappy.parquet", 4},
	} {
		b, err := os.ReadFile(filepath.Join("..", "loaders", c.golden))
		if err != nil {
			t.Fatal(err)
		}
		source := t.TempDir()
		for _, name := range []string{"a", "b"} {
			if err := os.WriteFile(filepath.Join(source, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		spec, err := plan.Spec{Samples: 2 * c.samples, World: 1, Shuffle: true}.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		r := gateway.PlanRequest{Source: source, Spec: base64.StdEncoding.EncodeToString(spec), Ranks: []uint32{0}}
		r.Manifest.Format = format
		p, err := a.AddPlan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if p = await(t, a, p.ID, planActive); p.Samples != 2*c.samples || p.Files != 2 {
			t.Errorf("%s: %+v", format, p)
		}
	}
	// What is none of the format says so.
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "notes"), []byte(strings.Repeat("text ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"tfrecord", "webdataset", "parquet"} {
		r := planOf(t, source, 1, 0)
		r.Manifest = gateway.PlanManifest{Format: format}
		p, err := a.AddPlan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if p = await(t, a, p.ID, planFailed); !strings.Contains(p.Reason, `"notes"`) {
			t.Errorf("%s: %s", format, p.Reason)
		}
	}
}
