// Package member keeps the table of who belongs to the mesh.
//
// A [Record] is what a member says of itself, signed with the key that all
// members derive from the cluster key. The [Table] holds the newest record of
// each, with the time it has left, and says what another table lacks.
//
// Time left is counted on this node's own monotonic clock from how old the
// sender said the record was, so clocks that are an hour apart do not matter. A
// record keeps its age when it is passed on; it cannot be kept alive by being
// passed around.
//
// The package opens no connections and starts no goroutine.
package member

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// Limits of a record.
const (
	// MaxAddrs is enough for two networks in both families, twice.
	MaxAddrs = 8
	// MaxRecord bounds the signed bytes. A usual record has about 250.
	MaxRecord = 4096
	// MaxLabel bounds zone, rack and host.
	MaxLabel = 128
	// maxAddr bounds one address; a DNS name has at most 253 bytes.
	maxAddr = 300

	// Lease is how long a record counts after it was made; Renew is how often
	// its owner makes a new one. Two renewals may get lost.
	Lease = 60 * time.Second
	Renew = Lease / 3
	// maxLease bounds what a record may claim.
	maxLease = 10 * time.Minute
	// maxSkew is how far clocks may be apart: two nodes that are an hour wrong
	// in opposite directions still meet. It bounds how long an old record can be
	// replayed by its owner.
	maxSkew = 2 * time.Hour
)

// recordDomain is signed in front of the record, so that the key's other
// signatures cannot be taken for one.
const recordDomain = "covey/member-record/1\n"

// Record is what a member says of itself.
type Record struct {
	Peer             peer.ID
	Addrs            []ma.Multiaddr
	Zone, Rack, Host string
	NICBits          uint64 // bits per second; 0: unknown
	Capacity         int64  // bytes
	Issued, Expires  time.Time
	// Seq orders the records of one member; the higher one counts.
	Seq uint64
	// Left says that the member has gone and why it is no longer renewed.
	Left bool
}

// Signer signs and checks records: with the cluster's key, or with a member's own
// and a grant.
type Signer struct {
	private  ed25519.PrivateKey // nil for a member with a grant
	public   ed25519.PublicKey
	identity crypto.PrivKey // with grant
	grant    *wire.SignedGrant
}

// NewSigner returns a signer that uses the given key.
func NewSigner(k ed25519.PrivateKey) *Signer {
	return &Signer{private: k, public: k.Public().(ed25519.PublicKey)}
}

// Sign encodes and signs a record, of age 0.
func (s *Signer) Sign(r Record) *wire.SignedRecord {
	m := &wire.Record{
		Peer: []byte(r.Peer), Zone: r.Zone, Rack: r.Rack, Host: r.Host,
		NicBitsPerSecond: r.NICBits, CapacityBytes: r.Capacity,
		IssuedUnixMs: r.Issued.UnixMilli(), ExpiresUnixMs: r.Expires.UnixMilli(),
		Seq: r.Seq, Left: r.Left,
	}
	for _, a := range r.Addrs {
		m.Addrs = append(m.Addrs, a.Bytes())
	}
	return s.sign(wire.Marshal(m))
}

func signed(record []byte) []byte {
	return append([]byte(recordDomain), record...)
}

// Open checks the signature and decodes the record. An error wraps
// covey.ErrDenied when the signature is not of this cluster, else
// covey.ErrInvalid. Addresses of a form or range that must not be dialled are
// left out.
func (s *Signer) Open(m *wire.SignedRecord, now time.Time) (Record, error) {
	if len(m.GetRecord()) > MaxRecord {
		return Record{}, fmt.Errorf("member record of %d bytes: %w", len(m.GetRecord()), covey.ErrInvalid)
	}
	granted, err := s.verify(m, now)
	if err != nil {
		return Record{}, err
	}
	r, err := decode(m.GetRecord())
	if err != nil {
		return Record{}, err
	}
	if granted != "" && granted != r.Peer {
		return Record{}, fmt.Errorf("member record of %s with the grant of %s: %w", r.Peer, granted, covey.ErrDenied)
	}
	if d := r.Expires.Sub(now); d < -maxSkew || d > maxSkew+maxLease {
		return Record{}, fmt.Errorf("member record of %s expires %s from now: %w", r.Peer, d, covey.ErrDenied)
	}
	return r, nil
}

// decode reads a record without looking at any signature.
func decode(b []byte) (Record, error) {
	if len(b) > MaxRecord {
		return Record{}, fmt.Errorf("member record of %d bytes: %w", len(b), covey.ErrInvalid)
	}
	var m wire.Record
	if err := wire.Unmarshal(b, &m); err != nil {
		return Record{}, err
	}
	id, err := peer.IDFromBytes(m.Peer)
	if err != nil {
		return Record{}, fmt.Errorf("member record with a malformed peer ID: %w", covey.ErrInvalid)
	}
	for _, l := range [...]string{m.Zone, m.Rack, m.Host} {
		if len(l) > MaxLabel || !utf8.ValidString(l) {
			return Record{}, fmt.Errorf("member record with a label of %d bytes: %w", len(l), covey.ErrInvalid)
		}
	}
	r := Record{
		Peer: id, Zone: m.Zone, Rack: m.Rack, Host: m.Host,
		NICBits: m.NicBitsPerSecond, Capacity: m.CapacityBytes,
		Issued: time.UnixMilli(m.IssuedUnixMs), Expires: time.UnixMilli(m.ExpiresUnixMs),
		Seq: m.Seq, Left: m.Left,
	}
	if lease := r.Expires.Sub(r.Issued); lease <= 0 || lease > maxLease {
		return Record{}, fmt.Errorf("member record with a lease of %s: %w", lease, covey.ErrInvalid)
	}
	if len(m.Addrs) > MaxAddrs || m.CapacityBytes < 0 {
		return Record{}, fmt.Errorf("member record out of its limits: %w", covey.ErrInvalid)
	}
	for _, raw := range m.Addrs {
		if a, err := parseAddr(raw); err == nil && AllowedAddr(a) {
			r.Addrs = append(r.Addrs, a)
		}
	}
	return r, nil
}

func parseAddr(raw []byte) (ma.Multiaddr, error) {
	if len(raw) > maxAddr {
		return nil, covey.ErrInvalid
	}
	return ma.NewMultiaddrBytes(raw)
}

// key is the record's short name in digests: members are told apart by it, and
// two that share one (1 in 2^36 at 10,000 members) are merely synced a little
// more often.
func key(p peer.ID) uint64 {
	sum := sha256.Sum256([]byte(p))
	return binary.BigEndian.Uint64(sum[:])
}
