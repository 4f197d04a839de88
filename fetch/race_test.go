package fetch

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

// bigExtent is an extent of n blocks of 4 MiB.
func bigExtent(key string, n int) *covey.Extent {
	o := covey.Object{Origin: "mem://origin", Key: key, Version: "v1", Size: int64(n) * covey.DefaultBlockSize, BlockSize: covey.DefaultBlockSize}
	blocks := make([]covey.Locator, n)
	for i := range blocks {
		blocks[i] = o.Block(i)
	}
	return covey.NewExtent(blocks)
}

// streams is an exchange with ranges, where each peer sends as its function says,
// in pieces, in virtual time. It keeps who was asked for what.
type streams struct {
	mu    sync.Mutex
	peers map[covey.PeerID]streamer
	asked []string
	sent  map[covey.PeerID]int
}

// streamer says what comes after byte at of a block: how many bytes, right or
// wrong, and after what time; an error ends the stream.
type streamer func(ctx context.Context, at int) (n int, wrong bool, err error)

func newStreams(peers map[covey.PeerID]streamer) *streams {
	return &streams{peers: peers, sent: make(map[covey.PeerID]int)}
}

func (x *streams) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, _ bool) error {
	return x.FetchFrom(ctx, from, l, buf, 0, nil)
}

func (x *streams) FetchFrom(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, off int, p *Progress) error {
	x.mu.Lock()
	x.asked = append(x.asked, fmt.Sprintf("%s@%d", from, off))
	next := x.peers[from]
	x.mu.Unlock()
	if next == nil {
		return fmt.Errorf("dial %s: %w", from, covey.ErrUnavailable)
	}
	data := content(l)
	for at := off; at < len(buf); {
		n, wrong, err := next(ctx, at)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		n = min(n, len(buf)-at)
		copy(buf[at:at+n], data[at:at+n])
		if wrong {
			buf[at] ^= 1
		}
		at += n
		p.Reached(at)
		x.mu.Lock()
		x.sent[from] += n
		x.mu.Unlock()
	}
	return nil
}

func (x *streams) questions() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.asked)
}

const piece = 256 << 10

// at sends pieces at a rate in bytes a second.
func at(rate int) streamer {
	return func(ctx context.Context, _ int) (int, bool, error) {
		return piece, false, sleep(ctx, time.Duration(piece)*time.Second/time.Duration(rate))
	}
}

// until does as s does up to a byte, and then as after does.
func until(stop int, s, after streamer) streamer {
	return func(ctx context.Context, at int) (int, bool, error) {
		if at < stop {
			return s(ctx, at)
		}
		return after(ctx, at)
	}
}

func silent(ctx context.Context, _ int) (int, bool, error) {
	<-ctx.Done()
	return 0, false, fmt.Errorf("%w: %w", covey.ErrUnavailable, ctx.Err())
}

func broken(context.Context, int) (int, bool, error) { return 0, false, covey.ErrUnavailable }

func lying(ctx context.Context, at int) (int, bool, error) {
	n, _, err := quick(ctx, at)
	return n, true, err
}

const gigabyte = 1 << 30

var quick = at(gigabyte)

