// Package wire is the encoding of what directories say to each other.
package wire

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/covey-cache/covey"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative directory.proto

// Version is the only version there is.
const Version = 1

// Limits of a message, in bytes.
const (
	// MaxMessage is the longest request or reply: twice the longest HAVE frame
	// that is sent, so that a later version has room.
	MaxMessage = 1 << 20
	// maxOther is the longest message that is no HAVE. The largest are a plan
	// (64 blocks of about 60 bytes and up to 256 peers of 42) and what a home
	// knows of an extent with the most holders it keeps (576 of about 60).
	maxOther = 128 << 10
	// minExtentHave is the least an element of a HAVE can say: its extent. It
	// bounds how many elements, each with its own allocation, fit a frame.
	minExtentHave = 34
)

// Field numbers that DecodeRequest must know before it lets the message be
// decoded.
const (
	requestHave = 5
	haveExtents = 1
	haveSeq     = 2
)

// EncodeRequest returns the bytes of a request.
func EncodeRequest(r *Request) ([]byte, error) { return encode(r) }

// EncodeReply returns the bytes of a reply.
func EncodeReply(r *Reply) ([]byte, error) { return encode(r) }

func encode(m proto.Message) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode directory message: %w", err)
	}
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("directory message of %d bytes: %w", len(b), covey.ErrInvalid)
	}
	return b, nil
}

// DecodeRequest decodes a request. It allocates at most a small multiple of the
// message's length, whatever the bytes are. Errors wrap covey.ErrInvalid.
func DecodeRequest(b []byte) (*Request, error) {
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("directory request of %d bytes: %w", len(b), covey.ErrInvalid)
	}
	if err := checkHave(b); err != nil {
		return nil, err
	}
	var r Request
	if err := proto.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("decode directory request: %w: %w", covey.ErrInvalid, err)
	}
	return &r, nil
}

// DecodeReply decodes a reply, as DecodeRequest does.
func DecodeReply(b []byte) (*Reply, error) {
	if len(b) > maxOther {
		return nil, fmt.Errorf("directory reply of %d bytes: %w", len(b), covey.ErrInvalid)
	}
	var r Reply
	if err := proto.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("decode directory reply: %w: %w", covey.ErrInvalid, err)
	}
	return &r, nil
}

// checkHave refuses a message that is long without being a HAVE of elements of
// a sensible size: two bytes on the wire can otherwise become a hundred in
// memory.
func checkHave(b []byte) error {
	if len(b) <= maxOther {
		return nil
	}
	other := 0
	err := fields(b, func(num protowire.Number, value []byte) error {
		if num != requestHave {
			other += len(value)
			return nil
		}
		return fields(value, func(num protowire.Number, value []byte) error {
			if num == haveSeq && len(value) <= 10 {
				return nil
			}
			if num != haveExtents || len(value) < minExtentHave {
				return fmt.Errorf("directory HAVE with an element of %d bytes: %w", len(value), covey.ErrInvalid)
			}
			return nil
		})
	})
	if err == nil && other > maxOther {
		err = fmt.Errorf("directory request of %d bytes: %w", len(b), covey.ErrInvalid)
	}
	return err
}

// fields calls f for every field of a message, with the content of those that
// are length-delimited and the raw value of the others.
func fields(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("directory message: %w: %w", covey.ErrInvalid, protowire.ParseError(n))
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return fmt.Errorf("directory message: %w: %w", covey.ErrInvalid, protowire.ParseError(size))
		}
		value := b[:size]
		if typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b)
		}
		if err := f(num, value); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}
