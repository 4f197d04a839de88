package peer

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"github.com/covey-cache/covey"
)

// ClusterKey is the secret that all agents of one mesh share. Whoever has it can
// make itself a member. The zero ClusterKey is not valid.
//
// It formats as a placeholder in %v and in logs; only [ClusterKey.String],
// called by name, yields the secret.
type ClusterKey struct{ seed [clusterKeyLen]byte }

const (
	clusterKeyLen = 32
	// clusterKeyPrefix names the format, so that a file of something else is
	// refused with a clear error and a later format can be told apart.
	clusterKeyPrefix = "covey-cluster-1:"
	// maxKeyFile bounds what is read of a key file: the key is 59 bytes, the
	// rest is room for white space.
	maxKeyFile = 4096
)

// NewClusterKey returns a fresh random key.
func NewClusterKey() ClusterKey {
	var k ClusterKey
	// Read of crypto/rand never fails; it ends the process instead.
	_, _ = rand.Read(k.seed[:])
	return k
}

// String returns the text form: one line, without a newline. It is the secret
// itself.
func (k ClusterKey) String() string {
	return clusterKeyPrefix + base64.RawURLEncoding.EncodeToString(k.seed[:])
}

// Format keeps the key out of formatted output, whatever the verb.
func (k ClusterKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "cluster key (hidden)") }

// ParseClusterKey reads the text form; white space around it is ignored. Errors
// wrap [covey.ErrInvalid] and do not contain the text.
func ParseClusterKey(s string) (ClusterKey, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), clusterKeyPrefix)
	if !ok {
		return ClusterKey{}, fmt.Errorf("cluster key does not begin with %q: %w", clusterKeyPrefix, covey.ErrInvalid)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) != clusterKeyLen {
		return ClusterKey{}, fmt.Errorf("cluster key is damaged: %w", covey.ErrInvalid)
	}
	if bytes.Equal(b, make([]byte, clusterKeyLen)) {
		return ClusterKey{}, fmt.Errorf("cluster key is all zeros: %w", covey.ErrInvalid)
	}
	return ClusterKey{seed: [clusterKeyLen]byte(b)}, nil
}

// ReadClusterKey reads a key from a file.
func ReadClusterKey(file string) (ClusterKey, error) {
	f, err := os.Open(file)
	if err != nil {
		return ClusterKey{}, fmt.Errorf("read cluster key: %w", err)
	}
	defer f.Close()
	buf := make([]byte, maxKeyFile)
	n, err := f.Read(buf)
	if n == 0 && err != nil {
		return ClusterKey{}, fmt.Errorf("read cluster key %s: %w", file, err)
	}
	k, err := ParseClusterKey(string(buf[:n]))
	if err != nil {
		return ClusterKey{}, fmt.Errorf("read cluster key %s: %w", file, err)
	}
	return k, nil
}

// signer derives the key pair that signs member records. The derivation has its
// own label so that the same secret can yield further keys later.
func (k ClusterKey) signer() (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, k.seed[:], nil, "covey/member-records/1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive record key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
