package dht

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

// counts adds up a counter with one label over all running peers.
func (c *cluster) haves(t *testing.T, form string, but ...covey.PeerID) int {
	t.Helper()
	n := 0
	for _, p := range c.running() {
		if contains(but, p.id) {
			continue
		}
		n += int(value(t, p.dir().m.haves.WithLabelValues(form)))
	}
	return n
}

// fill gives each peer extents of its own, all full.
func (c *cluster) fill(ids []covey.PeerID, each int) {
	for i, id := range ids {
		for k := range each {
			c.nodes[id].put(testExtent(i*each+k), testDigest("x"), covey.FirstBits(covey.MaxExtentBlocks))
		}
	}
}

// peersNamed makes n IDs as long as libp2p's.
func peersNamed(n int) []covey.PeerID {
	ids := make([]covey.PeerID, n)
	for i := range ids {
		ids[i] = covey.PeerID(fmt.Sprintf("%038d", i))
	}
	return ids
}

// TestHandOverTouchesFewEntries: when one of N members comes or goes, what is
// announced anew is about 3/N of the entries.
func TestHandOverTouchesFewEntries(t *testing.T) {
	const peers, each = 40, 50
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		ids := peersNamed(peers + 1)
		for _, id := range ids[:peers] {
			c.start(id, ids[:peers]...)
		}
		c.fill(ids[:peers], each)
		time.Sleep(5 * time.Second)
		// Two refreshes of 5 min would hide it: the whole test takes 20 s.
		victim := ids[peers/2]
		step := func(name string, change func()) {
			before := c.haves(t, "full", victim)
			change()
			time.Sleep(5 * time.Second)
			n := c.haves(t, "full", victim) - before
			fair := 3 * peers * each / peers
			t.Logf("%s of %d: %d of %d entries announced anew, 3/N is %d", name, peers, n, peers*each, fair)
			if n < fair/2 || n > fair*2 {
				t.Errorf("%s: %d entries announced anew, want about %d", name, n, fair)
			}
		}
		refreshes := c.haves(t, "brief")
		step("a join", func() {
			c.start(ids[peers], ids...)
			c.see(ids...)
		})
		step("a death", func() {
			c.nodes[victim].kill()
			c.see(append(append([]covey.PeerID{}, ids[:peers/2]...), ids[peers/2+1:]...)...)
		})
		if c.haves(t, "brief") != refreshes {
			t.Error("a refresh came in between")
		}
		c.close()
	})
}

// TestRefreshWithoutDigests: a full refresh leaves out what the homes know, and
// sends what one has lost.
func TestRefreshWithoutDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.own = true
		ids := []covey.PeerID{"a", "b", "c", "d"}
		for _, id := range ids {
			c.start(id, ids...)
		}
		e := testExtent(0)
		c.nodes["a"].put(e, testDigest("x"), 7)
		time.Sleep(2 * time.Second)
		full := c.haves(t, "full")
		time.Sleep(refreshEvery)
		if n := c.haves(t, "brief"); n == 0 || c.haves(t, "full") != full {
			t.Errorf("%d brief, %d full announcements", n, c.haves(t, "full")-full)
		}
		// A home that forgot, or knows another digest, asks for them.
		home := c.nodes[c.nodes["b"].d.Homes(e)[0]]
		if home.id == "a" {
			home = c.nodes[c.nodes["b"].d.Homes(e)[1]]
		}
		sh := home.d.table.shard(e)
		sh.mu.Lock()
		delete(sh.entries, e)
		sh.mu.Unlock()
		time.Sleep(refreshEvery)
		if k := home.d.table.tell(e); len(k.holders) != 1 || k.holders[0].have != 7 || k.digests[2] != testDigest("x") {
			t.Errorf("after a refresh the home knows %+v", k)
		}
		c.close()
	})
}

// TestLateHaveChangesNothing: a HAVE that was overtaken is left out, and one that
// comes twice does no harm.
func TestLateHaveChangesNothing(t *testing.T) {
	d := loneDirectory(DirectoryOptions{}, "a", "b")
	e := testExtent(1)
	send := func(seq uint64, h Have) {
		serve(t, d, "b", request(t, &wire.Request{Body: &wire.Request_Have{Have: &wire.Have{
			Seq: seq, Extents: []*wire.ExtentHave{haveMessage(h, false)}}}}))
	}
	have := Have{Extent: e, Have: 1, Digests: []covey.Digest{testDigest("x")}}
	gone := Have{Extent: e, Gone: 1}
	send(5, have)
	send(7, gone)
	send(6, have) // late
	if k := d.table.tell(e); len(k.holders) != 0 {
		t.Errorf("a late announcement counts: %+v", k)
	}
	send(8, have)
	send(8, have)
	if k := d.table.tell(e); len(k.holders) != 1 {
		t.Errorf("holders %+v", k)
	}
	if n := value(t, d.m.haves.WithLabelValues("late")); n != 1 {
		t.Errorf("counted %v late", n)
	}
}

