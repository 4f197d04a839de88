package parquet

import (
	"encoding/binary"
	"fmt"

	"github.com/covey-cache/covey"
)

// The types of Thrift's compact protocol.
const (
	typeTrue   = 1
	typeFalse  = 2
	typeByte   = 3
	typeI16    = 4
	typeI32    = 5
	typeI64    = 6
	typeDouble = 7
	typeBinary = 8
	typeList   = 9
	typeSet    = 10
	typeMap    = 11
	typeStruct = 12
	typeUUID   = 13
)

// maxDepth bounds how deep structs and lists may lie in each other. Parquet's own
// metadata has six levels.
const maxDepth = 32

// decoder takes Thrift's compact protocol apart, without knowing what is in it.
// After the first fault it gives zeros, and reads nothing any more. What it
// allocates and how long it runs is bounded by the bytes there are.
type decoder struct {
	b     []byte
	fault error
}

func (d *decoder) bad(what string) {
	if d.fault == nil {
		d.fault = fmt.Errorf("parquet footer: %s: %w", what, covey.ErrInvalid)
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad("it ends too soon")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) varint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad("a number is malformed")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// zigzag reads a number with a sign.
func (d *decoder) zigzag() int64 {
	v := d.varint()
	return int64(v>>1) ^ -int64(v&1)
}

func (d *decoder) pass(n uint64) {
	if n > uint64(len(d.b)) {
		d.bad("it ends too soon")
		return
	}
	d.b = d.b[n:]
}

// list reads the head of a list. Each element takes at least a byte, so that a
// length beyond what is left is a fault.
func (d *decoder) list() (kind byte, n int) {
	head := d.byte()
	size := uint64(head >> 4)
	if size == 15 {
		size = d.varint()
	}
	if size > uint64(len(d.b)) {
		d.bad("a list is longer than the footer")
		return 0, 0
	}
	return head & 15, int(size)
}

// fields calls f for each field of a struct. f reads the value or skips it.
func (d *decoder) fields(depth int, f func(id int16, kind byte)) {
	if depth > maxDepth {
		d.bad("it is nested too deep")
		return
	}
	id := int16(0)
	for d.fault == nil {
		head := d.byte()
		if head == 0 {
			return
		}
		if delta := int16(head >> 4); delta != 0 {
			id += delta
		} else {
			id = int16(d.zigzag())
		}
		if d.fault == nil {
			f(id, head&15)
		}
	}
}

// skip passes over a value.
func (d *decoder) skip(depth int, kind byte) {
	switch kind {
	case typeTrue, typeFalse: // the value is in the type
	case typeByte:
		d.byte()
	case typeI16, typeI32, typeI64:
		d.varint()
	case typeDouble:
		d.pass(8)
	case typeUUID:
		d.pass(16)
	case typeBinary:
		d.pass(d.varint())
	case typeList, typeSet:
		of, n := d.list()
		for range n {
			d.element(depth+1, of)
		}
	case typeMap:
		d.skipMap(depth)
	case typeStruct:
		d.fields(depth+1, func(_ int16, kind byte) { d.skip(depth+1, kind) })
	default:
		d.bad("a field is of no known type")
	}
}

// element passes over an element of a list, in which a bool is a byte of its own.
func (d *decoder) element(depth int, kind byte) {
	switch {
	case d.fault != nil:
	case depth > maxDepth:
		d.bad("it is nested too deep")
	case kind == typeTrue || kind == typeFalse:
		d.byte()
	default:
		d.skip(depth, kind)
	}
}

func (d *decoder) skipMap(depth int) {
	n := d.varint()
	if n == 0 || d.fault != nil {
		return
	}
	if n > uint64(len(d.b)) {
		d.bad("a map is longer than the footer")
		return
	}
	kinds := d.byte()
	for range n {
		d.element(depth+1, kinds>>4)
		d.element(depth+1, kinds&15)
	}
}
