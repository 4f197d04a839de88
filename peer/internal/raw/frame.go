// Package raw is the plain data plane as bytes: what is said on a TCP connection
// that carries blocks without TLS, and the tokens that open one.
//
// A connection has one opening and then any number of requests, one after the
// other. It neither dials nor keeps connections. Every decoder is total: any input
// yields a value within the declared limits or an error that wraps
// covey.ErrInvalid.
package raw

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/covey-cache/covey"
)

// Version is of the framing; an opening of another is refused.
const Version = 1

// magic is how an opening begins, so that whatever else is connected to the port
// by mistake is told at once.
const magic = "covey-plain"

// Limits, in bytes.
const (
	// maxClient is the longest peer ID; libp2p's Ed25519 IDs have 38.
	maxClient = 64
	// MaxLocator is the longest canonical locator.
	MaxLocator = 4096

	openingLen = len(magic) + 1 + 1
	requestLen = 16
	// HeadLen is the front of an answer.
	HeadLen = 12
)

// Opening is the first thing that a client says.
type Opening struct {
	Client string // peer ID
	Token  Token
}

// Append writes the opening behind b.
func (o Opening) Append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, Version, byte(len(o.Client)))
	b = append(b, o.Client...)
	return append(b, o.Token[:]...)
}

// ReadOpening reads what Append wrote.
func ReadOpening(r io.Reader) (Opening, error) {
	var front [openingLen]byte
	if _, err := io.ReadFull(r, front[:]); err != nil {
		return Opening{}, err
	}
	if string(front[:len(magic)]) != magic {
		return Opening{}, fmt.Errorf("connection does not open as one of the plain data plane: %w", covey.ErrInvalid)
	}
	if v := front[len(magic)]; v != Version {
		return Opening{}, fmt.Errorf("plain data plane of version %d: %w", v, covey.ErrInvalid)
	}
	n := int(front[len(magic)+1])
	if n == 0 || n > maxClient {
		return Opening{}, fmt.Errorf("peer ID of %d bytes: %w", n, covey.ErrInvalid)
	}
	rest := make([]byte, n+TokenLen)
	if _, err := io.ReadFull(r, rest); err != nil {
		return Opening{}, err
	}
	return Opening{Client: string(rest[:n]), Token: Token(rest[n:])}, nil
}

// Kind says what follows on a connection.
type Kind uint8

// What a client and a server say.
const (
	KindGet      Kind = iota + 1 // a request
	KindFound                    // that many bytes follow
	KindFail                     // the end of a request, with a code
	KindProgress                 // alive, working
)

// Request asks for the bytes of a block from an offset on.
type Request struct {
	Wait      bool
	TimeoutMs uint32
	Offset    uint64
	Locator   []byte // canonical
}

// Append writes the request behind b.
func (q Request) Append(b []byte) []byte {
	flags := byte(0)
	if q.Wait {
		flags = 1
	}
	b = append(b, byte(KindGet), flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(q.Locator)))
	b = binary.BigEndian.AppendUint32(b, q.TimeoutMs)
	b = binary.BigEndian.AppendUint64(b, q.Offset)
	return append(b, q.Locator...)
}

// ReadRequest reads what Append wrote.
func ReadRequest(r io.Reader) (Request, error) {
	var front [requestLen]byte
	if _, err := io.ReadFull(r, front[:]); err != nil {
		return Request{}, err
	}
	n := int(binary.BigEndian.Uint16(front[2:]))
	if Kind(front[0]) != KindGet || front[1] > 1 || n == 0 || n > MaxLocator {
		return Request{}, fmt.Errorf("request of kind %d, flags %#x, locator of %d bytes: %w", front[0], front[1], n, covey.ErrInvalid)
	}
	q := Request{
		Wait: front[1] == 1, TimeoutMs: binary.BigEndian.Uint32(front[4:]),
		Offset: binary.BigEndian.Uint64(front[8:]), Locator: make([]byte, n),
	}
	if _, err := io.ReadFull(r, q.Locator); err != nil {
		return Request{}, err
	}
	return q, nil
}

// Head is the front of an answer: how many bytes follow, or why none do.
type Head struct {
	Kind Kind
	Code uint8 // of KindFail
	Size uint64
}

// Append writes the head behind b.
func (h Head) Append(b []byte) []byte {
	b = append(b, byte(h.Kind), h.Code, 0, 0)
	return binary.BigEndian.AppendUint64(b, h.Size)
}

// ParseHead decodes and checks a head.
func ParseHead(b [HeadLen]byte) (Head, error) {
	h := Head{Kind: Kind(b[0]), Code: b[1], Size: binary.BigEndian.Uint64(b[4:])}
	ok := b[2] == 0 && b[3] == 0
	switch h.Kind {
	case KindFound:
		ok = ok && h.Code == 0 && h.Size <= uint64(covey.MaxBlockSize)
	case KindFail:
		ok = ok && h.Size == 0
	case KindProgress:
		ok = ok && h.Code == 0 && h.Size == 0
	default:
		ok = false
	}
	if !ok {
		return Head{}, fmt.Errorf("answer of kind %d, code %d, %d bytes: %w", h.Kind, h.Code, h.Size, covey.ErrInvalid)
	}
	return h, nil
}