// What a neighbour that is slow, stuck, dead or lying costs one read, at most,
// beside another that is well. Nobody has read anything yet, so the hedge delay
// is at its longest.
func TestRaces(t *testing.T) {
	const half = int(covey.DefaultBlockSize) / 2
	const whole = 5 * time.Millisecond // at a gigabyte a second, and a little
	for _, tc := range []struct {
		name    string
		a, b    streamer
		within  time.Duration
		asked   []string
		corrupt []string
	}{
		{name: "well", a: quick, b: quick, within: whole, asked: []string{"a@0"}},
		{ // fault 1
			name: "dead", a: nil, b: quick, within: whole, asked: []string{"a@0", "b@0"},
		},
		{ // fault 1: what it sent is not read again.
			name: "dies in the middle", a: until(half, quick, broken), b: quick,
			within: whole, asked: []string{"a@0", fmt.Sprintf("b@%d", half)},
		},
		{ // fault 3
			name: "stopped", a: silent, b: quick, within: maxHedge + whole, asked: []string{"a@0", "b@0"},
		},
		{ // fault 3
			name: "stopped in the middle", a: until(half, quick, silent), b: quick,
			within: maxHedge + whole, asked: []string{"a@0", fmt.Sprintf("b@%d", half)},
		},
		{ // fault 32: 10 Mbit/s
			name: "slow", a: at(1_250_000), b: quick, within: maxHedge + whole, asked: []string{"a@0", "b@0"},
		},
		{ // fault 33
			name: "lies", a: lying, b: quick, within: 2 * whole,
			asked: []string{"a@0", "b@0"}, corrupt: []string{"neighbour:a"},
		},
		{ // fault 33: which of the two has lied shows when each sends all of it.
			name: "lies and dies", a: until(half, lying, broken), b: quick, within: 2 * whole,
			asked: []string{"a@0", fmt.Sprintf("b@%d", half), "b@0"}, corrupt: []string{"neighbour:"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				x := newStreams(map[covey.PeerID]streamer{"a": tc.a, "b": tc.b})
				r := newRoom(t, x)
				e := bigExtent("k", 1)
				r.home.holds(e, []int{0}, "a", "b")
				began := time.Now()
				mustGet(t.Context(), t, r.Fetcher, e, 0)
				// The home's round trip is not the race's.
				if took := time.Since(began) - r.home.rtt; took > tc.within {
					t.Errorf("took %v, want at most %v", took, tc.within)
				}
				r.settle()
				if got := x.questions(); !slices.Equal(got, tc.asked) {
					t.Errorf("asked %q, want %q", got, tc.asked)
				}
				if !slices.Equal(r.corrupt, tc.corrupt) {
					t.Errorf("corrupt %q, want %q", r.corrupt, tc.corrupt)
				}
				if got := r.Totals(); got.Neighbour != covey.DefaultBlockSize {
					t.Errorf("bytes by source %+v", got)
				}
			})
		})
	}
}

// A stream that carries less than a megabyte in half a second is left where no
// hedge may run, and another goes on from there.
func TestSlowStreamIsLeft(t *testing.T) {
	bubble(t, func(t *testing.T) {
		x := newStreams(map[covey.PeerID]streamer{"a": at(1_250_000), "b": quick})
		r := newRoom(t, x)
		r.hedges.credit = -1
		e := bigExtent("k", 1)
		r.home.holds(e, []int{0}, "a", "b")
		began := time.Now()
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if took := time.Since(began); took < slowAfter || took > slowAfter+10*time.Millisecond {
			t.Errorf("took %v", took)
		}
		r.settle()
		got := x.questions()
		if want := fmt.Sprintf("b@%d", 2*piece); len(got) != 2 || got[1] != want {
			t.Errorf("asked %q, want the rest from %q", got, want)
		}
		if n := r.hedges.left.Load(); n != 1 {
			t.Errorf("%d streams left", n)
		}
		if sent := x.sent["a"] + x.sent["b"]; sent != int(covey.DefaultBlockSize) {
			t.Errorf("%d bytes sent for a block of %d", sent, covey.DefaultBlockSize)
		}
	})
}

// Where every peer is late all the time, hedging costs no more than its share.
func TestHedgesStayWithinTheirShare(t *testing.T) {
	bubble(t, func(t *testing.T) {
		late := at(30 << 20) // a block takes 133 ms
		x := newStreams(map[covey.PeerID]streamer{"a": late, "b": late, "c": late})
		r := newRoom(t, x)
		r.hedges.credit = hedgeCredit / 8 // so that it is soon used up
		const blocks = 60
		for i := range blocks {
			e := bigExtent(fmt.Sprint(i), 1)
			r.home.holds(e, []int{0}, "a", "b", "c")
			mustGet(t.Context(), t, r.Fetcher, e, 0)
			if err := r.store.Drop(e.Blocks[0]); err != nil {
				t.Fatal(err)
			}
		}
		r.settle()
		sent := 0
		for _, n := range x.sent {
			sent += n
		}
		used := blocks * int(covey.DefaultBlockSize)
		// One hedge may begin on the last byte of credit.
		if most := hedgeCredit/8 + used*3/100 + int(covey.DefaultBlockSize); sent-used > most {
			t.Errorf("%d MiB wasted of %d, want at most %d", (sent-used)>>20, used>>20, most>>20)
		}
		if r.hedges.begun.Load() == 0 {
			t.Error("no hedge began: the test shows nothing")
		}
		if wasted := int(r.hedges.wasted.Load()); wasted != sent-used {
			t.Errorf("counted %d bytes as wasted, sent %d too many", wasted, sent-used)
		}
	})
}

