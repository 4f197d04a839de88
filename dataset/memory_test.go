package dataset

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/covey-cache/covey/origin"
)

// generated lists n files with names and ETags of the usual length, page by
// page, so that a test weighs the listing and not the bucket.
type generated struct {
	memBucket
	n int
}

func (g *generated) List(_ context.Context, req origin.ListRequest) (origin.Page, error) {
	first := 0
	if req.Token != "" {
		if _, err := fmt.Sscan(req.Token, &first); err != nil {
			return origin.Page{}, err
		}
	}
	var page origin.Page
	for i := first; i < min(first+1000, g.n); i++ {
		page.Objects = append(page.Objects, origin.Info{
			Key:     fmt.Sprintf("%sILSVRC2012%08d.JPEG", req.Prefix, i),
			Size:    100_000,
			Version: fmt.Sprintf("%q", fmt.Sprintf("%032x", i)),
			ModTime: time.Unix(1700000000, 0),
		})
	}
	if first+1000 < g.n {
		page.Next = fmt.Sprint(first + 1000)
	}
	return page, nil
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// An entry costs at most 120 bytes, its name and version included, and its share
// of the group boundaries.
func TestMemoryPerEntry(t *testing.T) {
	const n, most = 200_000, 120
	g := &generated{n: n}
	d := open(t, g, "", Options{})
	before := heap()
	seen := 0
	var last Entry
	for e, err := range d.ReadDir(t.Context(), "train") {
		if err != nil {
			t.Fatal(err)
		}
		last = e
		seen++
	}
	if _, _, err := d.Extent(t.Context(), "train/"+last.Name, last, 0); err != nil {
		t.Fatal(err)
	}
	per := float64(heap()-before) / n
	t.Logf("%.0f bytes an entry", per)
	if seen != n || per > most || per < 20 {
		t.Errorf("%d entries of %.0f bytes", seen, per)
	}
	runtime.KeepAlive(d)
}

func BenchmarkLookupWarm(b *testing.B) {
	g := &generated{n: 200_000}
	d := open(b, g, "", Options{})
	for _, err := range d.ReadDir(b.Context(), "train") {
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := d.Lookup(b.Context(), fmt.Sprintf("train/ILSVRC2012%08d.JPEG", i*7919%g.n)); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkReadDirWarm(b *testing.B) {
	g := &generated{n: 200_000}
	d := open(b, g, "", Options{})
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for _, err := range d.ReadDir(b.Context(), "train") {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		b.ReportMetric(float64(n), "entries/op")
	}
}

func BenchmarkExtentWarm(b *testing.B) {
	g := &generated{n: 20_000}
	d := open(b, g, "", Options{})
	var all []Entry
	for e, err := range d.ReadDir(b.Context(), "train") {
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, e)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e := all[i%len(all)]
		if _, _, err := d.Extent(b.Context(), "train/"+e.Name, e, 0); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
