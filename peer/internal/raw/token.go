package raw

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

const (
	nonceLen = 16
	// TokenLen is a nonce, the time of its end, and the HMAC-SHA256 over both, the
	// issuer and the client.
	TokenLen = nonceLen + 8 + sha256.Size

	// TokenLife is how long a token can be used: a dial takes 5 s at most.
	TokenLife = 10 * time.Second
	// maxIssued bounds the tokens of all clients that are not used yet, and
	// maxIssuedEach those of one: a client opens at most 32 connections at once.
	maxIssued     = 8192
	maxIssuedEach = 64
)

// tokenDomain is in front of what is authenticated.
const tokenDomain = "covey/plain-token/1\n"

// Token opens one connection.
type Token [TokenLen]byte

// Issuer hands out tokens and takes each back once. All methods may be called
// concurrently.
//
// The HMAC makes what was not issued here fail without a look at any state; the
// memory of what was issued makes a token good for one use.
type Issuer struct {
	self   string
	secret [32]byte
	start  time.Time // times in tokens are since then, on the monotonic clock

	// mu is a leaf lock and guards what follows.
	//
	// INVARIANT: each[c] is the number of entries of issued with client c.
	mu     sync.Mutex
	issued map[[nonceLen]byte]issue
	each   map[string]int
}

type issue struct {
	client string
	ends   time.Duration
}

// NewIssuer returns an issuer for the peer of that ID, with a secret of its own.
func NewIssuer(self string) *Issuer {
	i := &Issuer{self: self, start: time.Now(), issued: make(map[[nonceLen]byte]issue), each: make(map[string]int)}
	_, _ = rand.Read(i.secret[:]) // never fails
	return i
}

// Issue returns a token for a client; covey.ErrUnavailable when too many are out.
func (i *Issuer) Issue(client string) (Token, error) {
	now := time.Since(i.start)
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.issued) >= maxIssued || i.each[client] >= maxIssuedEach {
		i.sweep(now)
	}
	if len(i.issued) >= maxIssued || i.each[client] >= maxIssuedEach {
		return Token{}, fmt.Errorf("too many tokens are out: %w", covey.ErrUnavailable)
	}
	var t Token
	_, _ = rand.Read(t[:nonceLen]) // never fails
	ends := now + TokenLife
	binary.BigEndian.PutUint64(t[nonceLen:], uint64(ends))
	copy(t[nonceLen+8:], i.mac(client, t))
	i.issued[[nonceLen]byte(t[:])] = issue{client, ends}
	i.each[client]++
	return t, nil
}

// mac authenticates the front of a token.
func (i *Issuer) mac(client string, t Token) []byte {
	h := hmac.New(sha256.New, i.secret[:])
	// Lengths in front, so that no two pairs of IDs run together alike.
	h.Write(fmt.Appendf(nil, "%s%d:%s%d:%s", tokenDomain, len(i.self), i.self, len(client), client))
	h.Write(t[:nonceLen+8])
	return h.Sum(nil)
}

// Redeem uses a token up. It fails with covey.ErrDenied for one that was issued to
// somebody else or nobody, was used, or is too old.
func (i *Issuer) Redeem(client string, t Token) error {
	if !hmac.Equal(t[nonceLen+8:], i.mac(client, t)) {
		return fmt.Errorf("token was not issued to this peer: %w", covey.ErrDenied)
	}
	nonce := [nonceLen]byte(t[:])
	i.mu.Lock()
	defer i.mu.Unlock()
	was, ok := i.issued[nonce]
	if !ok {
		return fmt.Errorf("token was used before: %w", covey.ErrDenied)
	}
	i.drop(nonce, was)
	if time.Since(i.start) > was.ends {
		return fmt.Errorf("token is too old: %w", covey.ErrDenied)
	}
	return nil
}

// sweep forgets what can no longer be used; i.mu is held.
func (i *Issuer) sweep(now time.Duration) {
	for nonce, was := range i.issued {
		if now > was.ends {
			i.drop(nonce, was)
		}
	}
}

func (i *Issuer) drop(nonce [nonceLen]byte, was issue) {
	delete(i.issued, nonce)
	if i.each[was.client]--; i.each[was.client] == 0 {
		delete(i.each, was.client)
	}
}
