package member

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

const revokeDomain = "covey/revocation/1\n"

const (
	// MaxRevoked bounds the revocations that a table holds, 130 bytes each. Who
	// needs more has lost the cluster key and makes a new one.
	MaxRevoked = 4096
	// maxRevokedAnswer is how many go into one answer: 130 kB.
	maxRevokedAnswer = 1024
)

// ErrRevoked says that a peer was expelled. It wraps covey.ErrDenied.
var ErrRevoked = fmt.Errorf("membership was revoked: %w", covey.ErrDenied)

// Revoke signs the expulsion of a peer. The signer must have the cluster's private
// key.
func (s *Signer) Revoke(p peer.ID, now time.Time) *wire.SignedRevocation {
	b := wire.Marshal(&wire.Revocation{Peer: []byte(p), RevokedUnixMs: now.UnixMilli()})
	return &wire.SignedRevocation{Revocation: b, Signature: ed25519.Sign(s.private, domain(revokeDomain, b))}
}

// OpenRevocation checks a revocation and returns who was expelled.
func (s *Signer) OpenRevocation(m *wire.SignedRevocation) (peer.ID, error) {
	if len(m.GetRevocation()) > maxGrant {
		return "", fmt.Errorf("revocation of %d bytes: %w", len(m.GetRevocation()), covey.ErrInvalid)
	}
	if !ed25519.Verify(s.public, domain(revokeDomain, m.GetRevocation()), m.GetSignature()) {
		return "", fmt.Errorf("revocation is not signed with this cluster's key: %w", covey.ErrDenied)
	}
	var r wire.Revocation
	if err := wire.Unmarshal(m.GetRevocation(), &r); err != nil {
		return "", err
	}
	id, err := peer.IDFromBytes(r.GetPeer())
	if err != nil {
		return "", fmt.Errorf("revocation with a malformed peer ID: %w", covey.ErrInvalid)
	}
	return id, nil
}

// Revoke takes in a revocation, for as long as the table lives: there is no way
// back for a peer ID. news is whether it was not known, member whether the peer
// was a member until now.
func (t *Table) Revoke(m *wire.SignedRevocation) (p peer.ID, news, member bool, err error) {
	if t.signer == nil {
		return "", false, false, fmt.Errorf("no cluster key: %w", covey.ErrDenied)
	}
	if p, err = t.signer.OpenRevocation(m); err != nil {
		return "", false, false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.revoked[p] != nil {
		return p, false, false, nil
	}
	if len(t.revoked) >= MaxRevoked {
		return p, false, false, fmt.Errorf("%d revocations: %w", len(t.revoked), covey.ErrFull)
	}
	t.revoked[p] = m
	if member = t.members[p] != nil && p != t.self; member {
		delete(t.members, p)
		t.changedLocked()
	}
	delete(t.gone, p) // it is not looked for any more
	return p, true, member, nil
}

// Revoked reports whether a peer was expelled.
func (t *Table) Revoked(p peer.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.revoked[p] != nil
}

// RevokedKeys lists the revocations for another table.
func (t *Table) RevokedKeys() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := make([]byte, 0, len(t.revoked)*keyLen)
	for p := range t.revoked {
		b = binary.BigEndian.AppendUint64(b, key(p))
	}
	return b
}

// CompareRevoked holds another table's list against this one: the revocations
// that it lacks, whether there are more than fit an answer, and the keys of those
// that this one lacks.
func (t *Table) CompareRevoked(theirs []byte) (lacks []*wire.SignedRevocation, more bool, want []byte, err error) {
	keys, err := revokedKeys(theirs)
	if err != nil {
		return nil, false, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, m := range t.revoked {
		k := key(p)
		if !keys[k] {
			if more = len(lacks) == maxRevokedAnswer; more {
				break
			}
			lacks = append(lacks, m)
		}
		delete(keys, k)
	}
	for k := range keys {
		want = binary.BigEndian.AppendUint64(want, k)
	}
	return lacks, more, want, nil
}

// Revocations returns those with the given keys, as many as fit an answer.
func (t *Table) Revocations(keys []byte) ([]*wire.SignedRevocation, error) {
	wanted, err := revokedKeys(keys)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*wire.SignedRevocation
	for p, m := range t.revoked {
		if wanted[key(p)] && len(list) < maxRevokedAnswer {
			list = append(list, m)
		}
	}
	return list, nil
}

func revokedKeys(b []byte) (map[uint64]bool, error) {
	if len(b)%keyLen != 0 || len(b) > 2*MaxRevoked*keyLen {
		return nil, fmt.Errorf("%d bytes of revocation keys: %w", len(b), covey.ErrInvalid)
	}
	keys := make(map[uint64]bool, len(b)/keyLen)
	for k := range slices.Chunk(b, keyLen) {
		keys[binary.BigEndian.Uint64(k)] = true
	}
	return keys, nil
}
