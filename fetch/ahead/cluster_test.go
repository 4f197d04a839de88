package ahead

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/fetch/plan"
)

const testBlock = covey.MinBlockSize

// testData is a manifest of files that are one sample each, or of files with so
// many samples each.
type testData struct {
	sizes []int64
	per   int64 // samples a file; 0 means that a file is one
	name  byte
}

func (d *testData) Digest() [32]byte { return [32]byte{d.name, 1} }
func (d *testData) Files() int       { return len(d.sizes) }
func (d *testData) Whole() bool      { return d.per == 0 }

func (d *testData) Samples() uint64 { return uint64(int64(len(d.sizes)) * max(d.per, 1)) }

func (d *testData) bytes() (n int64) {
	for _, s := range d.sizes {
		n += s
	}
	return n
}

func (d *testData) Span(sample uint32) Span {
	if d.per == 0 {
		return Span{File: int(sample), Len: d.sizes[sample]}
	}
	file, at := int64(sample)/d.per, int64(sample)%d.per
	n := d.sizes[file] / d.per
	return Span{File: int(file), Off: at * n, Len: n}
}

func (d *testData) Object(file int) covey.Object {
	return covey.Object{Origin: "mem://o", Key: fmt.Sprintf("%c/%06d", 'a'+d.name, file), Version: "1", Size: d.sizes[file], BlockSize: testBlock}
}

func (d *testData) Extent(_ context.Context, file, block int) (*covey.Extent, int, error) {
	o := d.Object(file)
	return covey.NewExtent([]covey.Locator{o.Block(block)}), 0, nil
}

func (d *testData) Has(o covey.Object) bool { return strings.HasPrefix(o.Key, string('a'+d.name)+"/") }

// cluster is some nodes' caches, an origin that is read once at a time for each
// block, and the network between them: what fetch, the directory and the
// exchange do, as far as it matters here.
type cluster struct {
	nodes  []*testNode
	took   time.Duration // of a read of the origin
	mu     sync.Mutex
	busy   map[covey.Locator]chan struct{}
	origin int64
	reads  map[covey.Locator]int
}

type testNode struct {
	*Reader
	c        *cluster
	id       covey.PeerID
	capacity int64

	store map[covey.Locator]bool // guarded by c.mu, as are copies and used
	// copies are those of store that came from another node.
	copies map[covey.Locator]bool
	used   int64
	open   atomic.Int64 // handles
	asked  atomic.Int64 // bytes that readers waited for the origin or a neighbour for
}

type testHandle struct {
	n    int
	open *atomic.Int64
}

func (h *testHandle) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
func (h *testHandle) Len() int                          { return h.n }
func (h *testHandle) Digest() covey.Digest              { return covey.Digest{} }
func (h *testHandle) Release()                          { h.open.Add(-1) }

func newCluster(staging int64, capacities ...int64) *cluster {
	c := &cluster{took: 20 * time.Millisecond, busy: map[covey.Locator]chan struct{}{}, reads: map[covey.Locator]int{}}
	for i, n := range capacities {
		node := &testNode{c: c, id: covey.PeerID(fmt.Sprint("node", i)), capacity: n, store: map[covey.Locator]bool{}, copies: map[covey.Locator]bool{}}
		node.Reader = New(Options{
			Self: node.id, Fetch: node, Room: node.room, StagingBytes: staging * testBlock, Log: slog.New(slog.DiscardHandler),
		})
		c.nodes = append(c.nodes, node)
	}
	return c
}

func (n *testNode) room(Data) int64 {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.capacity - n.used
}

func (n *testNode) OriginLatency() (time.Duration, bool) { return n.c.took, true }

func (n *testNode) Present(e *covey.Extent) (b covey.Bitmap) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for i, l := range e.Blocks {
		if n.store[l] {
			b = b.With(i)
		}
	}
	return b
}

func (n *testNode) Bring(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, fetch.Source, error) {
	l := e.Blocks[slot]
	from := n.fetch(l)
	if ctx.Err() != nil {
		return nil, from, ctx.Err()
	}
	n.open.Add(1)
	return &testHandle{n: int(l.Range().Len), open: &n.open}, from, nil
}

