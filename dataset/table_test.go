package dataset

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// opener opens "mem://bucket/prefix" after a second; a query is dropped in the
// canonical spelling.
type opener struct{ opened atomic.Int64 }

func (o *opener) open(ctx context.Context, url string) (*origin.Source, error) {
	o.opened.Add(1)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	canonical, _, _ := strings.Cut(url, "?")
	prefix, ok := strings.CutPrefix(canonical, "mem://bucket/")
	if !ok {
		return nil, fmt.Errorf("open %s: %w", url, covey.ErrNotFound)
	}
	return &origin.Source{Bucket: newBucket("a", "b"), Prefix: prefix, URL: canonical}, nil
}

func TestTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o opener
		table := NewTable(o.open, Options{BlockSize: covey.MinBlockSize})
		defer table.Close()
		add := func(url string) *Dataset {
			t.Helper()
			d, err := table.Add(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		a := add("mem://bucket/x/")
		if a.Options().BlockSize != covey.MinBlockSize || a.Name() != "mem://bucket/x/" || a.Prefix() != "x/" {
			t.Error(a.Options(), a.Name(), a.Prefix())
		}
		if add("mem://bucket/x/") != a || o.opened.Load() != 1 {
			t.Error("the same URL was opened again")
		}
		for range 2 {
			if add("mem://bucket/x/?p=1") != a || o.opened.Load() != 2 {
				t.Error("another spelling of the same source was not shared")
			}
		}
		c := add("mem://bucket/")
		if c == a || c.Bucket() != a.Bucket() {
			t.Error("data sets of one origin must share its bucket")
		}
		if list := table.List(); len(list) != 2 || list[0] != c || list[1] != a {
			t.Error(list)
		}
		obj := a.Object("f", Entry{Name: "f", Kind: File, Size: 1, Version: "v"})
		for range 4 {
			if b, ok := table.ByOrigin(obj.Origin); !ok || b != a.Bucket() {
				t.Error("the origin of a data set in use is not known")
			}
			table.Release(a)
		}
		table.Release(a) // one too many
		if _, err := a.Lookup(t.Context(), "a"); !errors.Is(err, covey.ErrUnavailable) {
			t.Error("the last release does not close:", err)
		}
		if _, err := c.Lookup(t.Context(), "a"); err != nil {
			t.Error(err)
		}
		table.Release(c)
		if _, ok := table.ByOrigin(obj.Origin); ok || len(table.List()) != 0 {
			t.Error("still there after the last release")
		}
		if _, err := table.Open(t.Context(), obj, covey.Range{Len: 1}); !errors.Is(err, covey.ErrUnavailable) {
			t.Error(err)
		}
		if add("mem://bucket/x/") == a {
			t.Error("a closed data set was handed out")
		}
	})
}

func TestTableOpensOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o opener
		table := NewTable(o.open, Options{})
		var wg sync.WaitGroup
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wg.Go(func() {
			if _, err := table.Add(impatient, "mem://bucket/"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		synctest.Wait()
		sets := make([]*Dataset, 20)
		for i := range sets {
			wg.Go(func() {
				var err error
				if sets[i], err = table.Add(t.Context(), "mem://bucket/"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, d := range sets {
			if d != sets[0] {
				t.Fatal("two data sets of one source")
			}
			table.Release(d)
		}
		if n := o.opened.Load(); n != 1 || len(table.List()) != 0 {
			t.Errorf("opened %d times, %d left", n, len(table.List()))
		}
		table.Close()
		if _, err := table.Add(t.Context(), "mem://bucket/"); !errors.Is(err, covey.ErrUnavailable) {
			t.Error(err)
		}
	})
}

func TestTableForgetsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o opener
		table := NewTable(o.open, Options{})
		defer table.Close()
		for range 2 {
			if _, err := table.Add(t.Context(), "nope://x"); !errors.Is(err, covey.ErrNotFound) {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := table.Add(ctx, "mem://bucket/"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if _, err := table.Add(t.Context(), "mem://bucket/"); err != nil {
			t.Error("after one that was given up:", err)
		}
		if n := o.opened.Load(); n != 4 {
			t.Errorf("opened %d times", n)
		}
	})
}

func TestOptions(t *testing.T) {
	if err := (Options{}).Validate(); err != nil {
		t.Error(err)
	}
	err := Options{BlockSize: 1, MaxEntries: -1}.Validate()
	if !errors.Is(err, covey.ErrInvalid) || !strings.Contains(err.Error(), "block size 1") || !strings.Contains(err.Error(), "entry limit -1") {
		t.Error(err)
	}
	d := open(t, newBucket(), "", Options{})
	if o := d.Options(); o.BlockSize != covey.DefaultBlockSize || o.MaxAge != DefaultMaxAge || o.StaleIfError != time.Hour || o.Log == nil {
		t.Errorf("%+v", o)
	}
}
