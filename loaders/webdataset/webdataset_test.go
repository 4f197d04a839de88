package webdataset

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/covey-cache/covey"
)

// TestWebDatasetsFile reads what webdataset.TarWriter wrote, and finds what
// webdataset and Python's tarfile say is in it.
func TestWebDatasetsFile(t *testing.T) {
	file, err := os.ReadFile("testdata/some.tar")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/some.tar.json")
	if err != nil {
		t.Fatal(err)
	}
	var want []struct {
		Key      string
		Members  []string
		Off, Len int64
	}
	if err := json.Unmarshal(text, &want); err != nil || len(want) == 0 {
		t.Fatal(err)
	}
	got, err := Index(bytes.NewReader(file), int64(len(file)), 100)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d samples, %v, want %d", len(got), err, len(want))
	}
	for i, s := range got {
		w := want[i]
		if s.Key != w.Key || !slices.Equal(s.Members, w.Members) || s.Off != w.Off || s.Len != w.Len {
			t.Errorf("sample %d: %+v, want %+v", i, s, w)
		}
	}
}

// tarOf makes a tar file of members without content, in any format.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGroups(t *testing.T) {
	file := tarOf(t,
		tar.Header{Name: "d/", Typeflag: tar.TypeDir},
		tar.Header{Name: "d/a.jpg", Size: 5},
		tar.Header{Name: "d/a.cls", Size: 600},
		tar.Header{Name: "d/b.JPG", Size: 0},
		tar.Header{Name: "README", Size: 3},
		tar.Header{Name: "d/b.cls", Size: 1}, // not side by side with the other
		tar.Header{Name: "__meta.x__", Size: 1},
		tar.Header{Name: "d.x/c.tar.gz", Size: 1, Format: tar.FormatPAX, PAXRecords: map[string]string{"A.b": "c"}},
	)
	got, err := Index(bytes.NewReader(file), int64(len(file)), 10)
	if err != nil {
		t.Fatal(err)
	}
	want := []Sample{
		{"d/a", covey.Range{Off: 512, Len: 512 + 512 + 512 + 1024}, []string{"jpg", "cls"}},
		{"d/b", covey.Range{Off: 3072, Len: 512}, []string{"jpg"}},
		{"d/b", covey.Range{Off: 4608, Len: 1024}, []string{"cls"}},
		{"d.x/c", covey.Range{Off: 6656, Len: 2048}, []string{"tar.gz"}},
	}
	if !slices.EqualFunc(got, want, func(a, b Sample) bool {
		return a.Key == b.Key && a.Range == b.Range && slices.Equal(a.Members, b.Members)
	}) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

func TestIndexRefuses(t *testing.T) {
	file := tarOf(t, tar.Header{Name: "a.x", Size: 5000}, tar.Header{Name: "b.x", Size: 1})
	if _, err := Index(bytes.NewReader(file), int64(len(file)), 1); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("too many samples: %v", err)
	}
	if _, err := Index(bytes.NewReader(file[:3000]), 3000, 9); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("cut off: %v", err)
	}
	junk := bytes.Repeat([]byte("no tar "), 200)
	if _, err := Index(bytes.NewReader(junk), int64(len(junk)), 9); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("no tar: %v", err)
	}
	if _, err := Index(broken{}, 5000, 9); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("an origin that fails: %v", err)
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, covey.ErrUnavailable }

func FuzzIndex(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Name: "a.x", Size: 5}, tar.Header{Name: "a.y", Size: 700}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Index(bytes.NewReader(b), int64(len(b)), 1000)
		if err != nil {
			return
		}
		end := int64(0)
		for _, s := range got {
			if s.Off < end || s.Len < 512 || len(s.Members) == 0 {
				t.Fatalf("%+v", got)
			}
			end = s.End()
		}
	})
}