// get is a reader's: the cache, what is staged, or a fetch.
func (n *testNode) get(l covey.Locator) {
	n.Asked(l)
	n.c.mu.Lock()
	here := n.store[l]
	n.c.mu.Unlock()
	if here {
		return
	}
	if h := n.Staged(l); h != nil {
		h.Release()
		return
	}
	n.asked.Add(l.Range().Len)
	n.fetch(l)
}

// fetch gets a block from wherever it is. Whoever asks for one that is under way,
// on this node or another, gets it from there.
func (n *testNode) fetch(l covey.Locator) fetch.Source {
	c := n.c
	c.mu.Lock()
	here, under := n.store[l], c.busy[l]
	from := fetch.Origin
	if under != nil || slices.ContainsFunc(c.nodes, func(o *testNode) bool { return o.store[l] }) {
		from = fetch.Neighbour
	}
	if !here && from == fetch.Origin {
		c.busy[l] = make(chan struct{})
	}
	c.mu.Unlock()
	switch {
	case here:
		return fetch.Local
	case under != nil:
		<-under
	case from == fetch.Origin:
		time.Sleep(c.took)
	default:
		time.Sleep(time.Millisecond)
	}
	keep := n.Keep(l, from)
	c.mu.Lock()
	defer c.mu.Unlock()
	size := l.Range().Len
	if keep && !n.store[l] {
		n.put(l, from)
	}
	if from == fetch.Origin {
		c.origin += size
		c.reads[l]++
		close(c.busy[l])
		delete(c.busy, l)
	}
	return from
}

// put keeps a block, as a store does: what came from the origin takes the place of
// copies; c.mu is held.
func (n *testNode) put(l covey.Locator, from fetch.Source) {
	size := diskUse(l.Range().Len)
	for old := range n.copies {
		if from != fetch.Origin || n.used+size <= n.capacity {
			break
		}
		delete(n.copies, old)
		delete(n.store, old)
		n.used -= diskUse(old.Range().Len)
	}
	if n.used+size > n.capacity {
		return
	}
	n.store[l] = true
	n.used += size
	if from != fetch.Origin {
		n.copies[l] = true
	}
}

