package parquet

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/covey-cache/covey"
)

// TestPyarrowsFiles reads what pyarrow wrote: compressed and not, with
// dictionaries and without, of both page versions, with nested columns, empty.
func TestPyarrowsFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.parquet")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var want struct {
			Rows, Footer int64
			Groups       []struct{ Rows, Off, Len int64 }
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFooter(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Rows != want.Rows || len(got.Groups) != len(want.Groups) || got.Len != want.Footer+8 || got.End() != int64(len(file)) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
			continue
		}
		for i, g := range got.Groups {
			if w := want.Groups[i]; g.Rows != w.Rows || g.Off != w.Off || g.Len != w.Len {
				t.Errorf("%s: group %d is %+v, want %+v", name, i, g, w)
			}
		}
	}
}

func TestReadFooterRefuses(t *testing.T) {
	file, err := os.ReadFile("testdata/snappy.parquet")
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(file)
		copy(b[len(b)+at:], to)
		return b
	}
	for name, b := range map[string][]byte{
		"empty":           nil,
		"cut off":         file[:len(file)-1],
		"encrypted":       change(-1, 'E'),
		"longer footer":   change(-8, 0xff, 0xff, 0xff, 0x7f),
		"shorter footer":  change(-8, 9, 0, 0, 0),
		"footer of text":  append([]byte("PAR1 no thrift at all"), 17, 0, 0, 0, 'P', 'A', 'R', '1'),
		"chunks too late": append(bytes.Clone(file[:4]), file[len(file)-5000:]...),
	} {
		if f, err := ReadFooter(bytes.NewReader(b), int64(len(b))); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	if _, err := ReadFooter(bytes.NewReader(nil), 100); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("a file shorter than was said: %v", err)
	}
}

// TestDeepNesting is refused before it takes the stack.
func TestDeepNesting(t *testing.T) {
	b := bytes.Repeat([]byte{0x19, 0x1c}, 100_000) // a list of a struct with a list of …
	if _, err := parse(b, 1<<30); !errors.Is(err, covey.ErrInvalid) {
		t.Error(err)
	}
}

func FuzzFooter(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.parquet")
	for _, name := range files {
		file, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		footer, err := ReadFooter(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file[footer.Off : footer.End()-8])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const end = 1 << 20
		footer, err := parse(b, end)
		if err != nil {
			return
		}
		if len(footer.Groups) > len(b) {
			t.Fatalf("%d groups in %d bytes", len(footer.Groups), len(b))
		}
		for _, g := range footer.Groups {
			if g.Off < 0 || g.Len < 0 || g.End() > end {
				t.Fatalf("%+v", g)
			}
		}
	})
}
