package member

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

func newSigner(t testing.TB) *Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return NewSigner(k)
}

func newPeer(t testing.TB) peer.ID {
	t.Helper()
	k, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var start = time.Now()

func record(p peer.ID, seq uint64) Record {
	return Record{
		Peer: p, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/10.0.0.1/tcp/7171")}, Zone: "z", Rack: "r", Host: "h",
		Capacity: 1 << 40, Issued: start, Expires: start.Add(Lease), Seq: seq,
	}
}

func aged(m *wire.SignedRecord, d time.Duration) *wire.SignedRecord {
	return &wire.SignedRecord{Record: m.Record, Signature: m.Signature, AgeMs: uint64(d.Milliseconds())}
}

func mustMerge(t *testing.T, tab *Table, m *wire.SignedRecord, now time.Time, want Change) {
	t.Helper()
	if _, got, err := tab.Merge(m, now); err != nil || got != want {
		t.Errorf("Merge = %d, %v; want %d", got, err, want)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	s := newSigner(t)
	r := record(newPeer(t), 9)
	got, err := s.Open(s.Sign(r), start)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Peer, got.Addrs, got.Zone, got.Rack, got.Host, got.Capacity, got.Seq) !=
		fmt.Sprint(r.Peer, r.Addrs, r.Zone, r.Rack, r.Host, r.Capacity, r.Seq) {
		t.Errorf("got %+v, want %+v", got, r)
	}
}

func TestOpenRefuses(t *testing.T) {
	s := newSigner(t)
	p := newPeer(t)
	change := func(f func(*Record)) *wire.SignedRecord {
		r := record(p, 1)
		f(&r)
		return s.Sign(r)
	}
	tampered := s.Sign(record(p, 1))
	tampered.Record[len(tampered.Record)-1] ^= 1
	for _, test := range []struct {
		name string
		m    *wire.SignedRecord
		kind error
	}{
		{"another key", newSigner(t).Sign(record(p, 1)), covey.ErrDenied},
		{"a flipped bit", tampered, covey.ErrDenied},
		{"nothing", nil, covey.ErrDenied},
		{"no peer", change(func(r *Record) { r.Peer = "" }), covey.ErrInvalid},
		{"a long label", change(func(r *Record) { r.Zone = string(make([]byte, MaxLabel+1)) }), covey.ErrInvalid},
		{"a lease of a day", change(func(r *Record) { r.Expires = r.Issued.Add(24 * time.Hour) }), covey.ErrInvalid},
		{"a lease that ends before it begins", change(func(r *Record) { r.Expires = r.Issued.Add(-time.Second) }), covey.ErrInvalid},
		{"an old lease", change(func(r *Record) { r.Issued = start.Add(-3 * time.Hour); r.Expires = r.Issued.Add(Lease) }), covey.ErrDenied},
		{"a lease of tomorrow", change(func(r *Record) { r.Issued = start.Add(24 * time.Hour); r.Expires = r.Issued.Add(Lease) }), covey.ErrDenied},
		{"nine addresses", change(func(r *Record) {
			for range MaxAddrs {
				r.Addrs = append(r.Addrs, r.Addrs[0])
			}
		}), covey.ErrInvalid},
		{"a negative capacity", change(func(r *Record) { r.Capacity = -1 }), covey.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := s.Open(test.m, start); !errors.Is(err, test.kind) {
				t.Errorf("Open = %v, want %v", err, test.kind)
			}
		})
	}
}

// fault 38
func TestClockSkew(t *testing.T) {
	s := newSigner(t)
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		tab := NewTable(newPeer(t), s, 10)
		p := newPeer(t)
		r := record(p, 1)
		r.Issued, r.Expires = r.Issued.Add(skew), r.Expires.Add(skew)
		mustMerge(t, tab, s.Sign(r), start, Joined)
		if gone := tab.Expire(start.Add(Lease - time.Second)); len(gone) != 0 {
			t.Errorf("skew %s: expired early", skew)
		}
		if gone := tab.Expire(start.Add(Lease)); len(gone) != 1 {
			t.Errorf("skew %s: not expired after its lease", skew)
		}
	}
}