// fault 33: a peer that lies again is left out for ten minutes, and then asked
// again.
func TestLiarIsBanned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		x := newStreams(map[covey.PeerID]streamer{"a": lying, "b": quick})
		r := newRoom(t, x)
		get := func(i int, holders ...covey.PeerID) {
			e := bigExtent(fmt.Sprint(i), 1)
			r.home.holds(e, []int{0}, holders...)
			mustGet(t.Context(), t, r.Fetcher, e, 0)
		}
		for i := range banAfter {
			get(i, "a") // the only holder: a suspect is asked last, not never
		}
		if got := r.Neighbour("a"); got.Lies != banAfter || got.Banned.IsZero() {
			t.Fatalf("after %d lies: %+v", banAfter, got)
		}
		asked := len(x.questions())
		for i := range 10 {
			get(100+i, "a", "b")
			get(200+i, "a")
		}
		for _, q := range x.questions()[asked:] {
			if q[0] == 'a' {
				t.Errorf("a banned peer was asked: %s", q)
			}
		}
		time.Sleep(banTime)
		asked = len(x.questions())
		get(300, "a")
		if got := x.questions()[asked:]; len(got) == 0 || got[0] != "a@0" {
			t.Errorf("after the ban asked %q", got)
		}
		r.settle()
	})
}

// fault 34: a peer that claims everything and has nothing is soon asked last.
func TestEmptyClaimsLowerTheScore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		nothing := func(context.Context, int) (int, bool, error) { return 0, false, covey.ErrNotFound }
		x := newStreams(map[covey.PeerID]streamer{"a": nothing, "b": quick})
		r := newRoom(t, x)
		const blocks = 20
		for i := range blocks {
			e := bigExtent(fmt.Sprint(i), 1)
			r.home.holds(e, []int{0}, "a", "b")
			mustGet(t.Context(), t, r.Fetcher, e, 0)
			if err := r.store.Drop(e.Blocks[0]); err != nil {
				t.Fatal(err)
			}
		}
		r.settle()
		wasted := 0
		for _, q := range x.questions() {
			if q[0] == 'a' {
				wasted++
			}
		}
		if wasted > emptyAfter {
			t.Errorf("asked the empty peer %d times in %d reads, want at most %d", wasted, blocks, emptyAfter)
		}
	})
}

// placed is a topology by name: the first letter of a peer says how far it is.
type placed struct{}

func (placed) Nearness(p covey.PeerID) (Distance, float64) {
	return map[byte]Distance{'h': SameHost, 'r': SameRack, 'z': SameZone}[p[0]] + map[bool]Distance{true: Far}[p[0] == 'f'], 1e9
}

