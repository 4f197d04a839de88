package blockstore

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/covey-cache/covey"
)

var (
	metaSeed    = flag.Uint64("seed", 0, "replay the metamorphic test with this seed only")
	metaCrashes = flag.Int("crashes", 0, "crashes of the metamorphic test; 0 means COVEY_CRASHES, or what a test run has time for")
)

// crashes is how many crashes all option sets together get. The long form is for
// make soak.
func crashes(t *testing.T) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("COVEY_CRASHES"), "0"))
	switch {
	case err != nil:
		t.Fatalf("COVEY_CRASHES: %v", err)
	case *metaCrashes > 0:
		return *metaCrashes
	case n > 0:
		return n
	case testing.Short() || raceEnabled:
		return 200
	}
	return 1000
}

// crashPoint takes a picture of what a power loss would leave, before the n-th
// next operation on the file system.
type crashPoint struct {
	fs     *vfs.MemFS
	seed   uint64
	keep   int
	left   atomic.Int64
	picked atomic.Pointer[vfs.MemFS]
}

func (c *crashPoint) String() string { return "crash point" }

func (c *crashPoint) MaybeError(errorfs.Op) error {
	if c.left.Add(-1) == 0 {
		c.picked.Store(CrashMemFS(c.fs, c.seed, c.keep))
	}
	return nil
}

// world is the store under test, and the model of it.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	sets   []metaSet
	opts   Options
	fs     *vfs.MemFS
	point  *crashPoint
	faults *faultFS
	store  *Store // of one tier:
	s      *tier
	blocks []covey.Locator
	bytes  map[covey.Locator][]byte
	sums   map[covey.Locator]covey.Digest
	model  map[blockKey]*modelBlock
	pins   map[covey.Object]bool // durable as soon as it is said

	corrupt int
	mayCode bool // some block may not be stored as it is
	tally
}

// tally counts what a run came across: without it, it proves nothing.
type tally struct {
	kept, lost                                       int // unsynced blocks, at a crash
	flips, struck, evicted, refused, coded, reopened int
}

func (a *tally) add(b tally) {
	a.kept, a.lost, a.flips, a.struck = a.kept+b.kept, a.lost+b.lost, a.flips+b.flips, a.struck+b.struck
	a.evicted, a.refused, a.coded, a.reopened = a.evicted+b.evicted, a.refused+b.refused, a.coded+b.coded, a.reopened+b.reopened
}

// modelBlock is what the model says of one block.
type modelBlock struct {
	l covey.Locator
	// here: it must be served. maybe: it may be, since neither its admission
	// nor its drop is durable.
	here, maybe bool
	moved       bool // to its second place, or on the way there
	moving      bool // the move, or the last admission, is not durable
}

func (m *modelBlock) place(moved bool) covey.Place {
	p := placeOf(m.l)
	if moved {
		p.Extent[0] ^= 0xff
	}
	return p
}

