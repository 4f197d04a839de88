// Package parquet finds the row groups of a Parquet file, from its footer.
//
// Readers of Parquet ask for a row group at a time, so that it is what can be read
// ahead. The footer is Thrift's compact protocol; of it only the places and
// lengths of column chunks are taken, which is why no library is needed for it.
package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/covey-cache/covey"
)

const (
	magic     = "PAR1"
	encrypted = "PARE"
	tailSize  = 8
	// maxFooter bounds the memory that a file can make its reader take. A file of
	// ten thousand columns and a hundred row groups has 60 MB.
	maxFooter = 64 << 20
)

// Group is one row group.
type Group struct {
	// Range is from the first byte of its first column chunk to the end of the
	// last.
	covey.Range
	Rows int64
}

// Footer is what is known of a file.
type Footer struct {
	Groups []Group
	Rows   int64
	// Range is the footer's own, with the length and the magic behind it: a
	// reader asks for it first.
	covey.Range
}

// ReadFooter reads the footer of a file of the given size: twice, the last 8
// bytes and then the footer. A file that is no Parquet file, whose footer is
// encrypted or malformed, or names places outside the file, is covey.ErrInvalid.
func ReadFooter(r io.ReaderAt, size int64) (*Footer, error) {
	var tail [tailSize]byte
	if size < int64(len(magic))+tailSize {
		return nil, fmt.Errorf("file of %d bytes is no parquet file: %w", size, covey.ErrInvalid)
	}
	if err := readAt(r, tail[:], size-tailSize); err != nil {
		return nil, err
	}
	length := int64(binary.LittleEndian.Uint32(tail[:]))
	switch string(tail[4:]) {
	case magic:
	case encrypted:
		return nil, fmt.Errorf("parquet footer is encrypted: %w", covey.ErrInvalid)
	default:
		return nil, fmt.Errorf("file does not end in %s, so it is no parquet file: %w", magic, covey.ErrInvalid)
	}
	if length > maxFooter || length > size-tailSize-int64(len(magic)) {
		return nil, fmt.Errorf("parquet footer of %d bytes in a file of %d: %w", length, size, covey.ErrInvalid)
	}
	b := make([]byte, length)
	at := size - tailSize - length
	if err := readAt(r, b, at); err != nil {
		return nil, err
	}
	f, err := parse(b, at)
	if err != nil {
		return nil, err
	}
	f.Range = covey.Range{Off: at, Len: length + tailSize}
	return f, nil
}

func readAt(r io.ReaderAt, b []byte, at int64) error {
	if n, err := r.ReadAt(b, at); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = covey.ErrUnavailable
		}
		return fmt.Errorf("read parquet footer: %d of %d bytes at %d: %w", n, len(b), at, err)
	}
	return nil
}

// parse takes a footer apart. Data lies below end.
func parse(b []byte, end int64) (*Footer, error) {
	d := &decoder{b: b}
	f := &Footer{}
	listed := false
	d.fields(1, func(id int16, kind byte) {
		switch {
		case id == 3 && kind == typeI64:
			f.Rows = d.zigzag()
		case id == 4 && kind == typeList:
			listed = true
			of, n := d.list()
			if of != typeStruct && n > 0 {
				d.bad("row groups are no structs")
			}
			for i := 0; i < n && d.fault == nil; i++ {
				f.Groups = append(f.Groups, d.group(end))
			}
		default:
			d.skip(1, kind)
		}
	})
	if d.fault == nil && !listed {
		d.bad("it has no list of row groups")
	}
	return f, d.fault
}

// group reads a row group.
func (d *decoder) group(end int64) Group {
	g := Group{}
	first, last := end, int64(0)
	d.fields(2, func(id int16, kind byte) {
		switch {
		case id == 1 && kind == typeList:
			of, n := d.list()
			if of != typeStruct && n > 0 {
				d.bad("columns are no structs")
			}
			for i := 0; i < n && d.fault == nil; i++ {
				at, length, elsewhere := d.column()
				if elsewhere {
					continue
				}
				if at < 0 || length < 0 || at > end || length > end-at {
					d.bad("a column chunk lies outside the file")
				}
				first, last = min(first, at), max(last, at+length)
			}
		case id == 3 && kind == typeI64:
			g.Rows = d.zigzag()
		default:
			d.skip(2, kind)
		}
	})
	if last > first {
		g.Range = covey.Range{Off: first, Len: last - first}
	}
	return g
}

// column reads where a column chunk lies; elsewhere says in another file.
func (d *decoder) column() (at, length int64, elsewhere bool) {
	data, dictionary := int64(-1), int64(0)
	d.fields(3, func(id int16, kind byte) {
		switch {
		case id == 1 && kind == typeBinary:
			elsewhere = true
			d.skip(3, kind)
		case id == 3 && kind == typeStruct:
			d.fields(4, func(id int16, kind byte) {
				switch {
				case id == 7 && kind == typeI64:
					length = d.zigzag()
				case id == 9 && kind == typeI64:
					data = d.zigzag()
				case id == 11 && kind == typeI64:
					dictionary = d.zigzag()
				default:
					d.skip(4, kind)
				}
			})
		default:
			d.skip(3, kind)
		}
	})
	// The dictionary comes in front where there is one. Some writers say 0 for none.
	if dictionary > 0 && (dictionary < data || data <= 0) {
		return dictionary, length, elsewhere
	}
	return data, length, elsewhere
}
