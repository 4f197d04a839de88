package dht

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

type finder struct {
	ids []covey.PeerID
	err error
}

func (f finder) Providers(context.Context, covey.ExtentID) ([]covey.PeerID, error) {
	return f.ids, f.err
}

// TestResolveFallsBack: with no home in reach the DHT's word is taken, without
// a digest and with nobody to report to. fault 37
func TestResolveFallsBack(t *testing.T) {
	e := extentNotAt("a", "a", "b", "c", "d")
	w := Want{Extent: e, Count: 8, Need: 0b101, Failed: []covey.PeerID{"p2"}}
	d := loneDirectory(DirectoryOptions{Providers: finder{ids: []covey.PeerID{"p1", "a", "p2", "p3"}}}, "a", "b", "c", "d")
	p, err := d.Resolve(t.Context(), w)
	if err != nil || p.Home != "" || len(p.Blocks) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	for i, b := range p.Blocks {
		if b.Slot != 2*i || b.State != Held || !b.Digest.IsZero() || !slices.Equal(b.Peers, []covey.PeerID{"p1", "p3"}) {
			t.Errorf("block %+v", b)
		}
	}
	for name, f := range map[string]ProviderFinder{"nobody": finder{}, "failure": finder{err: errors.New("no")}, "no finder": nil} {
		d := loneDirectory(DirectoryOptions{Providers: f}, "a", "b", "c", "d")
		if _, err := d.Resolve(t.Context(), w); !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.Done(t.Context(), "b", Outcome{Extent: e, Digest: testDigest("x")}); !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("%s: report: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Resolve(ctx, w); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left: %v", err)
	}
	if _, err := d.Resolve(t.Context(), Want{Extent: e, Count: 1, Need: 2}); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("a slot past the end: %v", err)
	}
}

// extentNotAt returns an extent whose homes do not include the peer.
func extentNotAt(id covey.PeerID, members ...covey.PeerID) covey.ExtentID {
	r := newRing(nil, members[0], members, 1, time.Now())
	for i := 0; ; i++ {
		if e := testExtent(i); !slices.Contains(r.homes(e), id) {
			return e
		}
	}
}

// TestRunEndsWhatResolveBegan: questions that outlive their Resolve are joined
// by Run, and after it nobody is asked.
func TestRunEndsWhatResolveBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		ids := []covey.PeerID{"a", "b", "c", "d"}
		for _, id := range ids {
			c.start(id, ids...)
		}
		e := extentNotAt("a", ids...)
		a := c.nodes["a"]
		for _, id := range ids[1:] {
			c.silence(id, true)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		defer cancel()
		if _, err := a.d.Resolve(ctx, Want{Extent: e, Count: 1, Need: 1}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v", err)
		}
		a.stop()
		if _, err := a.d.Resolve(t.Context(), Want{Extent: e, Count: 1, Need: 1}); !errors.Is(err, covey.ErrUnavailable) {
			t.Fatalf("after the end: %v", err)
		}
		c.close()
	})
}

// TestAnnouncementsReachASilentHome: what a home missed arrives when it answers
// again, whether it fits the queue or has to be told anew from the store.
func TestAnnouncementsReachASilentHome(t *testing.T) {
	for _, extents := range []int{10, maxOwed + 500} {
		t.Run(fmt.Sprint(extents, " extents"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				ids := []covey.PeerID{"a", "b"}
				c.start("a", ids...)
				c.start("b", ids...)
				time.Sleep(2 * time.Second)
				c.silence("b", true)
				for i := range extents {
					c.nodes["a"].put(testExtent(i), testDigest("x"), 1)
				}
				time.Sleep(20 * time.Second)
				c.silence("b", false)
				time.Sleep(15 * time.Second)
				for i := range extents {
					if k := c.nodes["b"].d.table.tell(testExtent(i)); len(k.holders) != 1 {
						t.Fatalf("extent %d has %d holders", i, len(k.holders))
					}
				}
			})
		})
	}
}

// TestAnnounceIsBounded: what does not fit the queue is left to a full push.
func TestAnnounceIsBounded(t *testing.T) {
	d := loneDirectory(DirectoryOptions{Source: func() iter.Seq[Have] { return slices.Values([]Have(nil)) }}, "a", "b")
	for i := range maxQueued + 10 {
		d.Announce(Have{Extent: testExtent(i), Have: 1, Digests: []covey.Digest{testDigest("x")}})
	}
	all, over := d.queue.take()
	if len(all) != maxQueued || !over || value(t, d.m.dropped) != 10 {
		t.Fatalf("%d queued, overflow %v, %v dropped", len(all), over, value(t, d.m.dropped))
	}
	d.Announce(Have{Extent: testExtent(0), Have: 3}) // digests missing
	if all, _ := d.queue.take(); len(all) != 0 {
		t.Fatal("an announcement without digests was queued")
	}
}