func (w *world) open() {
	w.faults = &faultFS{FS: w.fs}
	w.point = &crashPoint{fs: w.fs}
	opts := w.opts
	w.mayCode = w.mayCode || opts.Compress != Compression{} || opts.Keys != nil
	opts.Dir, opts.FS = "/cache/tier", errorfs.Wrap(w.faults, w.point)
	opts.OnCorrupt = func(covey.Locator) { w.corrupt++ }
	s, err := Open(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store, w.s = s, s.shelves[0].at.Load()
	if w.s == nil {
		w.t.Fatal(s.Tiers()[0].Why)
	}
	w.reopened++
}

func (w *world) lru() bool { return w.opts.Policy == PolicyLRU }

// want fails the test unless the block is here with its bytes.
func (w *world) want(l covey.Locator) {
	w.t.Helper()
	h, err := w.s.Get(l)
	if err != nil {
		w.t.Fatal(err)
	}
	w.check(h, l)
}

// check compares a handle's bytes, and releases it.
func (w *world) check(h Handle, l covey.Locator) {
	w.t.Helper()
	defer h.Release()
	b := make([]byte, h.Len()+1)
	n, err := h.ReadAt(b, 0)
	if !errors.Is(err, io.EOF) || !bytes.Equal(b[:n], w.bytes[l]) || h.Digest() != w.sums[l] {
		w.t.Fatalf("block %s has other bytes than were admitted (err %v)", l, err)
	}
}

// evictions takes note of what gave way.
func (w *world) evictions() {
	for _, m := range w.model {
		if !m.here || w.s.holds(blockKey{m.l.Object.ID(), uint32(m.l.Index)}) {
			continue
		}
		if !w.lru() || w.pins[m.l.Object] {
			w.t.Fatalf("%s is gone", m.l)
		}
		m.here, m.maybe = false, true
		w.evicted++
	}
}

func (w *world) pick() *modelBlock {
	l := w.blocks[w.rng.IntN(len(w.blocks))]
	return w.model[blockKey{l.Object.ID(), uint32(l.Index)}]
}

func (w *world) put(m *modelBlock) {
	move := w.rng.IntN(4) == 0
	u := w.s.Usage()
	err := w.store.Put(m.l, m.place(move), w.sums[m.l], w.bytes[m.l])
	w.evictions()
	if errors.Is(err, covey.ErrFull) && !m.here {
		// A drop that a crash undid may take what was kept for a pin.
		if w.pins[m.l.Object] && u.Used+u.Reserved <= u.Budget {
			w.t.Fatalf("a pin does not hold: %v", err)
		}
		w.refused++
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	m.here, m.maybe, m.moved, m.moving = true, m.maybe || !m.here, move, true
	w.s.mu.Lock()
	if c, ok := w.s.pending.lookup(blockKey{m.l.Object.ID(), uint32(m.l.Index)}); ok && c.coding != nil {
		w.coded++
	}
	w.s.mu.Unlock()
}

func (w *world) drop(m *modelBlock) {
	if err := w.s.Drop(m.l); err != nil {
		w.t.Fatal(err)
	}
	m.maybe, m.here = m.maybe || m.here, false
}

func (w *world) dropObject(m *modelBlock) {
	if err := w.s.DropObject(m.l.Object); err != nil {
		w.t.Fatal(err)
	}
	for _, o := range w.model {
		if o.l.Object == m.l.Object {
			o.maybe, o.here = o.maybe || o.here, false
		}
	}
}

// pin pins or unpins an object.
func (w *world) pin(o covey.Object) {
	do := w.s.Pin
	if w.pins[o] {
		do = w.s.Unpin
	}
	var full *NoRoomError
	if err := do(o); errors.As(err, &full) && w.opts.Budget < DiskUse(o)+w.s.Usage().Used+w.s.Usage().Reserved {
		return
	} else if err != nil {
		w.t.Fatal(err)
	}
	w.pins[o] = !w.pins[o]
}

func (w *world) evict(m *modelBlock) {
	_, err := w.s.Evict(m.l.Object)
	if w.pins[m.l.Object] {
		if !errors.Is(err, ErrPinned) {
			w.t.Fatalf("evict what is pinned: %v", err)
		}
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.dropObject(m)
}

// get reads a block through the store and compares it with the model.
func (w *world) get(m *modelBlock) {
	w.t.Helper()
	if m.here {
		w.want(m.l)
	} else {
		wantMissing(w.t, w.s, m.l)
	}
}

// whole asks for the file; a file system in memory never has a descriptor.
func (w *world) whole(m *modelBlock) {
	if f, err := w.s.OpenWhole(m.l.Object); !errors.Is(err, covey.ErrNotFound) {
		w.t.Fatalf("open whole: %v, %v", f, err)
	}
}

// sync makes the model durable as it is.
func (w *world) sync() {
	if err := w.s.Sync(); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
}

func (w *world) settle() {
	for _, m := range w.model {
		m.maybe, m.moving = false, false
	}
}

func (w *world) reopen() {
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
	w.flip()
	w.recode()
	w.open()
	w.checkAll()
}

// crash loses power in the middle of a sync, now or at one of its operations.
func (w *world) crash() {
	w.point.seed, w.point.keep = w.rng.Uint64(), pickOne(w.rng, 0, 30, 100)
	if w.rng.IntN(4) == 0 {
		w.fs = CrashMemFS(w.fs, w.point.seed, w.point.keep)
	} else {
		w.point.left.Store(1 + w.rng.Int64N(40))
		if err := w.s.Sync(); err != nil {
			w.t.Fatal(err)
		}
		w.fs = w.point.picked.Load()
		if w.fs == nil { // the sync was shorter: lose power after it
			w.point.left.Store(0)
			w.fs = CrashMemFS(w.point.fs, w.point.seed, w.point.keep)
			w.settle()
		}
	}
	if err := w.store.Close(); err != nil { // the process that lost power; its files are its own
		w.t.Fatal(err)
	}
	w.flip()
	w.recode()
	w.open()
	w.resolve(true)
	w.checkAll()
}

// resolve finds out which of the two allowed outcomes a crash, or a fault, had.
func (w *world) resolve(crashed bool) {
	at := w.adverts()
	for _, m := range w.model {
		h, err := w.s.Get(m.l)
		got := err == nil
		if got {
			w.check(h, m.l)
		}
		if !m.maybe && got != m.here {
			w.t.Fatalf("after a crash %s: served %v, want %v (%v)", m.l, got, m.here, err)
		}
		if m.maybe && m.here {
			if got {
				w.kept++
			} else {
				w.lost++
			}
		}
		// What no crash took may be undone by the next one: until then it is on the
		// disk's way, whatever was made of it since.
		m.here, m.maybe = got, !crashed && m.maybe && !got
		if m.moving && got {
			_, m.moved = at[m.place(true)]
		}
		m.moving = m.moving && !crashed
	}
}

func (w *world) adverts() map[covey.Place]covey.Digest {
	at := map[covey.Place]covey.Digest{}
	var last covey.ExtentID
	for h := range w.s.All() {
		if slices.Compare(last[:], h.Extent[:]) >= 0 || len(h.Digests) != h.Have.Len() {
			w.t.Fatalf("extent %s out of order, or with %d digests for %d blocks", h.Extent, len(h.Digests), h.Have.Len())
		}
		last = h.Extent
		i := 0
		for slot := range h.Have.Slots() {
			at[covey.Place{Extent: h.Extent, Slot: uint8(slot)}] = h.Digests[i]
			i++
		}
	}
	return at
}

// flip changes a byte of some block of the closed store.
func (w *world) flip() {
	if w.rng.IntN(3) != 0 {
		return
	}
	m := w.pick()
	if !m.here || m.maybe {
		return
	}
	d := fsData{fs: w.fs, dir: "/cache/tier/data"}
	f, err := d.open(m.l.Object.ID())
	if err != nil {
		w.t.Fatal(err)
	}
	n := m.l.Range().Len
	if w.mayCode { // of those, only the beginning of the slot has bytes
		n = min(n, 16)
	}
	off := m.l.Range().Off + w.rng.Int64N(n)
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		w.t.Fatal(err)
	}
	f.Close()
	b[0] ^= 1 << w.rng.IntN(8)
	if err := errors.Join(d.write(m.l.Object.ID(), off, b[:]), d.sync([]covey.ObjectID{m.l.Object.ID()})); err != nil {
		w.t.Fatal(err)
	}
	w.flips++
	m.here = false
}

// checkAll compares everything that can be asked with the model.
func (w *world) checkAll() {
	w.t.Helper()
	for _, m := range w.model {
		w.get(m)
	}
	at := w.adverts()
	n := 0
	var used int64
	for _, m := range w.model {
		if !m.here {
			continue
		}
		n++
		used += blockUse(m.l.Object, m.l.Index)
		if at[m.place(m.moved)] != w.sums[m.l] {
			w.t.Fatalf("%s is not advertised where it should be", m.l)
		}
	}
	u := w.s.Usage()
	if len(at) != n || u.Blocks != n || u.Used > used || !w.mayCode && u.Used != used {
		w.t.Fatalf("%d adverts, usage %+v; the model has %d blocks of %d bytes", len(at), u, n, used)
	}
	w.checkPins(u)
	for _, m := range w.model {
		e := extentOf(m.l.Object, m.l.Index/64)
		if w.s.Present(e).Has(m.l.Index%64) != m.here {
			w.t.Fatalf("%s: present is not %v", m.l, m.here)
		}
	}
}

func (w *world) checkPins(u Usage) {
	w.t.Helper()
	pinned := 0
	var missing int64
	for o, is := range w.pins {
		if !is {
			continue
		}
		pinned++
		missing += DiskUse(o)
		for _, m := range w.model {
			if m.here && m.l.Object == o {
				missing -= blockUse(o, m.l.Index)
			}
		}
	}
	if u.Pinned != pinned || u.Reserved != missing {
		w.t.Fatalf("usage %+v; the model has %d pins that need %d bytes", u, pinned, missing)
	}
	if du, err := w.s.Du(nil); err != nil || du.Used != u.Used || du.Objects != u.Objects ||
		du.Whole != u.Whole || du.Blocks != u.Blocks || du.Pinned != pinned || du.Missing != missing {
		w.t.Fatalf("du %+v (%v), usage %+v", du, err, u)
	}
}

// fault 4: power is lost at any moment; what was synced is served, what was not
// may be gone, nothing is ever wrong.
// fault 7: a bit of a block flips on disk; the block is never served.
// fault 11: writes fail, some after a part was written.
// fault 12: reads fail; the block is dropped.
// fault 13: syncs fail; what was not acknowledged may be gone.
func TestMetamorphic(t *testing.T) {
	sets := metaSets(t)
	var mu sync.Mutex
	var sum tally
	t.Run("sets", func(t *testing.T) {
		for _, set := range sets {
			t.Run(set.name, func(t *testing.T) {
				t.Parallel()
				seed := *metaSeed
				if seed == 0 {
					seed = rand.Uint64()
				}
				t.Logf("replay with -run '^TestMetamorphic$/^sets$/^%s$' -seed %d", strings.ReplaceAll(set.name, " ", "_"), seed)
				w := metamorph(t, sets, set.opts, seed, crashes(t)/len(sets))
				mu.Lock()
				defer mu.Unlock()
				sum.add(w.tally)
			})
		}
	})
	t.Logf("%+v", sum)
	if *metaSeed != 0 || t.Failed() {
		return
	}
	if sum.kept == 0 || sum.lost == 0 || sum.flips == 0 || sum.struck == 0 || sum.evicted == 0 || sum.refused == 0 || sum.coded == 0 {
		t.Errorf("the run proves nothing: %+v", sum)
	}
}

func metamorph(t *testing.T, sets []metaSet, opts Options, seed uint64, crashes int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), sets: sets, opts: opts, fs: MemFS(),
		model: map[blockKey]*modelBlock{}, pins: map[covey.Object]bool{},
		bytes: map[covey.Locator][]byte{}, sums: map[covey.Locator]covey.Digest{},
	}
	for i, size := range []int64{1, 5000, testBlock, testBlock + 1, 3*testBlock - 1, 70 * testBlock} {
		o := object(fmt.Sprintf("%sobject-%d", pickOne(w.rng, "text/", ""), i), size)
		for j := 0; j < o.Blocks(); j += 1 + j/3 { // of the large one, some
			w.blocks = append(w.blocks, o.Block(j))
		}
	}
	for _, l := range w.blocks {
		w.bytes[l] = content(l)
		w.sums[l] = covey.Sum(w.bytes[l])
		w.model[blockKey{l.Object.ID(), uint32(l.Index)}] = &modelBlock{l: l}
	}
	w.open()
	ops := []struct {
		weight int
		do     func()
	}{
		{30, func() { w.put(w.pick()) }},
		{20, func() { w.get(w.pick()) }},
		{4, func() { w.drop(w.pick()) }},
		{2, func() { w.dropObject(w.pick()) }},
		{2, func() { w.evict(w.pick()) }},
		{2, func() { w.pin(w.pick().l.Object) }},
		{2, func() { w.whole(w.pick()) }},
		{3, w.sync},
		{1, w.reopen},
		{1, w.faulty},
		{4, func() { w.crash(); crashes-- }},
	}
	total := 0
	for _, op := range ops {
		total += op.weight
	}
	for crashes > 0 {
		n := w.rng.IntN(total)
		for _, op := range ops {
			if n -= op.weight; n < 0 {
				op.do()
				break
			}
		}
	}
	w.finish()
	return w
}

// finish empties the store, and sees to it that nothing is counted any more.
func (w *world) finish() {
	w.checkAll()
	// A drop that a crash undid in the index but not in the file is one more.
	if w.corrupt < w.flips {
		w.t.Errorf("%d blocks reported corrupt, %d flipped", w.corrupt, w.flips)
	}
	for o, pinned := range w.pins {
		if pinned {
			w.pin(o)
		}
	}
	for _, m := range w.model {
		if _, err := w.s.Evict(m.l.Object); err != nil {
			w.t.Fatal(err)
		}
	}
	if u := w.s.Usage(); u.Used != 0 || u.Reserved != 0 || u.Objects != 0 {
		w.t.Errorf("an empty store has %+v", u)
	}
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
}
