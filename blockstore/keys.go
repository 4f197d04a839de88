package blockstore

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/covey-cache/covey"
)

// Keys are the secrets under which blocks are encrypted on disk. New blocks are
// written under the first; blocks under any other are read. A Keys does not change
// and may be shared.
//
// It formats as a placeholder in %v and in logs.
type Keys struct {
	ids  []KeyID
	byID map[KeyID]*[keyLen]byte
}

// KeyID tells keys apart without telling anything about them.
type KeyID [8]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

const (
	keyLen = 32
	// keyPrefix names the format, so that a file of something else is refused
	// with a clear error and a later format can be told apart.
	keyPrefix = "covey-cache-key-1:"
	// maxKeys bounds a key file. A store that was rotated each month for five
	// years, and never emptied, has 60.
	maxKeys = 64
	// maxKeyFile leaves as many bytes for comments as for the keys.
	maxKeyFile = 2 * maxKeys * (len(keyPrefix) + 44)
)

// NewKeyLine returns a fresh random key as a line of a key file, without a newline.
func NewKeyLine() string {
	var k [keyLen]byte
	_, _ = rand.Read(k[:]) // it never fails; it ends the process instead
	return keyPrefix + base64.RawURLEncoding.EncodeToString(k[:])
}

// ParseKeys reads the text of a key file: a key a line, as NewKeyLine makes them, or
// 64 hexadecimal digits. Empty lines and those that begin with "#" are passed over.
// Errors wrap [covey.ErrInvalid] and do not contain any key.
func ParseKeys(text []byte) (*Keys, error) {
	k := &Keys{byID: make(map[KeyID]*[keyLen]byte)}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := k.add(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	switch {
	case lines.Err() != nil:
		return nil, fmt.Errorf("a line is too long: %w", covey.ErrInvalid)
	case len(k.ids) == 0:
		return nil, fmt.Errorf("no key in it; make one with \"openssl rand -hex 32\": %w", covey.ErrInvalid)
	}
	return k, nil
}

func (k *Keys) add(line string) error {
	var b []byte
	var err error
	if rest, ok := strings.CutPrefix(line, keyPrefix); ok {
		b, err = base64.RawURLEncoding.Strict().DecodeString(rest)
	} else {
		b, err = hex.DecodeString(line)
	}
	if err != nil || len(b) != keyLen {
		return fmt.Errorf("not a key: want %q and 43 letters, or 64 hexadecimal digits: %w", keyPrefix, covey.ErrInvalid)
	}
	if bytes.Equal(b, make([]byte, keyLen)) {
		return fmt.Errorf("the key is all zeros: %w", covey.ErrInvalid)
	}
	var id KeyID
	blake3.DeriveKey("covey 2026-01-01 cache key identifier v1", b, id[:])
	if k.byID[id] != nil {
		return fmt.Errorf("the same key twice: %w", covey.ErrInvalid)
	}
	if len(k.ids) == maxKeys {
		return fmt.Errorf("more than %d keys: %w", maxKeys, covey.ErrInvalid)
	}
	k.ids, k.byID[id] = append(k.ids, id), (*[keyLen]byte)(b)
	return nil
}

// ReadKeys reads a key file. One that others than its owner can read is refused.
func ReadKeys(file string) (*Keys, error) {
	k, err := readKeys(file)
	var path *os.PathError
	switch {
	case errors.As(err, &path):
		return nil, fmt.Errorf("read cache key %s: %w", file, path.Err)
	case err != nil:
		return nil, fmt.Errorf("read cache key %s: %w", file, err)
	}
	return k, nil
}

func readKeys(file string) (*Keys, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others can read it (mode %04o); chmod 600 it: %w", info.Mode().Perm(), covey.ErrInvalid)
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(maxKeyFile)+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("larger than %d bytes: %w", maxKeyFile, covey.ErrInvalid)
	}
	return ParseKeys(text)
}

// IDs returns the keys' identifiers, the one that writes first.
func (k *Keys) IDs() []KeyID {
	if k == nil {
		return nil
	}
	return append([]KeyID(nil), k.ids...)
}

func (k *Keys) has(id KeyID) bool { return k != nil && k.byID[id] != nil }

// names lists the identifiers for people.
func (k *Keys) names() string {
	if k == nil {
		return "none"
	}
	var s []string
	for _, id := range k.ids {
		s = append(s, id.String())
	}
	return strings.Join(s, ", ")
}

// Format keeps the keys out of formatted output, whatever the verb.
func (k *Keys) Format(f fmt.State, _ rune) { fmt.Fprint(f, "cache keys (hidden)") }