func TestNewsCoalesces(t *testing.T) {
	x, y := testDigest("x"), testDigest("y")
	var n news
	n.add(Have{Have: 0b11, Digests: []covey.Digest{x, x}})
	n.add(Have{Gone: 0b01})
	n.add(Have{Have: 0b100, Digests: []covey.Digest{y}, Gone: 0b1000})
	n.add(Have{Have: 0b1000, Digests: []covey.Digest{y}})
	if h := n.message(testExtent(0)); h.Have != 0b1110 || h.Gone != 0b0001 || !slices.Equal(h.Digests, []covey.Digest{x, y, y}) {
		t.Fatalf("%+v", h)
	}
}

// TestTableIsBounded: beyond the limit, the entries of which this peer is no
// home go first, and those with a read under way stay.
func TestTableIsBounded(t *testing.T) {
	d := loneDirectory(DirectoryOptions{MaxEntries: tableShards * 8}, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")
	r := d.view()
	leased := testExtent(-1)
	if p := d.table.answer(question{asker: "b", want: Want{Extent: leased, Count: 1, Need: 1}, ring: r, grant: true}).plan; p.Blocks[0].State != Granted {
		t.Fatal("not granted")
	}
	for i := range 20_000 {
		d.table.have("b", Have{Extent: testExtent(i), Have: 1, Digests: []covey.Digest{testDigest("x")}}, false, r)
	}
	n, own := 0, 0
	for i := range d.table.shards {
		for e := range d.table.shards[i].entries {
			n++
			if slices.Contains(r.homes(e), "a") {
				own++
			}
		}
	}
	if n > tableShards*8 || value(t, d.m.entries) != float64(n) {
		t.Errorf("%d entries, the metric says %v", n, value(t, d.m.entries))
	}
	// A quarter of the extents belong here; sampling keeps three times as many.
	if own < n*3/4 {
		t.Errorf("only %d of %d entries belong to this home", own, n)
	}
	if l, _ := d.Lookup(t.Context(), leased, 0); l.Reading != "b" && slices.Contains(r.homes(leased), "a") {
		t.Error("an entry with a read under way was evicted")
	}
}

// TestHoldersAreBounded: a thousand peers that hold the same are 64 records,
// and one that alone holds a block is one of them.
func TestHoldersAreBounded(t *testing.T) {
	d := loneDirectory(DirectoryOptions{}, "a")
	e, r := testExtent(1), d.view()
	for i := range 1000 {
		d.table.have(testPeer(i), Have{Extent: e, Have: 1, Digests: []covey.Digest{testDigest("x")}}, false, r)
	}
	d.table.have("late", Have{Extent: e, Have: 3, Digests: []covey.Digest{testDigest("x"), testDigest("y")}}, false, r)
	k := d.table.tell(e)
	if len(k.holders) != manyHolders+1 || k.holders[manyHolders].peer != "late" {
		t.Fatalf("%d holders", len(k.holders))
	}
}

// TestLoadIsSpread: of eight holders none is handed out first more than twice
// as often as the mean.
func TestLoadIsSpread(t *testing.T) {
	d := loneDirectory(DirectoryOptions{}, "a")
	e, r := testExtent(1), d.view()
	for i := range 8 {
		d.table.have(testPeer(i), Have{Extent: e, Have: 1, Digests: []covey.Digest{testDigest("x")}}, false, r)
	}
	first := map[covey.PeerID]int{}
	for range 800 {
		p := d.table.answer(question{asker: "a", want: Want{Extent: e, Count: 1, Need: 1}, ring: r}).plan
		if len(p.Blocks[0].Peers) != maxHandedOut {
			t.Fatalf("%d peers", len(p.Blocks[0].Peers))
		}
		first[p.Blocks[0].Peers[0]]++
	}
	for id, n := range first {
		if n > 200 {
			t.Errorf("%s came first %d times of 800", id, n)
		}
	}
}

// TestEntrySize backs the figure in the comment of entry.
func TestEntrySize(t *testing.T) {
	const n = 2000
	d := loneDirectory(DirectoryOptions{}, "a")
	r := d.view()
	digests := make([]covey.Digest, 64)
	for i := range digests {
		digests[i] = testDigest(fmt.Sprint(i))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		for p := range 3 {
			d.table.have(testPeer(p), Have{Extent: testExtent(i), Have: covey.FirstBits(64), Digests: digests}, false, r)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes an entry", each)
	if each > 2800 {
		t.Errorf("an entry of 64 blocks and 3 holders takes %d bytes", each)
	}
	runtime.KeepAlive(d)
}

func BenchmarkAnswerHeld(b *testing.B) {
	d := loneDirectory(DirectoryOptions{}, "a")
	e, r := testExtent(1), d.view()
	digests := make([]covey.Digest, 64)
	for i := range digests {
		digests[i] = testDigest(fmt.Sprint(i))
	}
	for i := range 8 {
		d.table.have(testPeer(i), Have{Extent: e, Have: covey.FirstBits(64), Digests: digests}, false, r)
	}
	q := question{asker: "a", want: Want{Extent: e, Count: 64, Need: covey.FirstBits(64)}, ring: r}
	for b.Loop() {
		d.table.answer(q)
	}
}
