package peer

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// MemberRecord makes one agent a member of a cluster, until it expires, without the
// cluster key. It is issued by whoever has the key.
//
// As a cluster key, it formats as a placeholder; only [MemberRecord.String] yields
// the text, which may have a private key in it.
type MemberRecord struct {
	cluster  ed25519.PublicKey
	grant    *wire.SignedGrant
	identity crypto.PrivKey // nil: the agent's own, of its state directory
	// Peer is the peer ID that it is issued to, as text.
	Peer string
	// Expires is when it ends.
	Expires time.Time
}

const (
	memberRecordPrefix = "covey-member-1:"
	// maxRecordFile bounds what is read of a member's file: about 400 bytes.
	maxRecordFile = 8192
	// MaxIssue is the longest that a record can be issued for: a machine that is
	// forgotten should not be a member for ever.
	MaxIssue = 5 * 365 * 24 * time.Hour
)

// IssueMember issues a record to the peer with that ID, or with a new identity,
// which the record then contains, when it is empty.
func IssueMember(k ClusterKey, id string, life time.Duration) (MemberRecord, error) {
	if life <= 0 || life > MaxIssue {
		return MemberRecord{}, fmt.Errorf("issue a member record for %s: %w", life, covey.ErrInvalid)
	}
	private, err := k.signer()
	if err != nil {
		return MemberRecord{}, err
	}
	signer := member.NewSigner(private)
	r := MemberRecord{cluster: signer.Public()}
	var p peer.ID
	if id != "" {
		if p, err = peer.Decode(id); err != nil {
			return MemberRecord{}, fmt.Errorf("issue a member record: %q is no peer ID: %w", id, covey.ErrInvalid)
		}
	} else {
		if r.identity, err = newIdentity(); err != nil {
			return MemberRecord{}, err
		}
		if p, err = peer.IDFromPrivateKey(r.identity); err != nil {
			return MemberRecord{}, fmt.Errorf("derive peer ID: %w", err)
		}
	}
	now := time.Now()
	r.grant = signer.Grant(member.Grant{Peer: p, Issued: now, Expires: now.Add(life)})
	r.Peer, r.Expires = p.String(), now.Add(life)
	return r, nil
}

// HasIdentity reports whether the record has a private key in it.
func (r MemberRecord) HasIdentity() bool { return r.identity != nil }

// String returns the text form: one line, without a newline.
func (r MemberRecord) String() string {
	m := &wire.Issued{Cluster: r.cluster, Grant: r.grant}
	if r.identity != nil {
		// It fails for no key that newIdentity or ParseMemberRecord let through.
		m.Identity, _ = crypto.MarshalPrivateKey(r.identity)
	}
	return memberRecordPrefix + base64.RawURLEncoding.EncodeToString(wire.Marshal(m))
}

// Format keeps the record out of formatted output, whatever the verb.
func (r MemberRecord) Format(f fmt.State, _ rune) { fmt.Fprint(f, "member record (hidden)") }

// ParseMemberRecord reads the text form; white space around it is ignored. One that
// has expired is an error. Errors wrap [covey.ErrInvalid] or [covey.ErrDenied] and do
// not contain the text.
func ParseMemberRecord(s string) (MemberRecord, error) {
	invalid := func(why string) (MemberRecord, error) {
		return MemberRecord{}, fmt.Errorf("member record %s: %w", why, covey.ErrInvalid)
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), memberRecordPrefix)
	if !ok {
		return invalid(fmt.Sprintf("does not begin with %q", memberRecordPrefix))
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return invalid("is damaged")
	}
	m := new(wire.Issued)
	if err := wire.Unmarshal(b, m); err != nil || len(m.GetCluster()) != ed25519.PublicKeySize {
		return invalid("is damaged")
	}
	r := MemberRecord{cluster: ed25519.PublicKey(m.GetCluster()), grant: m.GetGrant()}
	g, err := member.NewIssued(r.cluster, nil, r.grant).OpenGrant(r.grant, time.Now())
	if err != nil {
		return MemberRecord{}, fmt.Errorf("member record: %w", err)
	}
	r.Peer, r.Expires = g.Peer.String(), g.Expires
	if len(m.GetIdentity()) == 0 {
		return r, nil
	}
	if r.identity, err = crypto.UnmarshalPrivateKey(m.GetIdentity()); err != nil {
		return invalid("has a damaged identity")
	}
	if !g.Peer.MatchesPrivateKey(r.identity) {
		return invalid("has the identity of another peer")
	}
	return r, nil
}

// ReadMemberRecord reads a record from a file.
func ReadMemberRecord(file string) (MemberRecord, error) {
	f, err := os.Open(file)
	if err != nil {
		return MemberRecord{}, fmt.Errorf("read member record: %w", err)
	}
	defer f.Close()
	buf := make([]byte, maxRecordFile)
	n, err := f.Read(buf)
	if n == 0 && err != nil {
		return MemberRecord{}, fmt.Errorf("read member record %s: %w", file, err)
	}
	r, err := ParseMemberRecord(string(buf[:n]))
	if err != nil {
		return MemberRecord{}, fmt.Errorf("read member record %s: %w", file, err)
	}
	return r, nil
}

// signer returns what the member signs with: its identity, and the grant.
func (r *MemberRecord) signer(identity crypto.PrivKey) (*member.Signer, error) {
	id, err := peer.IDFromPrivateKey(identity)
	if err != nil {
		return nil, fmt.Errorf("derive peer ID: %w", err)
	}
	if id.String() != r.Peer {
		return nil, fmt.Errorf("member record is issued to %s and this agent is %s: issue one for it with `covey cluster issue %s`: %w", r.Peer, id, id, covey.ErrDenied)
	}
	return member.NewIssued(r.cluster, identity, r.grant), nil
}
