// Package wire is what members of a mesh say to each other, as bytes: protobuf
// messages in frames with hard limits.
//
// It neither reads sockets nor keeps state. Every decoder is total: any input
// yields a value within the declared limits or an error that wraps
// covey.ErrInvalid.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative wire.proto

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/covey-cache/covey"
)

// Unmarshal decodes b into m; the error wraps covey.ErrInvalid.
func Unmarshal(b []byte, m proto.Message) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode %s: %w: %w", m.ProtoReflect().Descriptor().Name(), err, covey.ErrInvalid)
	}
	return nil
}

// Marshal encodes m. It fails only for strings that are not UTF-8, which is a
// bug of the caller.
func Marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("wire: encode %s: %v", m.ProtoReflect().Descriptor().Name(), err))
	}
	return b
}