func TestChoiceOfNeighbour(t *testing.T) {
	n := newNeighbours(placed{})
	n.random = func(int) int { return 0 } // the first two
	take := func(peers ...covey.PeerID) covey.PeerID {
		t.Helper()
		p, _, ok := n.take(peers, 4<<20)
		if !ok {
			return ""
		}
		return p
	}
	if p := take("f1", "z1", "r1", "r2"); p != "r1" {
		t.Errorf("took %q, want one of the rack", p)
	}
	if p := take("r1", "r2"); p != "r2" {
		t.Errorf("took %q, want the one with less queued", p)
	}
	n.leave("r2", 4<<20, served, 30*time.Millisecond)
	n.leave("r1", 4<<20, served, time.Millisecond)
	if p := take("r2", "r1"); p != "r1" {
		t.Errorf("took %q, want the one that answers sooner", p)
	}
	n.doubt("r1", time.Second)
	if p := take("r1", "f1"); p != "f1" {
		t.Errorf("took %q, want any that is not under suspicion", p)
	}
	// All of its window under way, it is passed over; so are all.
	for range firstWindow {
		take("h1")
	}
	if p := take("h1", "z1"); p != "z1" {
		t.Errorf("took %q, want the next class while the nearest is full", p)
	}
	if _, room, ok := n.take([]covey.PeerID{"h1"}, 1); ok || room == nil {
		t.Error("a full window gave room")
	} else {
		n.leave("h1", 4<<20, served, time.Millisecond)
		select {
		case <-room:
		default:
			t.Error("nobody was told of room")
		}
	}
}

func TestWindowGrowsAndShrinks(t *testing.T) {
	n := newNeighbours(nil)
	fill := func() (under int) {
		for {
			if _, _, ok := n.take([]covey.PeerID{"p"}, 1); !ok {
				return under
			}
			under++
		}
	}
	drain := func(under int, how outcome) {
		for range under {
			n.leave("p", 1, how, time.Millisecond)
		}
	}
	for range 100 {
		under := fill()
		if under < minWindow || under > maxWindow {
			t.Fatalf("window of %d", under)
		}
		// Every place that is given back while the window is full counts.
		for range under {
			n.leave("p", 1, served, time.Millisecond)
			n.take([]covey.PeerID{"p"}, 1)
		}
		drain(under, served)
	}
	if under := fill(); under != maxWindow {
		t.Errorf("window of %d after many good rounds, want %d", under, maxWindow)
	} else {
		drain(under, failed)
	}
	if under := fill(); under != minWindow {
		t.Errorf("window of %d after many failures, want %d", under, minWindow)
	} else {
		drain(under, served)
	}
	if n.known["p"].under != 0 || n.known["p"].queued != 0 {
		t.Errorf("left behind: %+v", n.known["p"])
	}
}

// However many peers there are, what is remembered of them is bounded.
func TestNeighboursAreForgotten(t *testing.T) {
	n := newNeighbours(nil)
	n.lied("liar")
	n.lied("liar")
	for i := range 2 * maxNeighbours {
		p := covey.PeerID(fmt.Sprint(i))
		if _, _, ok := n.take([]covey.PeerID{p}, 1); !ok {
			t.Fatal("no room at a new peer")
		}
		n.leave(p, 1, served, time.Millisecond)
	}
	if len(n.known) > maxNeighbours {
		t.Errorf("%d peers remembered", len(n.known))
	}
	if !n.banned("liar") {
		t.Error("a ban was forgotten")
	}
}

// Blocks that come from several peers at once, some of them failing in every way,
// are right, and nothing is left behind.
func TestManyRacesAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		x := newStreams(map[covey.PeerID]streamer{
			"a": quick, "b": at(1_250_000), "c": until(1<<20, quick, silent), "d": until(2<<20, quick, broken), "e": lying,
		})
		r := newRoom(t, x)
		all := []covey.PeerID{"a", "b", "c", "d", "e"}
		var wg sync.WaitGroup
		for i := range 30 {
			e := bigExtent(fmt.Sprint(i), 1)
			// Each block has the good holder and three others, in turn.
			holders := []covey.PeerID{all[1+i%4], "a", all[1+(i+1)%4], all[1+(i+2)%4]}
			r.home.holds(e, []int{0}, holders...)
			wg.Go(func() { mustGet(t.Context(), t, r.Fetcher, e, 0) })
		}
		wg.Wait()
		r.settle()
		if n := r.origin.count(bigExtent("0", 1).Blocks[0]); n != 0 {
			t.Errorf("%d reads of the origin for a block that a neighbour has", n)
		}
		for p, nb := range r.neighbours.known {
			if nb.under != 0 || nb.queued != 0 {
				t.Errorf("%s: left behind %+v", p, nb)
			}
		}
	})
}