// run runs body while the readers run.
func (c *cluster) run(t *testing.T, body func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(func() {
			if err := n.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	body()
	stop()
	all.Wait()
	for i, n := range c.nodes {
		if k := n.open.Load(); k != 0 {
			t.Errorf("node %d has %d handles left", i, k)
		}
	}
}

// meet tells every node of the given ones.
func (c *cluster) meet(d Data, on []int, jobs func(i int) []MeshJob) {
	var nodes []Node
	for _, i := range on {
		nodes = append(nodes, Node{ID: c.nodes[i].id, Capacity: c.nodes[i].capacity})
	}
	for _, i := range on {
		m := Mesh{Nodes: nodes, Covered: true}
		if jobs != nil {
			m.Jobs = jobs(i)
		}
		c.nodes[i].SetMesh(d.Digest(), m)
	}
}

// trainer reads one rank's samples, counts them, and computes for a while.
func (n *testNode) trainer(t *testing.T, d Data, o *Order, j *Job, rank uint32, step time.Duration) {
	buf := make([]uint32, 8)
	for at := uint64(0); ; {
		k, err := o.Read(t.Context(), rank, at, buf)
		if err != nil || k == 0 {
			return
		}
		for _, s := range buf[:k] {
			span := d.Span(s)
			obj := d.Object(span.File)
			for b := span.Off / testBlock; b <= (span.Off+span.Len-1)/testBlock; b++ {
				n.get(obj.Block(int(b)))
			}
		}
		at += uint64(k)
		if j != nil {
			j.Advance([]uint64{at})
		}
		time.Sleep(step)
	}
}

// files makes sizes of n files, of one to three blocks. They are whole pages, in
// which a cache counts.
func files(n int) []int64 {
	var sizes []int64
	for i := range n {
		sizes = append(sizes, testBlock*int64(1+i%3)-int64(i%5)*4096)
	}
	return sizes
}

// train runs a job of one rank a node over all nodes.
func (c *cluster) train(t *testing.T, d *testData, epochs int, step time.Duration) {
	t.Helper()
	spec := plan.Spec{Samples: d.Samples(), World: uint32(len(c.nodes)), Seed: 11, Shuffle: true}
	c.run(t, func() {
		jobs := make([]*Job, len(c.nodes))
		orders := make([]*Order, len(c.nodes))
		on := make([]int, len(c.nodes))
		for i, n := range c.nodes {
			var err error
			if orders[i], err = NewOrder(spec, epochs); err != nil {
				t.Fatal(err)
			}
			jobs[i] = n.Add(JobOptions{ID: fmt.Sprint(i), Data: d, Bytes: d.bytes(), Order: orders[i], Ranks: []uint32{uint32(i)}})
			on[i] = i
		}
		c.meet(d, on, nil)
		time.Sleep(time.Second) // a job that is being set up
		var all sync.WaitGroup
		for i, n := range c.nodes {
			all.Go(func() { n.trainer(t, d, orders[i], jobs[i], uint32(i), step) })
		}
		all.Wait()
		for i, n := range c.nodes {
			s := jobs[i].Status()
			if s.Dropped != "" || s.Unplanned != 0 {
				t.Errorf("node %d: %+v", i, s)
			}
			n.Remove(jobs[i])
		}
	})
}

// once reports blocks that were read from the origin again, and what readers had
// to wait for.
func (c *cluster) once(t *testing.T, d *testData, epochs int64) {
	t.Helper()
	for l, n := range c.reads {
		if n > 1 {
			t.Errorf("%v was read from the origin %d times", l, n)
		}
	}
	if c.origin != d.bytes() {
		t.Errorf("the origin gave %d bytes of a data set of %d", c.origin, d.bytes())
	}
	var asked int64
	for _, n := range c.nodes {
		asked += n.asked.Load()
	}
	t.Logf("readers waited for %.4f of their bytes", float64(asked)/float64(d.bytes()*epochs))
	if asked > d.bytes()*epochs/50 {
		t.Errorf("readers had to wait for %d bytes of %d", asked, d.bytes()*epochs)
	}
}

// A cache that holds everything: the origin is read once, three epochs long.
func TestPlannedReadsTheOriginOnce(t *testing.T) {
	d := &testData{sizes: files(800)}
	for name, capacities := range map[string][]int64{
		"equal":   {d.bytes() * 29 / 100, d.bytes() * 29 / 100, d.bytes() * 29 / 100, d.bytes() * 29 / 100},
		"unequal": {d.bytes() * 60 / 100, d.bytes() * 20 / 100, d.bytes() * 20 / 100, d.bytes() * 20 / 100},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(64, capacities...)
				c.train(t, d, 3, 40*time.Millisecond)
				c.once(t, d, 3)
			})
		})
	}
}

// A cache that holds half: the floor is D and half of D again in each further
// epoch.
func TestPlannedSitsOnTheFloor(t *testing.T) {
	for name, d := range map[string]*testData{
		"files": {sizes: files(600)}, "large files": {sizes: slices.Repeat([]int64{10 * testBlock}, 200)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const epochs = 10
				a := d.bytes() / 8
				c := newCluster(16, a, a, a, a)
				c.train(t, d, epochs, 60*time.Millisecond)
				floor := d.bytes() + (epochs-1)*(d.bytes()-4*a)
				ratio := float64(c.origin) / float64(floor)
				t.Logf("origin %d bytes, floor %d: %.4f", c.origin, floor, ratio)
				// What is staged at an epoch's end serves the next one's beginning,
				// beside the cache that the floor knows of.
				if ratio > 1.01 || ratio < 0.97 {
					t.Errorf("%.4f of the floor", ratio)
				}
			})
		})
	}
}