func TestAllowedAddr(t *testing.T) {
	for addr, want := range map[string]bool{
		"/ip4/127.0.0.1/tcp/7171":            true,
		"/ip4/10.1.2.3/tcp/7171":             true,
		"/ip6/2001:db8::1/tcp/7171":          true,
		"/ip6/fd00::1/tcp/7171":              true,
		"/dns/node1/tcp/7171":                true,
		"/dns4/node1/tcp/7171":               true,
		"/ip4/169.254.169.254/tcp/80":        false,
		"/ip6/::ffff:169.254.169.254/tcp/80": false,
		"/ip6/fd00:ec2::254/tcp/80":          false,
		"/ip4/169.254.1.1/tcp/7171":          false,
		"/ip6/fe80::1/tcp/7171":              false,
		"/ip4/0.0.0.0/tcp/7171":              false,
		"/ip4/224.0.0.1/tcp/7171":            false,
		"/ip4/10.1.2.3/udp/7171":             false,
		"/ip4/10.1.2.3/udp/7171/quic-v1":     false,
		"/ip4/10.1.2.3/tcp/7171/ws":          false,
		"/unix/run%2Fdocker.sock":            false,
		"/dnsaddr/node1/tcp/7171":            false,
		"/ip4/10.1.2.3":                      false,
	} {
		if got := AllowedAddr(ma.StringCast(addr)); got != want {
			t.Errorf("AllowedAddr(%s) = %v", addr, got)
		}
	}
	s := newSigner(t)
	r := record(newPeer(t), 1)
	r.Addrs = append(r.Addrs, ma.StringCast("/ip4/169.254.169.254/tcp/80"))
	if got, err := s.Open(s.Sign(r), start); err != nil || len(got.Addrs) != 1 {
		t.Errorf("record with a metadata address: %v, %v", got.Addrs, err)
	}
}

func TestTableLife(t *testing.T) {
	s := newSigner(t)
	self, p := newPeer(t), newPeer(t)
	tab := NewTable(self, s, 10)
	own := record(self, 5)
	tab.SetSelf(own, s.Sign(own), start)
	_, epoch := tab.Live()
	expect := func(what string, members int, changed bool) {
		t.Helper()
		live, e := tab.Live()
		if len(live) != members || (e > epoch) != changed {
			t.Errorf("%s: %d live, epoch %d → %d", what, len(live), epoch, e)
		}
		epoch = e
	}
	mustMerge(t, tab, s.Sign(record(p, 2)), start, Joined)
	expect("joined", 2, true)
	mustMerge(t, tab, s.Sign(record(p, 2)), start, Ignored)
	mustMerge(t, tab, s.Sign(record(p, 1)), start, Ignored)
	mustMerge(t, tab, s.Sign(record(p, 3)), start, Renewed)
	expect("renewed", 2, false)
	if !tab.SetDown(p, true) || tab.SetDown(p, true) {
		t.Error("SetDown reports the wrong change")
	}
	expect("down", 1, true)
	mustMerge(t, tab, s.Sign(record(p, 4)), start, Renewed)
	expect("renewed while down", 1, false)
	tab.SetDown(p, false)
	expect("up", 2, true)

	bye := record(p, 6)
	bye.Left = true
	mustMerge(t, tab, s.Sign(bye), start, Left)
	expect("left", 1, true)
	mustMerge(t, tab, s.Sign(bye), start, Ignored)
	mustMerge(t, tab, s.Sign(record(p, 5)), start, Ignored)
	expect("old record after the goodbye", 1, false)
	mustMerge(t, tab, s.Sign(record(p, 7)), start, Joined)
	expect("back", 2, true)

	mustMerge(t, tab, s.Sign(record(self, 5)), start, Ignored)
	mustMerge(t, tab, s.Sign(record(self, 8)), start, Disputed)
}

