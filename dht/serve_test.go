package dht

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

// lone is a member table of fixed peers, and a Caller that reaches nobody.
type lone []covey.PeerID

func (l lone) Self() covey.PeerID             { return l[0] }
func (l lone) Live() ([]covey.PeerID, uint64) { return l, 1 }
func (l lone) Call(context.Context, covey.PeerID, []byte) ([]byte, error) {
	return nil, errors.New("nobody there")
}

func loneDirectory(o DirectoryOptions, ids ...covey.PeerID) *Directory {
	o.Members, o.Caller = lone(ids), lone(ids)
	return NewDirectory(o)
}

func request(t testing.TB, r *wire.Request) []byte {
	t.Helper()
	if r.Version == 0 {
		r.Version = wire.Version
	}
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func serve(t testing.TB, d *Directory, from covey.PeerID, b []byte) *wire.Reply {
	t.Helper()
	var reply wire.Reply
	if err := proto.Unmarshal(d.Serve(context.Background(), from, b), &reply); err != nil {
		t.Fatal(err)
	}
	return &reply
}

func bytesOf(n int) []byte { return make([]byte, n) }

func TestServeRefusesNonsense(t *testing.T) {
	e := testExtent(1)
	x := testDigest("x")
	many := make([][]byte, maxFailed+1)
	for i := range many {
		many[i] = []byte(testPeer(i))
	}
	want := func(w *wire.Want) *wire.Request { return &wire.Request{Body: &wire.Request_Want{Want: w}} }
	have := func(h ...*wire.ExtentHave) *wire.Request {
		return &wire.Request{Body: &wire.Request_Have{Have: &wire.Have{Extents: h}}}
	}
	done := func(m *wire.Done) *wire.Request { return &wire.Request{Body: &wire.Request_Done{Done: m}} }
	d := loneDirectory(DirectoryOptions{}, "a", "b")
	for name, c := range map[string]struct {
		req  *wire.Request
		code wire.Code
	}{
		"empty":                {&wire.Request{}, wire.Code_UNSUPPORTED},
		"another version":      {&wire.Request{Version: 2}, wire.Code_UNSUPPORTED},
		"want of nothing":      {want(&wire.Want{}), wire.Code_INVALID},
		"want of 0 blocks":     {want(&wire.Want{Extent: e[:], Need: 1}), wire.Code_INVALID},
		"want of 65 blocks":    {want(&wire.Want{Extent: e[:], Count: 65, Need: 1}), wire.Code_INVALID},
		"want past the end":    {want(&wire.Want{Extent: e[:], Count: 3, Need: 8}), wire.Code_INVALID},
		"want, many failed":    {want(&wire.Want{Extent: e[:], Count: 3, Need: 1, Failed: many}), wire.Code_INVALID},
		"want, long peer ID":   {want(&wire.Want{Extent: e[:], Count: 3, Need: 1, Failed: [][]byte{bytesOf(65)}}), wire.Code_INVALID},
		"want, long asker":     {want(&wire.Want{Extent: e[:], Count: 3, Need: 1, Asker: bytesOf(1000)}), wire.Code_INVALID},
		"short extent":         {want(&wire.Want{Extent: e[:31], Count: 3, Need: 1}), wire.Code_INVALID},
		"have, few digests":    {have(&wire.ExtentHave{Extent: e[:], Have: 3, Digests: x[:]}), wire.Code_INVALID},
		"have, half a digest":  {have(&wire.ExtentHave{Extent: e[:], Have: 1, Digests: x[:16]}), wire.Code_INVALID},
		"have, a zero digest":  {have(&wire.ExtentHave{Extent: e[:], Have: 1, Digests: bytesOf(32)}), wire.Code_INVALID},
		"have, no extent":      {have(&wire.ExtentHave{Have: 1, Digests: x[:]}), wire.Code_INVALID},
		"done of slot 64":      {done(&wire.Done{Extent: e[:], Slot: 64, Digest: x[:]}), wire.Code_INVALID},
		"done, a short digest": {done(&wire.Done{Extent: e[:], Digest: x[:31]}), wire.Code_INVALID},
		"done, a zero digest":  {done(&wire.Done{Extent: e[:], Digest: bytesOf(32)}), wire.Code_INVALID},
		"ask of nothing":       {&wire.Request{Body: &wire.Request_Ask{Ask: &wire.Ask{}}}, wire.Code_INVALID},
		"a good ask":           {&wire.Request{Body: &wire.Request_Ask{Ask: &wire.Ask{Extent: e[:]}}}, wire.Code_OK},
		"a good have":          {have(&wire.ExtentHave{Extent: e[:], Have: 1, Digests: x[:]}), wire.Code_OK},
	} {
		t.Run(name, func(t *testing.T) {
			if got := serve(t, d, "b", request(t, c.req)).GetCode(); got != c.code {
				t.Errorf("answered %s, want %s", got, c.code)
			}
		})
	}
	if got := serve(t, d, "", request(t, &wire.Request{})).GetCode(); got != wire.Code_INVALID {
		t.Errorf("a nameless peer: %s", got)
	}
	if got := serve(t, d, "b", bytesOf(wire.MaxMessage+1)).GetCode(); got != wire.Code_INVALID {
		t.Errorf("a request that is too long: %s", got)
	}
}

// TestServeBoundsAllocation sends a HAVE of the size limit whose elements are
// two bytes each, a fiftieth of what they would take in memory.
func TestServeBoundsAllocation(t *testing.T) {
	var items []byte
	for len(items) < wire.MaxMessage-64 {
		items = append(items, 0x0a, 0x00)
	}
	b := []byte{0x08, wire.Version, 5<<3 | 2}
	b = append(protoLen(b, len(items)), items...)
	d := loneDirectory(DirectoryOptions{}, "a", "b")
	grew := testing.AllocsPerRun(3, func() {
		if got := serve(t, d, "b", b).GetCode(); got != wire.Code_INVALID {
			t.Fatalf("answered %s", got)
		}
	})
	if grew > 100 {
		t.Errorf("%.0f allocations to refuse it", grew)
	}
}

func protoLen(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

// TestServeBelievesPeersAboutThemselvesOnly: a holder is whoever sent the
// message, and a home that hands a question over does not become the asker.
func TestServeBelievesPeersAboutThemselvesOnly(t *testing.T) {
	d := loneDirectory(DirectoryOptions{}, "a", "b", "c")
	e, x := testExtent(1), testDigest("x")
	serve(t, d, "b", request(t, &wire.Request{Body: &wire.Request_Have{Have: &wire.Have{
		Extents: []*wire.ExtentHave{{Extent: e[:], Have: 1, Digests: x[:]}}}}}))
	l, err := d.Lookup(t.Context(), e, 0)
	if err != nil || !slices.Equal(l.Holders, []covey.PeerID{"b"}) {
		t.Fatalf("holders %s, %v", l.Holders, err)
	}
	reply := serve(t, d, "b", request(t, &wire.Request{Body: &wire.Request_Want{Want: &wire.Want{
		Extent: e[:], Count: 2, Need: 2, Asker: []byte("c")}}}))
	if reply.GetPlan().GetBlocks()[1].GetState() != wire.State_GRANTED {
		t.Fatalf("plan %v", reply)
	}
	if l, _ := d.Lookup(t.Context(), e, 1); l.Reading != "c" {
		t.Fatalf("granted to %q", l.Reading)
	}
}

// FuzzServe feeds any bytes to a home that knows something, and its answers to
// the decoder that an asker uses.
func FuzzServe(f *testing.F) {
	e, x := testExtent(1), testDigest("x")
	for _, r := range []*wire.Request{
		wantRequest(Want{Extent: e, Count: 4, Need: 15, Failed: []covey.PeerID{"b"}}, "c"),
		doneRequest(Outcome{Extent: e, Slot: 1, Digest: x}),
		doneRequest(Outcome{Extent: e, Slot: 1, Lease: 7, Err: covey.ErrStale}),
		wantRequest(Want{Extent: e, Count: 64, Need: 3, Spare: 12, Got: 2, Digests: []covey.Digest{x}, Hold: time.Second,
			FirstByte: time.Second, Bucket: 5, Throttled: time.Second}, ""),
		doneRequest(Outcome{Extent: e, Slot: 1, Lease: 7, Err: covey.ErrThrottled, Bucket: 5}),
		{Body: &wire.Request_Progress{Progress: &wire.Progress{Readings: []*wire.Reading{{Extent: e[:], Slot: 1, Lease: 7, Bytes: 1 << 20, TtlMs: 1000}}}}},
		{Body: &wire.Request_Have{Have: &wire.Have{Seq: 9, Extents: []*wire.ExtentHave{
			briefMessage(Have{Extent: e, Have: 1, Digests: []covey.Digest{x}})}}}},
		{Body: &wire.Request_Ask{Ask: &wire.Ask{Extent: e[:]}}},
		{Body: &wire.Request_Have{Have: &wire.Have{Extents: []*wire.ExtentHave{
			haveMessage(Have{Extent: e, Have: 1, Digests: []covey.Digest{x}, Gone: 2}, true)}}}},
	} {
		f.Add(request(f, r))
	}
	for _, p := range []Plan{
		{Home: "h", Blocks: []BlockPlan{{Slot: 0, State: Fetching, Peers: []covey.PeerID{"p"}, Digest: x, Moving: true}}},
		{Home: "h", Blocks: []BlockPlan{{Slot: 0, State: Throttled, After: time.Second}}},
		{Home: "h", Blocks: []BlockPlan{{Slot: 0, State: Redirect, Peers: []covey.PeerID{"p"}}}},
	} {
		r := planReply(p)
		r.Code = wire.Code_OK
		b, err := wire.EncodeReply(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	d := loneDirectory(DirectoryOptions{MaxEntries: tableShards * 4}, "a", "b", "c")
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond) // a question may be kept
		defer cancel()
		answer := d.Serve(ctx, "b", b)
		reply, err := wire.DecodeReply(answer)
		if err != nil {
			t.Fatalf("own reply: %v", err)
		}
		if reply.GetCode() == wire.Code_CODE_NONE {
			t.Fatal("a reply without a code")
		}
		// As a reply, the bytes are somebody else's: refused or sound.
		if r, err := wire.DecodeReply(b); err == nil {
			if p, err := planFrom(r.GetPlan(), Want{Extent: e, Count: 4, Need: 1}, "c"); err == nil {
				checkPlan(t, p)
			}
			if k, err := knownFrom(r.GetKnown()); err == nil && len(k.digests) != k.pinned.Len() {
				t.Fatalf("%d digests for %d slots", len(k.digests), k.pinned.Len())
			}
		}
	})
}

func checkPlan(t *testing.T, p Plan) {
	t.Helper()
	last := -1
	for _, b := range p.Blocks {
		if b.Slot <= last || b.Slot > 3 || len(b.Peers) > maxHandedOut || slices.Contains(b.Peers, "c") {
			t.Fatalf("plan %+v", p)
		}
		last = b.Slot
	}
}

// TestMessagesSurviveTheTrip is decode of encode for what an asker and a home
// say to each other.
func TestMessagesSurviveTheTrip(t *testing.T) {
	e, x := testExtent(5), testDigest("x")
	w := Want{Extent: e, Count: 64, Need: 1<<63 | 5, Failed: []covey.PeerID{"p", "q"}, Prefetch: true}
	got, asker, err := wantFrom(wantRequest(w, "z").GetWant())
	if err != nil || asker != "z" || got.Need != w.Need || got.Count != 64 || !got.Prefetch || !slices.Equal(got.Failed, w.Failed) {
		t.Fatalf("%+v from %q: %v", got, asker, err)
	}
	p := Plan{Home: "h", Blocks: []BlockPlan{
		{Slot: 0, State: Held, Peers: []covey.PeerID{"p", "q"}, Digest: x},
		{Slot: 2, State: Granted, Lease: 1 << 60, TTL: 15 * time.Second},
		{Slot: 63, State: Fetching, Peers: []covey.PeerID{"q"}, TTL: time.Second},
	}}
	back, err := planFrom(planReply(p).GetPlan(), w, "z")
	if err != nil || back.Home != "h" || len(back.Blocks) != 3 {
		t.Fatalf("%+v: %v", back, err)
	}
	for i, b := range back.Blocks {
		if o := p.Blocks[i]; b.Slot != o.Slot || b.State != o.State || b.Digest != o.Digest || b.Lease != o.Lease || b.TTL != o.TTL || !slices.Equal(b.Peers, o.Peers) {
			t.Errorf("block %d: %+v, want %+v", i, b, o)
		}
	}
	if _, err := planFrom(planReply(Plan{Home: "h"}).GetPlan(), w, "z"); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("a plan that leaves out what was needed: %v", err)
	}
	// A home that sends the asker to itself has nothing to offer.
	self := Plan{Home: "h", Blocks: []BlockPlan{{Slot: 0, State: Held, Peers: []covey.PeerID{"z"}, Digest: x}}}
	if _, err := planFrom(planReply(self).GetPlan(), Want{Extent: e, Count: 1, Need: 1}, "z"); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("a plan that names the asker: %v", err)
	}
}
