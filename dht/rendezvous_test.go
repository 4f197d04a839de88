package dht

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

var rewrite = flag.Bool("rewrite-vectors", false, "write testdata/rendezvous.json anew")

type scoreVector struct {
	Extent string `json:"extent"` // hexadecimal
	Peer   string `json:"peer"`   // hexadecimal
	Score  string `json:"score"`  // decimal
}

// TestScoreVectors fails when the hash changes, which no cluster survives
// without rolling all its peers at once.
func TestScoreVectors(t *testing.T) {
	const path = "testdata/rendezvous.json"
	if *rewrite {
		var all []scoreVector
		for i := range 8 {
			e, p := testExtent(i), testPeer(i*7)
			all = append(all, scoreVector{hex.EncodeToString(e[:]), hex.EncodeToString([]byte(p)), strconv.FormatUint(Score(e, p), 10)})
		}
		b, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []scoreVector
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) < 8 {
		t.Fatalf("%d vectors", len(all))
	}
	for _, v := range all {
		eb, err1 := hex.DecodeString(v.Extent)
		pb, err2 := hex.DecodeString(v.Peer)
		if err1 != nil || err2 != nil || len(eb) != 32 {
			t.Fatalf("vector %+v: %v %v", v, err1, err2)
		}
		if got := strconv.FormatUint(Score(covey.ExtentID(eb), covey.PeerID(pb)), 10); got != v.Score {
			t.Errorf("score of %s and %s is %s, want %s", v.Extent, v.Peer, got, v.Score)
		}
	}
}

func testPeer(i int) covey.PeerID { return covey.PeerID(fmt.Sprintf("peer-%d", i)) }

func testRing(prev *ring, epoch uint64, n ...int) *ring {
	ids := make([]covey.PeerID, len(n))
	for i, k := range n {
		ids[i] = testPeer(k)
	}
	return newRing(prev, testPeer(0), ids, epoch, time.Now())
}

func upTo(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// TestHomesAreBalanced allows the busiest of 100 peers what chance alone makes
// of 400 extents a peer (four standard deviations, 20 %) and no more.
func TestHomesAreBalanced(t *testing.T) {
	const peers, extents = 100, 40_000
	r := testRing(nil, 1, upTo(peers)...)
	first, any3 := map[covey.PeerID]int{}, map[covey.PeerID]int{}
	for i := range extents {
		homes := r.homes(testExtent(i))
		if len(homes) != 3 || homes[0] == homes[1] || homes[1] == homes[2] || homes[0] == homes[2] {
			t.Fatalf("homes of extent %d: %v", i, homes)
		}
		first[homes[0]]++
		for _, h := range homes {
			any3[h]++
		}
	}
	for name, load := range map[string]struct {
		m    map[covey.PeerID]int
		each int
	}{"first": {first, extents / peers}, "any": {any3, 3 * extents / peers}} {
		busiest := 0
		for _, n := range load.m {
			busiest = max(busiest, n)
		}
		if ratio := float64(busiest) / float64(load.each); ratio > 1.2 {
			t.Errorf("%s home: the busiest peer has %.2f times the mean", name, ratio)
		}
	}
}

// TestJoinMovesOneNth: a join takes only what the new member is now first for.
func TestJoinMovesOneNth(t *testing.T) {
	const peers, extents = 50, 20_000
	before := testRing(nil, 1, upTo(peers)...)
	after := testRing(before, 2, upTo(peers+1)...)
	moved := 0
	for i := range extents {
		e := testExtent(i)
		old, now := before.homes(e), after.homes(e)
		if old[0] != now[0] {
			moved++
			if now[0] != testPeer(peers) {
				t.Fatalf("extent %d moved between old members", i)
			}
		}
	}
	if want := extents / (peers + 1); moved < want*8/10 || moved > want*12/10 {
		t.Errorf("%d of %d extents moved, want about %d", moved, extents, want)
	}
}

func TestHomesIgnoreOrderAndDuplicates(t *testing.T) {
	a := testRing(nil, 1, 0, 1, 2, 3, 4)
	b := testRing(nil, 1, 4, 2, 2, 3, 1) // self is added
	for i := range 100 {
		if e := testExtent(i); !slices.Equal(a.homes(e), b.homes(e)) {
			t.Fatalf("extent %d: %v and %v", i, a.homes(e), b.homes(e))
		}
	}
	if got := testRing(nil, 1, 0).homes(testExtent(0)); len(got) != 1 {
		t.Fatalf("a peer alone has %d homes", len(got))
	}
}

// TestStayedHome compares the shortcut with the truth at every epoch.
func TestStayedHome(t *testing.T) {
	tables := [][]int{upTo(4), upTo(9), {0, 1, 2, 3}, {0, 1, 2, 3, 9, 10, 11}, {0, 9, 10}, upTo(12)}
	var rings []*ring
	var prev *ring
	for i, members := range tables {
		prev = testRing(prev, uint64(i+1), members...)
		rings = append(rings, prev)
	}
	now, yes := rings[len(rings)-1], 0
	for i := range 500 {
		e := testExtent(i)
		for since := range rings {
			truly := true
			for _, r := range rings[since:] {
				truly = truly && slices.Contains(r.homes(e), r.self)
			}
			said := now.stayedHome(e, uint64(since+1))
			if said && !truly {
				t.Fatalf("extent %d: said to be home since epoch %d, and was not", i, since+1)
			}
			if said {
				yes++
			}
		}
	}
	if yes < 100 {
		t.Errorf("only %d times home: the shortcut is of no use", yes)
	}
	if now.stayedHome(testExtent(0), 0) {
		t.Error("home since before the first ring")
	}
}

func TestRingForgetsDepartures(t *testing.T) {
	r := testRing(nil, 1, upTo(maxLeft+50)...)
	r = testRing(r, 2, upTo(maxLeft+49)...)
	r = testRing(r, 3, 0)
	if len(r.left) != maxLeft || r.horizon < 2 {
		t.Fatalf("%d departures kept, horizon %d", len(r.left), r.horizon)
	}
	if r.stayedHome(testExtent(0), 1) {
		t.Fatal("claims to know what was forgotten")
	}
}

func BenchmarkHomesOf10000(b *testing.B) {
	r := testRing(nil, 1, upTo(10_000)...)
	for i := range b.N {
		r.homes(testExtent(i & 7))
	}
}
