package blockstore

import (
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// fault 4: power is lost around the moment when the index moves on to another
// manifest, and which of the new names in its directory survive is up to chance.
// What was synced is there whichever do.
func TestPowerLossAtManifestChange(t *testing.T) {
	const (
		around = 4  // operations after one on a marker: its removal and the directory's sync among them
		takes  = 16 // pictures of each, so that one with the marker and without the manifest comes up
	)
	mem := MemFS()
	var mu sync.Mutex // guards pictures and since
	var pictures []*vfs.MemFS
	since := around
	watch := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if since++; strings.Contains(op.Path, markerPrefix) {
			since = 0
		}
		for range takes {
			if since < around {
				pictures = append(pictures, CrashMemFS(mem, uint64(len(pictures)), 50))
			}
		}
		return nil
	})}
	opts := Options{Dir: "/c", Budget: 1 << 30, FS: errorfs.Wrap(mem, watch)}
	l := object("o", 100).Block(0)
	s := mustOpen(t, opts)
	put(t, s, l)
	mustClose(t, s)

	watch.On()
	mustClose(t, mustOpen(t, opts)) // each start replays the log into a table, and so changes the manifest
	watch.Off()
	if len(pictures) < 2*takes {
		t.Fatalf("%d pictures: no manifest was changed, and the test proves nothing", len(pictures))
	}
	for i, fs := range pictures {
		s := mustOpen(t, Options{Dir: "/c", Budget: 1 << 30, FS: fs})
		if !s.Present(extentOf(l.Object, 0)).Has(0) {
			t.Fatalf("picture %d of %d: the index was given up", i, len(pictures))
		}
		wantBlock(t, s, l)
		mustClose(t, s)
	}
}
