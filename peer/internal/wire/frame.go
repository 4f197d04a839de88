package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/covey-cache/covey"
)

// Type says what a frame's payload is.
type Type uint8

// The frames of a shared stream. Requests go one way, everything else the other.
const (
	TypeRequest  Type = iota + 1 // a Request; opens ID
	TypeCancel                   // empty; the answer to ID is not wanted any more
	TypeFound                    // a Found; Data of that many bytes follows
	TypeData                     // raw bytes, the next of ID
	TypeFail                     // a Failure; ends ID
	TypeProgress                 // empty, ID 0; requests are being worked on
)

// Limits of a payload, in bytes.
const (
	// MaxBody is the longest request body. A digest of 10,000 members is
	// 160 kB; the rest is room for directory batches.
	MaxBody = 1 << 20
	// MaxData is how much of an answer goes at once. Another answer waits at
	// most for one frame: 80 µs at 25 Gb/s.
	MaxData = 256 << 10
	// MaxHello has room for a record with its eight addresses, several times.
	MaxHello = 16 << 10

	// HeaderLen is the type, the ID and the payload's length.
	HeaderLen = 9
)

// limits is the shortest and longest payload of each type.
var limits = [...]struct{ least, most uint32 }{
	TypeRequest:  {0, MaxBody + 32},
	TypeCancel:   {0, 0},
	TypeFound:    {0, 16},
	TypeData:     {1, MaxData},
	TypeFail:     {0, 16},
	TypeProgress: {0, 0},
}

// Header is the front of a frame.
type Header struct {
	Type Type
	ID   uint32
	Len  uint32
}

// Put writes the header's bytes to b, which must have room for HeaderLen.
func (h Header) Put(b []byte) {
	b[0] = byte(h.Type)
	binary.BigEndian.PutUint32(b[1:], h.ID)
	binary.BigEndian.PutUint32(b[5:], h.Len)
}

// ParseHeader decodes and checks a header.
func ParseHeader(b [HeaderLen]byte) (Header, error) {
	h := Header{Type: Type(b[0]), ID: binary.BigEndian.Uint32(b[1:]), Len: binary.BigEndian.Uint32(b[5:])}
	if h.Type == 0 || int(h.Type) >= len(limits) {
		return h, fmt.Errorf("frame of unknown type %d: %w", h.Type, covey.ErrInvalid)
	}
	if l := limits[h.Type]; h.Len < l.least || h.Len > l.most {
		return h, fmt.Errorf("frame of type %d with %d bytes: %w", h.Type, h.Len, covey.ErrInvalid)
	}
	if (h.ID == 0) != (h.Type == TypeProgress) {
		return h, fmt.Errorf("frame of type %d with ID %d: %w", h.Type, h.ID, covey.ErrInvalid)
	}
	return h, nil
}

// AppendFrame appends a whole frame to b.
func AppendFrame(b []byte, t Type, id uint32, payload []byte) []byte {
	var h [HeaderLen]byte
	Header{Type: t, ID: id, Len: uint32(len(payload))}.Put(h[:])
	return append(append(b, h[:]...), payload...)
}

// WriteHello writes one message in front of which its length stands, the form
// of the join protocol, which has no request IDs.
func WriteHello(w io.Writer, m *Hello) error {
	body := Marshal(m)
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// ReadHello reads what WriteHello wrote.
func ReadHello(r io.Reader) (*Hello, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > MaxHello {
		return nil, fmt.Errorf("hello of %d bytes: %w", size, covey.ErrInvalid)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	m := new(Hello)
	return m, Unmarshal(body, m)
}