// Eight jobs with seeds of their own, one a node, over caches that hold the data
// set only together: the origin is read once for all of them.
func TestEightJobsShareOneDataSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &testData{sizes: files(800)}
		room := d.bytes() * 16 / 100
		c := newCluster(32, slices.Repeat([]int64{room}, 8)...)
		c.run(t, func() {
			orders := make([]*Order, 8)
			jobs := make([]*Job, 8)
			for i, n := range c.nodes {
				var err error
				orders[i], err = NewOrder(plan.Spec{Samples: d.Samples(), World: 1, Seed: uint64(100 + i), Shuffle: true}, 2)
				if err != nil {
					t.Fatal(err)
				}
				jobs[i] = n.Add(JobOptions{ID: fmt.Sprint(i), Data: d, Bytes: d.bytes(), Order: orders[i], Ranks: []uint32{0}})
			}
			meet := func() {
				c.meet(d, []int{0, 1, 2, 3, 4, 5, 6, 7}, func(i int) (others []MeshJob) {
					for k, j := range jobs {
						if k != i {
							j.group.mu.Lock()
							others = append(others, MeshJob{ID: fmt.Sprint(k), Order: orders[k], Position: j.ranks[0].at()})
							j.group.mu.Unlock()
						}
					}
					return others
				})
			}
			meet()
			time.Sleep(time.Second)
			ctx, stop := context.WithCancel(t.Context())
			var all, told sync.WaitGroup
			told.Go(func() {
				for ctx.Err() == nil {
					time.Sleep(500 * time.Millisecond)
					meet()
				}
			})
			for i, n := range c.nodes {
				all.Go(func() { n.trainer(t, d, orders[i], jobs[i], 0, 300*time.Millisecond) })
			}
			all.Wait()
			stop()
			told.Wait()
			for i, n := range c.nodes {
				n.Remove(jobs[i])
			}
		})
		ratio := float64(c.origin) / float64(d.bytes())
		t.Logf("origin %.4f of the data set", ratio)
		if ratio > 1.01 || ratio < 1 {
			t.Errorf("the origin gave %.4f of the data set", ratio)
		}
	})
}

// A plan that the reads contradict is dropped, and what it holds let go.
func TestWrongPlanIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &testData{sizes: files(12_000)}
		c := newCluster(32, d.bytes()/4)
		n := c.nodes[0]
		right, err := NewOrder(plan.Spec{Samples: d.Samples(), World: 1, Seed: 1, Shuffle: true}, 1)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := NewOrder(plan.Spec{Samples: d.Samples(), World: 1, Seed: 2, Shuffle: true}, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.run(t, func() {
			good := n.Add(JobOptions{ID: "right", Data: d, Bytes: d.bytes(), Order: right, Ranks: []uint32{0}})
			time.Sleep(time.Second)
			for range 2 { // reads that follow the plan do not drop it
				n.read(t, d, right, 500)
			}
			if s := good.Status(); s.Dropped != "" || s.Reads == 0 {
				t.Errorf("a right plan: %+v", s)
			}
			if !n.Foreseen(d.Object(0).Block(0)) {
				t.Error("a plan's blocks are not foreseen")
			}
			n.Remove(good)
			bad := n.Add(JobOptions{ID: "wrong", Data: d, Bytes: d.bytes(), Order: wrong, Ranks: []uint32{0}})
			time.Sleep(time.Second)
			n.read(t, d, right, 500)
			if s := bad.Status(); s.Dropped == "" || s.Unplanned == 0 || len(s.Ranks) != 1 {
				t.Errorf("a wrong plan: %+v", s)
			}
			if n.Foreseen(d.Object(0).Block(0)) || !n.Keep(d.Object(1).Block(0), fetch.Origin) {
				t.Error("a plan that was dropped is still in force")
			}
			n.Remove(bad)
		})
		if len(*n.byDigest.Load()) != 0 {
			t.Error("a manifest without jobs is not forgotten")
		}
	})
}