// A record that is passed around keeps its age and so cannot live for ever.
func TestNoImmortals(t *testing.T) {
	s := newSigner(t)
	a, b := NewTable(newPeer(t), s, 10), NewTable(newPeer(t), s, 10)
	m := s.Sign(record(newPeer(t), 1))
	mustMerge(t, a, m, start, Joined)
	late := start.Add(Lease - 10*time.Second)
	records, _, _, err := a.Compare(b.Digest(late), late)
	if err != nil || len(records) != 1 {
		t.Fatalf("Compare: %d records, %v", len(records), err)
	}
	mustMerge(t, b, records[0], late, Joined)
	end := start.Add(Lease + time.Second)
	if len(b.Expire(end)) != 1 {
		t.Error("the copy outlived its lease")
	}
	mustMerge(t, a, aged(m, 0), start.Add(time.Second), Ignored)
	mustMerge(t, b, aged(m, 0), end, Ignored) // remembered as expired
}

func TestTableIsBounded(t *testing.T) {
	s := newSigner(t)
	tab := NewTable(newPeer(t), s, 3)
	for range 3 {
		mustMerge(t, tab, s.Sign(record(newPeer(t), 1)), start, Joined)
	}
	if _, _, err := tab.Merge(s.Sign(record(newPeer(t), 1)), start); !errors.Is(err, covey.ErrFull) {
		t.Errorf("fourth record: %v", err)
	}
	if _, _, _, err := tab.Compare(make([]byte, 16*100), start); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("digest of 100: %v", err)
	}
}

// Two tables that differ in both directions are the same after one comparison.
func TestCompare(t *testing.T) {
	s := newSigner(t)
	a, b := NewTable(newPeer(t), s, 1000), NewTable(newPeer(t), s, 1000)
	for i := range 200 {
		p := newPeer(t)
		if i%3 != 0 {
			mustMerge(t, a, s.Sign(record(p, uint64(1+i%2))), start, Joined)
		}
		if i%5 != 0 {
			mustMerge(t, b, s.Sign(record(p, uint64(1+i%4))), start, Joined)
		}
	}
	if a.Summary(start) == b.Summary(start) {
		t.Fatal("different tables with one summary")
	}
	records, more, want, err := b.Compare(a.Digest(start), start)
	if err != nil || more {
		t.Fatalf("Compare: more=%v, %v", more, err)
	}
	back, err := a.Records(want, start)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range records {
		if _, c, err := a.Merge(m, start); err != nil || c == Ignored {
			t.Errorf("a record that was not needed: %d, %v", c, err)
		}
	}
	for _, m := range back {
		if _, c, err := b.Merge(m, start); err != nil || c == Ignored {
			t.Errorf("a record that was not needed: %d, %v", c, err)
		}
	}
	if a.Summary(start) != b.Summary(start) {
		t.Error("tables differ after the comparison")
	}
}

// FuzzRecord: what is signed by a member may still be nonsense; it is refused as
// invalid or within the limits.
func FuzzRecord(f *testing.F) {
	s := newSigner(f)
	f.Add(s.Sign(record(newPeer(f), 3)).Record)
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0x12, 0x02, 0x04, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err != nil {
			if !errors.Is(err, covey.ErrInvalid) {
				t.Fatalf("error of kind %v", err)
			}
			return
		}
		if len(r.Addrs) > MaxAddrs || len(r.Zone) > MaxLabel || r.Expires.Sub(r.Issued) > maxLease || r.Peer.Validate() != nil {
			t.Fatalf("accepted %+v", r)
		}
		again, err := decode(s.Sign(r).Record)
		if err != nil || again.Peer != r.Peer || again.Seq != r.Seq {
			t.Fatalf("%+v decodes to %+v, %v", r, again, err)
		}
	})
}
