package member

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

func newIdentity(t testing.TB) (crypto.PrivKey, peer.ID) {
	t.Helper()
	k, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return k, id
}

// What a grant allows is that peer's own records, until it ends, and nothing else.
func TestGrants(t *testing.T) {
	cluster := newSigner(t)
	key, id := newIdentity(t)
	otherKey, other := newIdentity(t)
	grant := cluster.Grant(Grant{Peer: id, Issued: start, Expires: start.Add(time.Hour)})
	issued := NewIssued(cluster.Public(), key, grant)
	if issued.HasKey() || !cluster.HasKey() || !issued.Ends().Equal(time.UnixMilli(start.Add(time.Hour).UnixMilli())) {
		t.Errorf("issued until %v, with the key: %v", issued.Ends(), issued.HasKey())
	}
	good := issued.Sign(record(id, 1))
	for _, s := range []*Signer{cluster, issued} {
		if r, err := s.Open(good, start); err != nil || r.Peer != id {
			t.Errorf("a good record: %v", err)
		}
	}
	tampered := issued.Sign(record(id, 1))
	tampered.Record[len(tampered.Record)-1] ^= 1
	foreign := newSigner(t)
	for _, tc := range []struct {
		name string
		m    *wire.SignedRecord
		at   time.Time
		kind error
	}{
		{"a record for another", issued.Sign(record(other, 1)), start, covey.ErrDenied},
		{"somebody else's grant", NewIssued(cluster.Public(), otherKey, grant).Sign(record(other, 1)), start, covey.ErrDenied},
		{"somebody else's signature", NewIssued(cluster.Public(), otherKey, grant).Sign(record(id, 1)), start, covey.ErrDenied},
		{"a grant of another cluster", NewIssued(cluster.Public(), key, foreign.Grant(Grant{Peer: id, Issued: start, Expires: start.Add(time.Hour)})).Sign(record(id, 1)), start, covey.ErrDenied},
		{"a changed record", tampered, start, covey.ErrDenied},
		{"an expired grant", good, start.Add(time.Hour), ErrExpired},
		{"an empty grant", &wire.SignedRecord{Record: good.Record, Signature: good.Signature, Grant: &wire.SignedGrant{}}, start, covey.ErrDenied},
		{"no grant", &wire.SignedRecord{Record: good.Record, Signature: good.Signature}, start, covey.ErrDenied},
	} {
		if _, err := cluster.Open(tc.m, tc.at); !errors.Is(err, tc.kind) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	// A record of the key's signer is not one of a grant, and the other way round.
	mixed := cluster.Sign(record(id, 1))
	mixed.Grant = grant
	if _, err := cluster.Open(mixed, start); !errors.Is(err, covey.ErrDenied) {
		t.Errorf("the cluster's signature with a grant: %v", err)
	}
}

func TestRevoke(t *testing.T) {
	s := newSigner(t)
	a, b := NewTable(newPeer(t), s, 10), NewTable(newPeer(t), s, 10)
	p := newPeer(t)
	mustMerge(t, a, s.Sign(record(p, 1)), start, Joined)
	mustMerge(t, b, s.Sign(record(p, 1)), start, Joined)
	_, epoch := a.Live()
	r := s.Revoke(p, start)
	if _, _, _, err := a.Revoke(newSigner(t).Revoke(p, start)); !errors.Is(err, covey.ErrDenied) {
		t.Errorf("a revocation of another cluster: %v", err)
	}
	if a.Summary(start) != b.Summary(start) {
		t.Error("alike tables differ")
	}
	if got, news, was, err := a.Revoke(r); err != nil || got != p || !news || !was {
		t.Errorf("Revoke = %s, %v, %v, %v", got, news, was, err)
	}
	if _, news, _, err := a.Revoke(r); err != nil || news {
		t.Errorf("the same again: news %v, %v", news, err)
	}
	if _, now := a.Live(); a.Has(p) || now == epoch || len(a.Lost()) != 0 {
		t.Error("still known")
	}
	if _, _, err := a.Merge(s.Sign(record(p, 2)), start); !errors.Is(err, ErrRevoked) {
		t.Errorf("its next record: %v", err)
	}
	if a.Summary(start) == b.Summary(start) {
		t.Error("tables that differ by a revocation look alike")
	}
	lacks, more, want, err := a.CompareRevoked(b.RevokedKeys())
	if err != nil || len(lacks) != 1 || more || len(want) != 0 {
		t.Errorf("b lacks %d, more %v, a wants %x, %v", len(lacks), more, want, err)
	}
	lacks, _, want, err = b.CompareRevoked(a.RevokedKeys())
	if err != nil || len(lacks) != 0 || len(want) != keyLen {
		t.Errorf("a lacks %d, b wants %x, %v", len(lacks), want, err)
	}
	list, err := a.Revocations(want)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d revocations, %v", len(list), err)
	}
	if _, news, _, err := b.Revoke(list[0]); err != nil || !news {
		t.Errorf("passed on: %v", err)
	}
	for i := range 2 * MaxRevoked {
		if _, _, _, err := b.Revoke(s.Revoke(peer.ID(binary.BigEndian.AppendUint32([]byte("\x00\x04"), uint32(i))), start)); err != nil && !errors.Is(err, covey.ErrFull) {
			t.Fatal(err)
		}
	}
	if len(b.revoked) != MaxRevoked {
		t.Errorf("%d revocations kept", len(b.revoked))
	}
}

