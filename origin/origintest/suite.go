package origintest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// Open returns a driver's bucket and a prefix of it, "" or ending with "/",
// below which there is nothing. Each call returns a fresh place.
type Open func(t *testing.T) (b origin.Bucket, prefix string)

// suiteTimeout bounds each part of the suite.
const suiteTimeout = 30 * time.Second

// Suite runs the conformance tests that every driver passes, each in a fresh
// place.
func Suite(t *testing.T, open Open) {
	for _, part := range []struct {
		name string
		run  func(*place)
	}{
		{"Stat", testStat},
		{"NotFound", testNotFound},
		{"InvalidKeys", testInvalidKeys},
		{"OddKeys", testOddKeys},
		{"EmptyObject", testEmptyObject},
		{"Ranges", testRanges},
		{"RangeBeyondEnd", testRangeBeyondEnd},
		{"ReaderContract", testReader},
		{"VersionChanges", testVersionChanges},
		{"NeverMixed", testNeverMixed},
		{"Put", testPut},
		{"PutShortBody", testPutShortBody},
		{"PutIsAtomic", testPutAtomic},
		{"Delete", testDelete},
		{"ListEmpty", testListEmpty},
		{"ListOrder", testListOrder},
		{"ListDelimiter", testListDelimiter},
		{"ListPrefix", testListPrefix},
		{"ListPages", testListPages},
		{"ListAgreesWithStat", testListStat},
		{"Cancelled", testCancelled},
		{"Concurrent", testConcurrent},
	} {
		t.Run(part.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), suiteTimeout)
			defer cancel()
			p := &place{T: t, ctx: ctx}
			p.Bucket, p.prefix = open(t)
			part.run(p)
		})
	}
}

// place is where one part of the suite works. Its keys are relative to prefix.
type place struct {
	*testing.T
	origin.Bucket
	ctx    context.Context
	prefix string
}

func (p *place) put(key, body string) origin.Info {
	p.Helper()
	info, err := p.Put(p.ctx, p.prefix+key, strings.NewReader(body), int64(len(body)))
	if err != nil {
		p.Fatal(err)
	}
	return info
}

func (p *place) stat(key string) origin.Info {
	p.Helper()
	info, err := p.Stat(p.ctx, p.prefix+key)
	if err != nil {
		p.Fatal(err)
	}
	return info
}

func (p *place) get(key, version string, off, n int64) (string, error) {
	body, err := p.Get(p.ctx, p.prefix+key, version, covey.Range{Off: off, Len: n})
	if err != nil {
		return "", err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	return string(b), err
}

func (p *place) wantKind(err, kind error) {
	p.Helper()
	if !errors.Is(err, kind) {
		p.Fatalf("error %v, want one that wraps %q", err, kind)
	}
}

// list returns all names of a listing, prefixes and objects merged in order,
// without the place's prefix, and checks the order of each page.
func (p *place) list(prefix, delimiter string, limit int) []string {
	p.Helper()
	var names []string
	req := origin.ListRequest{Prefix: p.prefix + prefix, Delimiter: delimiter, Limit: limit}
	for range 10_000 {
		page, err := p.List(p.ctx, req)
		if err != nil {
			p.Fatal(err)
		}
		names = append(names, p.pageNames(page, limit)...)
		if page.Next == "" {
			if !slices.IsSorted(names) {
				p.Fatalf("listing out of order: %q", names)
			}
			return names
		}
		req.Token = page.Next
	}
	p.Fatal("the listing does not end")
	return nil
}

func (p *place) pageNames(page origin.Page, limit int) []string {
	p.Helper()
	var names []string
	for _, o := range page.Objects {
		names = append(names, strings.TrimPrefix(o.Key, p.prefix))
	}
	if !slices.IsSorted(names) {
		p.Fatalf("objects out of order: %q", names)
	}
	if !slices.IsSorted(page.Prefixes) {
		p.Fatalf("prefixes out of order: %q", page.Prefixes)
	}
	for _, prefix := range page.Prefixes {
		names = append(names, strings.TrimPrefix(prefix, p.prefix))
	}
	if limit > 0 && len(names) > limit {
		p.Fatalf("a page of %d names, asked for %d", len(names), limit)
	}
	slices.Sort(names)
	return names
}