// TestUpkeep prints what the directory costs a peer that does nothing but hold
// blocks: measured among 40 peers, and calculated from that for a thousand with
// 2.5 million blocks each. What grows with the extents is the refresh, three
// brief reports each; what grows with the members is one frame for each.
func TestUpkeep(t *testing.T) {
	const peers, each = 40, 200
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.own = true
		ids := peersNamed(peers)
		for _, id := range ids {
			c.start(id, ids...)
		}
		c.fill(ids, each)
		time.Sleep(refreshEvery + 10*time.Second)
		c.mu.Lock()
		calls, bytes := c.calls, c.bytes
		c.mu.Unlock()
		const span = 2 * refreshEvery
		time.Sleep(span)
		c.mu.Lock()
		calls, bytes = c.calls-calls, c.bytes-bytes
		c.mu.Unlock()
		rate := func(n int) float64 { return float64(n) / span.Seconds() / peers }
		t.Logf("measured, %d peers, %d extents each: %.2f calls/s and %.0f B/s sent a peer", peers, each, rate(calls), rate(bytes))

		frame, element, reply := haveSizes(t)
		perPeer := float64(3*each)*float64(element) + float64(peers-1)*float64(frame+reply)
		if got := rate(bytes) * refreshEvery.Seconds(); got > perPeer*1.2 || got < perPeer*0.8 {
			t.Errorf("a refresh is %.0f bytes a peer, calculated %.0f", got, perPeer)
		}
		const many, extents = 1000, 2_500_000/covey.MaxExtentBlocks + 1
		refresh := refreshEvery.Seconds()
		t.Logf("calculated, %d peers, %d extents each: %.1f messages/s (requests and replies, both ways), %.1f kB/s each way", many, extents,
			4*float64(many-1)/refresh, (3*extents*float64(element)+(many-1)*float64(frame+reply))/refresh/1000)
		t.Logf("with the digests it would be %.0f kB/s each way", 3*extents*2120/refresh/1000)
		c.close()
	})
}

// haveSizes returns the bytes of an empty HAVE, of one brief element, and of the
// reply.
func haveSizes(t *testing.T) (frame, element, reply int) {
	t.Helper()
	ds := make([]covey.Digest, covey.MaxExtentBlocks)
	for i := range ds {
		ds[i] = testDigest("x")
	}
	m := briefMessage(Have{Extent: testExtent(0), Have: covey.FirstBits(64), Digests: ds})
	size := func(n int) int {
		h := &wire.Have{Seq: 1000}
		for range n {
			h.Extents = append(h.Extents, m)
		}
		b, err := wire.EncodeRequest(&wire.Request{Version: wire.Version, Incarnation: 1, Body: &wire.Request_Have{Have: h}})
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	b, err := wire.EncodeReply(&wire.Reply{Version: wire.Version, Incarnation: 1, Code: wire.Code_OK, Body: &wire.Reply_Lack{Lack: &wire.Lack{}}})
	if err != nil {
		t.Fatal(err)
	}
	return size(0), size(2) - size(1), len(b)
}

// TestBusiestHome prints how evenly a thousand members are asked: the questions
// that each gets as first home of many extents, in shares of the mean.
func TestBusiestHome(t *testing.T) {
	const members, extents = 1000, 200_000
	r := newRing(nil, peersNamed(1)[0], peersNamed(members), 1, time.Now())
	first, any := map[covey.PeerID]int{}, map[covey.PeerID]int{}
	for i := range extents {
		for rank, h := range r.homes(testExtent(i)) {
			if rank == 0 {
				first[h]++
			}
			any[h]++
		}
	}
	most := func(m map[covey.PeerID]int) (n int) {
		for _, k := range m {
			n = max(n, k)
		}
		return n
	}
	one, all := float64(most(first))*members/extents, float64(most(any))*members/extents/homesPerExtent
	t.Logf("busiest of %d members: %.2f of the mean as first home, %.2f as any of the three", members, one, all)
	if one > 2 || all > 2 {
		t.Error("want at most 2")
	}
}
