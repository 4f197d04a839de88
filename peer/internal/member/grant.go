package member

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// What is signed in front of each kind, so that no signature can be taken for one
// of another kind.
const (
	grantDomain  = "covey/member-grant/1\n"
	issuedDomain = "covey/issued-record/1\n"
)

// maxGrant bounds the signed bytes of a grant or a revocation: a peer ID and two
// times have under 70.
const maxGrant = 256

// Grant makes a peer a member without the cluster key, until it expires. Its
// records are signed with the peer's own key.
type Grant struct {
	Peer            peer.ID
	Issued, Expires time.Time
}

// ErrExpired says that a grant has expired. It wraps covey.ErrDenied.
var ErrExpired = fmt.Errorf("membership has expired: %w", covey.ErrDenied)

// Grant signs a grant. The signer must have the cluster's private key.
func (s *Signer) Grant(g Grant) *wire.SignedGrant {
	b := wire.Marshal(&wire.Grant{Peer: []byte(g.Peer), IssuedUnixMs: g.Issued.UnixMilli(), ExpiresUnixMs: g.Expires.UnixMilli()})
	return &wire.SignedGrant{Grant: b, Signature: ed25519.Sign(s.private, domain(grantDomain, b))}
}

func domain(d string, b []byte) []byte { return append([]byte(d), b...) }

// OpenGrant checks a grant. Its end is held against the wall clock: unlike a lease
// it lasts for days, so that a clock that is an hour off moves it by that hour.
func (s *Signer) OpenGrant(m *wire.SignedGrant, now time.Time) (Grant, error) {
	if len(m.GetGrant()) > maxGrant {
		return Grant{}, fmt.Errorf("grant of %d bytes: %w", len(m.GetGrant()), covey.ErrInvalid)
	}
	if !ed25519.Verify(s.public, domain(grantDomain, m.GetGrant()), m.GetSignature()) {
		return Grant{}, fmt.Errorf("grant is not signed with this cluster's key: %w", covey.ErrDenied)
	}
	g, err := decodeGrant(m.GetGrant())
	if err != nil {
		return Grant{}, err
	}
	if !now.Before(g.Expires) {
		return Grant{}, fmt.Errorf("grant of %s ended %s: %w", g.Peer, g.Expires.UTC().Format(time.RFC3339), ErrExpired)
	}
	return g, nil
}

func decodeGrant(b []byte) (Grant, error) {
	var m wire.Grant
	if err := wire.Unmarshal(b, &m); err != nil {
		return Grant{}, err
	}
	id, err := peer.IDFromBytes(m.GetPeer())
	if err != nil {
		return Grant{}, fmt.Errorf("grant with a malformed peer ID: %w", covey.ErrInvalid)
	}
	return Grant{Peer: id, Issued: time.UnixMilli(m.GetIssuedUnixMs()), Expires: time.UnixMilli(m.GetExpiresUnixMs())}, nil
}

// NewIssued returns a signer for a member that has a grant instead of the cluster's
// private key. It checks what all others sign, with the cluster's public key, and
// signs the member's own records alone.
func NewIssued(cluster ed25519.PublicKey, identity crypto.PrivKey, grant *wire.SignedGrant) *Signer {
	return &Signer{public: cluster, identity: identity, grant: grant}
}

// HasKey reports whether the signer has the cluster's private key.
func (s *Signer) HasKey() bool { return s.private != nil }

// Public is the key that the cluster's records, grants and revocations are checked
// with.
func (s *Signer) Public() ed25519.PublicKey { return s.public }

// Ends is when the grant of an issued member ends; zero for one with the key.
func (s *Signer) Ends() time.Time {
	if s.grant == nil {
		return time.Time{}
	}
	g, err := decodeGrant(s.grant.GetGrant())
	if err != nil {
		return time.Time{}
	}
	return g.Expires
}

// signature signs a record's bytes in whichever way this signer can.
func (s *Signer) sign(record []byte) *wire.SignedRecord {
	m := &wire.SignedRecord{Record: record, Grant: s.grant}
	if s.private != nil {
		m.Signature = ed25519.Sign(s.private, signed(record))
		return m
	}
	// It fails only for keys of other kinds, which an identity is not.
	m.Signature, _ = s.identity.Sign(domain(issuedDomain, record))
	return m
}

// verify checks who signed a record's bytes, and returns for whom a grant speaks;
// "" when the cluster's key itself was used.
func (s *Signer) verify(m *wire.SignedRecord, now time.Time) (peer.ID, error) {
	if m.GetGrant() == nil {
		if !ed25519.Verify(s.public, signed(m.GetRecord()), m.GetSignature()) {
			return "", fmt.Errorf("member record is not signed with this cluster's key: %w", covey.ErrDenied)
		}
		return "", nil
	}
	g, err := s.OpenGrant(m.GetGrant(), now)
	if err != nil {
		return "", err
	}
	key, err := g.Peer.ExtractPublicKey()
	if err != nil {
		return "", fmt.Errorf("grant of %s, whose ID has no key in it: %w", g.Peer, covey.ErrInvalid)
	}
	if ok, err := key.Verify(domain(issuedDomain, m.GetRecord()), m.GetSignature()); err != nil || !ok {
		return "", fmt.Errorf("member record is not signed with the key of %s, whose grant it shows: %w", g.Peer, covey.ErrDenied)
	}
	return g.Peer, nil
}
