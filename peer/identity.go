package peer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/covey-cache/covey"
)

// identityFile is the private key's name in the state directory.
const identityFile = "identity.key"

// loadIdentity reads the node's private key, and makes it when it is missing. An
// empty directory name means a key that is not kept.
func loadIdentity(dir string) (crypto.PrivKey, error) {
	if dir == "" {
		return newIdentity()
	}
	file := filepath.Join(dir, identityFile)
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return makeIdentity(dir, file)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read identity %s: mode %o lets others read it, want 0600: %w", file, info.Mode().Perm(), covey.ErrInvalid)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		// The library's error could quote the key.
		return nil, fmt.Errorf("read identity %s: not a private key; remove it to get a new identity: %w", file, covey.ErrInvalid)
	}
	return key, nil
}

func newIdentity() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	return key, nil
}

// makeIdentity writes a new key under a temporary name first, so that a crash
// leaves no half of one.
func makeIdentity(dir, file string) (_ crypto.PrivKey, err error) {
	key, err := newIdentity()
	if err != nil {
		return nil, err
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	f, err := os.CreateTemp(dir, identityFile+".*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is the one to tell
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write identity: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return nil, fmt.Errorf("write identity: %w", err)
	}
	return key, nil
}