// read reads the first samples of an order, without counting.
func (n *testNode) read(t *testing.T, d Data, o *Order, samples int) {
	t.Helper()
	buf := make([]uint32, samples)
	if k, err := o.Read(t.Context(), 0, 0, buf); k != samples || err != nil {
		t.Fatal(k, err)
	}
	for _, s := range buf {
		obj := d.Object(d.Span(s).File)
		for b := range obj.Blocks() {
			n.get(obj.Block(b))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Two jobs of one node get the same share of what is fetched.
func TestJobsShareFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(32, 1<<40)
		c.took = 200 * time.Millisecond
		n := c.nodes[0]
		var jobs [2]*Job
		c.run(t, func() {
			for i := range jobs {
				d := &testData{sizes: files(4000), name: byte(i)}
				o, err := NewOrder(plan.Spec{Samples: d.Samples(), World: 1, Shuffle: true}, 1)
				if err != nil {
					t.Fatal(err)
				}
				jobs[i] = n.Add(JobOptions{ID: fmt.Sprint(i), Data: d, Bytes: d.bytes(), Order: o, Ranks: []uint32{0}})
				time.Sleep(500 * time.Millisecond) // the first has a start
			}
			before := jobs[0].Status().Fetched[fetch.Origin]
			time.Sleep(2 * time.Second)
			a, b := jobs[0].Status().Fetched[fetch.Origin]-before, jobs[1].Status().Fetched[fetch.Origin]
			t.Logf("%d and %d bytes", a, b)
			if a == 0 || b == 0 || a > b*3/2 || b > a*3/2 {
				t.Errorf("two jobs got %d and %d bytes in the same time", a, b)
			}
			for _, j := range jobs {
				n.Remove(j)
			}
		})
	})
}

// Shares follow the capacities, and a node that comes moves only its own.
func TestShares(t *testing.T) {
	nodes := []Node{{"a", 100}, {"b", 100}, {"c", 200}}
	three := newPlacement("a", nodes)
	four := newPlacement("a", append(nodes, Node{"d", 400}))
	const units = 40_000
	count := map[covey.PeerID]int{}
	for i := range units {
		u := unit(mix(uint64(i)))
		before, after := three.nodes[three.owner(u)].ID, four.nodes[four.owner(u)].ID
		count[before]++
		if after != before && after != "d" {
			t.Fatalf("unit %d went from %s to %s when d came", i, before, after)
		}
	}
	for id, want := range map[covey.PeerID]int{"a": units / 4, "b": units / 4, "c": units / 2} {
		if got := count[id]; got < want*95/100 || got > want*105/100 {
			t.Errorf("%s owns %d units, want about %d", id, got, want)
		}
	}
}

// Samples that are parts of blocks for which there is no room are not read ahead:
// a block for each sample would cost the origin many times as much.
func TestPartsOfBlocksWithoutRoomAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &testData{sizes: slices.Repeat([]int64{64 * testBlock}, 20), per: 1024}
		c := newCluster(32, d.bytes()/2)
		n := c.nodes[0]
		o, err := NewOrder(plan.Spec{Samples: d.Samples(), World: 1, Shuffle: true}, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.run(t, func() {
			j := n.Add(JobOptions{ID: "shards", Data: d, Bytes: d.bytes(), Order: o, Ranks: []uint32{0}})
			c.meet(d, []int{0}, nil)
			time.Sleep(time.Second)
			at := uint64(0)
			for range 40 { // an order that goes on, with readers that read elsewhere
				at += 400
				j.Advance([]uint64{at})
				time.Sleep(100 * time.Millisecond)
			}
			if s := j.Status(); s.Dropped != "" || s.Resident == 0 {
				t.Errorf("%+v", s)
			}
			n.Remove(j)
		})
		t.Logf("origin %d of %d bytes, cache of %d", c.origin, d.bytes(), n.capacity)
		if c.origin > n.capacity || c.origin < n.capacity/2 {
			t.Errorf("%d bytes were brought for a cache of %d", c.origin, n.capacity)
		}
		for l, k := range c.reads {
			if k > 1 {
				t.Fatalf("%v was brought %d times", l, k)
			}
		}
	})
}