// What members show: no input passes for signed, and errors are of the right kind.
func FuzzGrant(f *testing.F) {
	s := newSigner(f)
	_, id := newIdentity(f)
	g := s.Grant(Grant{Peer: id, Issued: start, Expires: start.Add(time.Hour)})
	f.Add(g.Grant, g.Signature)
	f.Add(s.Revoke(id, start).Revocation, g.Signature)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, b, signature []byte) {
		if _, err := s.OpenGrant(&wire.SignedGrant{Grant: b, Signature: signature}, start); err == nil && !bytes.Equal(b, g.Grant) {
			t.Fatal("accepted a grant that was not signed")
		}
		if _, err := s.OpenRevocation(&wire.SignedRevocation{Revocation: b, Signature: signature}); err == nil {
			t.Fatal("accepted a revocation that was not signed")
		}
		if d, err := decodeGrant(b); err != nil && !errors.Is(err, covey.ErrInvalid) {
			t.Fatalf("error of kind %v", err)
		} else if err == nil && d.Peer == "" {
			t.Fatal("a grant for nobody")
		}
	})
}

// FuzzDigest: whatever a peer sends for a digest, the answer is bounded.
func FuzzDigest(f *testing.F) {
	s := newSigner(f)
	tab := NewTable(newPeer(f), s, 100)
	for i := range 20 {
		if _, _, err := tab.Merge(s.Sign(record(newPeer(f), uint64(i+1))), start); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(tab.Digest(start), tab.RevokedKeys())
	f.Add([]byte{1}, []byte{1, 2, 3})
	f.Add(make([]byte, 2*100*entryLen+entryLen), make([]byte, 8))
	f.Fuzz(func(t *testing.T, digest, revoked []byte) {
		records, _, want, err := tab.Compare(digest, start)
		switch {
		case err != nil && !errors.Is(err, covey.ErrInvalid):
			t.Fatalf("error of kind %v", err)
		case len(records) > 20 || len(want) > len(digest)/2:
			t.Fatalf("answered %d bytes with %d records and %d bytes of keys", len(digest), len(records), len(want))
		}
		if _, err := tab.Records(digest, start); err != nil && !errors.Is(err, covey.ErrInvalid) {
			t.Fatalf("error of kind %v", err)
		}
		if _, _, _, err := tab.CompareRevoked(revoked); err != nil && !errors.Is(err, covey.ErrInvalid) {
			t.Fatalf("error of kind %v", err)
		}
	})
}

// BenchmarkTable fills a table with 10,000 members and says what each takes.
func BenchmarkTable(b *testing.B) {
	const members = 10_000
	s := newSigner(b)
	var records []*wire.SignedRecord
	for i := range members {
		id := peer.ID(binary.BigEndian.AppendUint64([]byte("\x00\x24\x08\x01\x12\x20aaaaaaaabbbbbbbbcccccccc"), uint64(i)))
		records = append(records, s.Sign(record(id, 1)))
	}
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		tab := NewTable(newPeer(b), s, members+1)
		for i, m := range records {
			// Each arrives in bytes of its own, which the table then keeps.
			own := &wire.SignedRecord{Record: bytes.Clone(m.Record), Signature: bytes.Clone(m.Signature)}
			if _, change, err := tab.Merge(own, start); err != nil || change != Joined {
				b.Fatal(i, change, err)
			}
		}
		tab.Live()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/members, "B/member")
		runtime.KeepAlive(tab)
	}
}
