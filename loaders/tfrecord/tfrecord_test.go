package tfrecord

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"testing"

	"github.com/covey-cache/covey"
)

// TestTensorFlowsFile reads what tf.io.TFRecordWriter wrote.
func TestTensorFlowsFile(t *testing.T) {
	file, err := os.ReadFile("testdata/some.tfrecord")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/some.tfrecord.json")
	if err != nil {
		t.Fatal(err)
	}
	var want []struct {
		Length int
		SHA256 string
	}
	if err := json.Unmarshal(text, &want); err != nil || len(want) == 0 {
		t.Fatal(err)
	}
	r := bytes.NewReader(file)
	got, err := Index(r, int64(len(file)), 100)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d records, %v, want %d", len(got), err, len(want))
	}
	for i, at := range got {
		data, err := Check(r, at)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		if len(data) != want[i].Length || hex.EncodeToString(sum[:]) != want[i].SHA256 {
			t.Errorf("record %d has %d bytes, want %d, or others", i, len(data), want[i].Length)
		}
	}
	if last := got[len(got)-1]; last.End() != int64(len(file)) {
		t.Errorf("records end at %d of %d", last.End(), len(file))
	}
}

// record frames data as TensorFlow does.
func record(data []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(data)))
	b = binary.LittleEndian.AppendUint32(b, mask(crc32.Checksum(b, castagnoli)))
	b = append(b, data...)
	return binary.LittleEndian.AppendUint32(b, mask(crc32.Checksum(data, castagnoli)))
}

func TestIndexRefuses(t *testing.T) {
	good := append(record([]byte("one")), record([]byte("two"))...)
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	huge := binary.LittleEndian.AppendUint64(nil, 1<<62)
	huge = binary.LittleEndian.AppendUint32(huge, mask(crc32.Checksum(huge, castagnoli)))
	for name, c := range map[string]struct {
		file []byte
		most int
		kind error
	}{
		"too many":      {good, 1, covey.ErrInvalid},
		"cut off":       {good[:len(good)-1], 9, covey.ErrInvalid},
		"cut in a head": {good[:24], 9, covey.ErrInvalid},
		"length":        {flip(0), 9, covey.ErrCorrupt},
		"checksum":      {flip(9), 9, covey.ErrCorrupt},
		"huge":          {append(huge, make([]byte, 50)...), 9, covey.ErrInvalid},
		"text":          {[]byte("this is no record file at all"), 9, covey.ErrCorrupt},
	} {
		if _, err := Index(bytes.NewReader(c.file), int64(len(c.file)), c.most); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Index(bytes.NewReader(nil), 5, 9); err == nil {
		t.Error("a file shorter than was said")
	}
	for _, at := range []int{12, 15} {
		if _, err := Check(bytes.NewReader(flip(at)), covey.Range{Len: 19}); !errors.Is(err, covey.ErrCorrupt) {
			t.Errorf("byte %d flipped: %v", at, err)
		}
	}
	if _, err := Check(bytes.NewReader(good), covey.Range{Len: 3}); !errors.Is(err, covey.ErrInvalid) {
		t.Error(err)
	}
}

// TestIndexReadsHeadsOnly keeps an index cheap: 12 bytes a record.
func TestIndexReadsHeadsOnly(t *testing.T) {
	file := bytes.Repeat(record(make([]byte, 10_000)), 50)
	c := &counter{r: bytes.NewReader(file)}
	if got, err := Index(c, int64(len(file)), 50); err != nil || len(got) != 50 || c.n != 50*headSize {
		t.Errorf("%d records, %d bytes read, %v", len(got), c.n, err)
	}
}

type counter struct {
	r io.ReaderAt
	n int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.n += len(p)
	return c.r.ReadAt(p, off)
}

func FuzzIndex(f *testing.F) {
	f.Add(append(record([]byte("one")), record(nil)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Index(bytes.NewReader(b), int64(len(b)), 1000)
		if err != nil {
			return
		}
		end := int64(0)
		for _, r := range got {
			if r.Off != end || r.Len < headSize+tailSize {
				t.Fatalf("%v", got)
			}
			end = r.End()
		}
		if end != int64(len(b)) {
			t.Fatalf("records end at %d of %d", end, len(b))
		}
	})
}
