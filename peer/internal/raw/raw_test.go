package raw

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// kind fails for an error that a decoder must not have.
func kind(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, covey.ErrInvalid) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("error of kind %v", err)
	}
}

func FuzzOpening(f *testing.F) {
	f.Add(Opening{Client: "client", Token: Token{1, 2, 3}}.Append(nil))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte(magic + "\x02\x01"))
	f.Add([]byte(magic + "\x01\x00"))
	f.Add([]byte(magic + "\x01\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ReadOpening(bytes.NewReader(b))
		if err != nil {
			kind(t, err)
			return
		}
		if again := o.Append(nil); !bytes.HasPrefix(b, again) {
			t.Fatalf("%x encodes to %x", b, again)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(Request{Wait: true, TimeoutMs: 7, Offset: 1 << 40, Locator: []byte("locator")}.Append(nil))
	f.Add(Request{Locator: make([]byte, MaxLocator)}.Append(nil))
	f.Add(Request{Locator: make([]byte, MaxLocator+1)}.Append(nil))
	f.Add(Request{}.Append(nil))
	f.Add(bytes.Repeat([]byte{255}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ReadRequest(bytes.NewReader(b))
		if err != nil {
			kind(t, err)
			return
		}
		if len(q.Locator) > MaxLocator {
			t.Fatalf("accepted a locator of %d bytes", len(q.Locator))
		}
		if again := q.Append(nil); !bytes.HasPrefix(b, again) {
			t.Fatalf("%x encodes to %x", b, again)
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add(Head{Kind: KindFound, Size: 4 << 20}.Append(nil))
	f.Add(Head{Kind: KindFail, Code: 3}.Append(nil))
	f.Add(Head{Kind: KindProgress}.Append(nil))
	f.Add(Head{Kind: KindFound, Size: 1 << 63}.Append(nil))
	f.Add(make([]byte, HeadLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeadLen {
			return
		}
		raw := [HeadLen]byte(b)
		h, err := ParseHead(raw)
		if err != nil {
			kind(t, err)
			return
		}
		if h.Size > uint64(covey.MaxBlockSize) {
			t.Fatalf("accepted an answer of %d bytes", h.Size)
		}
		if again := h.Append(nil); !bytes.Equal(again, raw[:]) {
			t.Fatalf("%x encodes to %x", raw, again)
		}
	})
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, other := NewIssuer("server"), NewIssuer("server")
		issue := func() Token {
			t.Helper()
			tok, err := i.Issue("client")
			if err != nil {
				t.Fatal(err)
			}
			return tok
		}
		refused := func(what string, i *Issuer, client string, tok Token) {
			t.Helper()
			if err := i.Redeem(client, tok); !errors.Is(err, covey.ErrDenied) {
				t.Errorf("%s: %v", what, err)
			}
		}
		tok := issue()
		refused("another peer's", i, "thief", tok)
		refused("another issuer's", other, "client", tok)
		for at := range tok {
			bad := tok
			bad[at] ^= 1
			refused("a changed bit", i, "client", bad)
		}
		if err := i.Redeem("client", tok); err != nil {
			t.Errorf("the real one: %v", err)
		}
		refused("used before", i, "client", tok)
		tok = issue()
		time.Sleep(TokenLife + time.Millisecond)
		refused("too old", i, "client", tok)

		for range maxIssuedEach {
			issue()
		}
		if _, err := i.Issue("client"); !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("one more than a client may have: %v", err)
		}
		if _, err := i.Issue("another"); err != nil {
			t.Errorf("another client's: %v", err)
		}
		time.Sleep(TokenLife + time.Millisecond)
		issue() // the old ones have made room
		if len(i.issued) != 1 || len(i.each) != 1 {
			t.Errorf("%d tokens of %d clients remembered", len(i.issued), len(i.each))
		}
	})
}
