package mount

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/covey-cache/covey/dataset"
)

// TestNodesAgainstAMap enters, changes and forgets random names, some with equal
// hashes, and holds the table against plain maps.
func TestNodesAgainstAMap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	table := newNodes(time.Now())
	byName, byID := map[string]*node{}, map[uint64]*node{}
	everUsed := map[uint64]bool{}
	var attr fuse.Attr
	for step := range 200_000 {
		name := fmt.Sprintf("f%d", rng.IntN(3000))
		if rng.IntN(2) == 0 {
			e := dataset.Entry{Name: name, Kind: dataset.File, Version: fmt.Sprint(rng.IntN(3)), Size: 7}
			n := table.enter(table.root, e, &attr)
			if old := byName[name]; old != nil && old.version == e.Version && old != n {
				t.Fatalf("step %d: another node of one version", step)
			} else if old == nil || old != n {
				if everUsed[n.id] {
					t.Fatalf("step %d: ID %d used twice", step, n.id)
				}
			}
			byName[name], byID[n.id], everUsed[n.id] = n, n, true
			continue
		}
		n := byName[name]
		if got := table.find(table.root, name); got != n {
			t.Fatalf("step %d: %s: found %v, want %v", step, name, got, n)
		}
		for id, n := range byID { // any one
			if table.get(id) != n {
				t.Fatalf("step %d: node %d is lost", step, id)
			}
			if gone := table.forget(id, 1<<40); gone != n || table.get(id) != nil {
				t.Fatalf("step %d: node %d was not forgotten", step, id)
			}
			delete(byID, id)
			if byName[n.name] == n {
				delete(byName, n.name)
			}
			break
		}
	}
	if table.len() != len(byID)+1 {
		t.Errorf("%d nodes, want %d", table.len(), len(byID)+1)
	}
	for name, n := range byName {
		if table.find(table.root, name) != n {
			t.Errorf("%s is lost", name)
		}
	}
}

// TestNodeSetUnderCollisions has all hashes end up in a few places.
func TestNodeSetUnderCollisions(t *testing.T) {
	var s nodeSet
	dir := &node{}
	var all []*node
	for i := range 500 {
		n := &node{parent: dir, name: fmt.Sprint(i), ino: uint64(i % 5)}
		all = append(all, n)
		s.add(n)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, n := range all {
		s.remove(n)
		for j, n := range all {
			want := n
			if j <= i {
				want = nil
			}
			if got := s.find(dir, n.ino, n.name); got != want {
				t.Fatalf("after %d removals: %v, want %v", i+1, got, want)
			}
		}
	}
}

// BenchmarkTable weighs an entry of what the kernel remembers, with names and
// ETags of the usual length.
func BenchmarkTable(b *testing.B) {
	const n = 1_000_000
	for b.Loop() {
		table := newNodes(time.Now())
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var attr fuse.Attr
		for i := range n {
			table.enter(table.root, dataset.Entry{
				Name: fmt.Sprintf("ILSVRC2012%08d.JPEG", i), Kind: dataset.File,
				Version: fmt.Sprintf("\"%032x\"", i), Size: 100_000, ModTime: time.Unix(1_700_000_000, 0),
			}, &attr)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/entry")
		runtime.KeepAlive(table)
	}
}
