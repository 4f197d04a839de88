package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/covey-cache/covey"
)

// FuzzHeader: a header either is refused as invalid or is within its limits and
// encodes to the same bytes.
func FuzzHeader(f *testing.F) {
	for _, seed := range [][]byte{
		{byte(TypeRequest), 0, 0, 0, 1, 0, 0, 0, 5},
		{byte(TypeData), 0, 0, 0, 1, 0, 4, 0, 0},
		{byte(TypeData), 0, 0, 0, 1, 0, 4, 0, 1}, // one over
		{byte(TypeData), 0, 0, 0, 1, 0, 0, 0, 0}, // empty piece
		{byte(TypeProgress), 0, 0, 0, 0, 0, 0, 0, 0},
		{byte(TypeProgress), 0, 0, 0, 1, 0, 0, 0, 0}, // with an ID
		{byte(TypeCancel), 0, 0, 0, 0, 0, 0, 0, 0},   // without one
		{0, 0, 0, 0, 0, 0, 0, 0, 0},
		{255, 255, 255, 255, 255, 255, 255, 255, 255},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			return
		}
		raw := [HeaderLen]byte(b)
		h, err := ParseHeader(raw)
		if err != nil {
			if !errors.Is(err, covey.ErrInvalid) {
				t.Fatalf("error of kind %v", err)
			}
			return
		}
		if h.Len > MaxBody+32 {
			t.Fatalf("accepted a payload of %d bytes", h.Len)
		}
		var out [HeaderLen]byte
		if h.Put(out[:]); out != raw {
			t.Fatalf("%x encodes to %x", raw, out)
		}
	})
}

// FuzzHello: no input makes the reader take more than a hello's bytes.
func FuzzHello(f *testing.F) {
	var good bytes.Buffer
	if err := WriteHello(&good, &Hello{Record: &SignedRecord{Record: []byte("r"), Signature: []byte("s"), AgeMs: 7}}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Add([]byte{0, 0, 64, 1})
	f.Add([]byte{0, 0, 0, 2, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ReadHello(bytes.NewReader(b))
		switch {
		case err == nil:
			var again bytes.Buffer
			if err := WriteHello(&again, m); err != nil {
				t.Fatal(err)
			}
			if again.Len() > 2*MaxHello {
				t.Fatalf("hello of %d bytes", again.Len())
			}
		case !errors.Is(err, covey.ErrInvalid) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Fatalf("error of kind %v", err)
		}
	})
}

func TestFrameRoundTrip(t *testing.T) {
	frame := AppendFrame([]byte("front"), TypeData, 7, []byte("payload"))[len("front"):]
	h, err := ParseHeader([HeaderLen]byte(frame))
	if err != nil || h != (Header{Type: TypeData, ID: 7, Len: 7}) {
		t.Fatalf("header %+v, %v", h, err)
	}
	if got := string(frame[HeaderLen:]); got != "payload" {
		t.Errorf("payload %q", got)
	}
}
