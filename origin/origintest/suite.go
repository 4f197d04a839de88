package origintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
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
	info, err := p.Bucket.Put(p.ctx, p.prefix+key, strings.NewReader(body), int64(len(body)))
	if err != nil {
		p.Fatal(err)
	}
	return info
}

func (p *place) stat(key string) origin.Info {
	p.Helper()
	info, err := p.Bucket.Stat(p.ctx, p.prefix+key)
	if err != nil {
		p.Fatal(err)
	}
	return info
}

func (p *place) get(key, version string, off, n int64) (string, error) {
	body, err := p.Bucket.Get(p.ctx, p.prefix+key, version, covey.Range{Off: off, Len: n})
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
		page, err := p.Bucket.List(p.ctx, req)
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

func testStat(p *place) {
	put := p.put("dir/object", "seven b")
	got := p.stat("dir/object")
	if got.Key != p.prefix+"dir/object" || got.Size != 7 || got.Version == "" || got.Link != "" {
		p.Errorf("stat: %+v", got)
	}
	if got.Version != put.Version {
		p.Errorf("stat says version %q, put said %q", got.Version, put.Version)
	}
	if age := time.Since(got.ModTime); age < -time.Minute || age > time.Minute {
		p.Errorf("modification time %v", got.ModTime)
	}
	again := p.stat("dir/object")
	if !again.ModTime.Equal(got.ModTime) || again.Version != got.Version {
		p.Errorf("unchanged object: %+v, then %+v", got, again)
	}
}

func testNotFound(p *place) {
	p.put("dir/object", "x")
	for _, key := range []string{"missing", "dir", "dir/", "dir/objec", "dir/object/", "dir/object/below"} {
		_, err := p.Bucket.Stat(p.ctx, p.prefix+key)
		p.wantKind(err, covey.ErrNotFound)
		_, err = p.get(key, "0123456789abcdef0123456789abcdef", 0, 1)
		p.wantKind(err, covey.ErrNotFound)
	}
	deleted := p.put("gone", "x")
	if err := p.Bucket.Delete(p.ctx, p.prefix+"gone"); err != nil {
		p.Fatal(err)
	}
	// fault 25: an object that is deleted fails a read that pins its version.
	_, err := p.get("gone", deleted.Version, 0, 1)
	p.wantKind(err, covey.ErrNotFound)
}

func testInvalidKeys(p *place) {
	for _, key := range []string{"", strings.Repeat("k", covey.MaxKeyLen+1)} {
		_, err := p.Bucket.Stat(p.ctx, key)
		p.wantKind(err, covey.ErrInvalid)
		_, err = p.Bucket.Get(p.ctx, key, "v", covey.Range{Len: 1})
		p.wantKind(err, covey.ErrInvalid)
		_, err = p.Bucket.Put(p.ctx, key, strings.NewReader(""), 0)
		p.wantKind(err, covey.ErrInvalid)
		p.wantKind(p.Bucket.Delete(p.ctx, key), covey.ErrInvalid)
	}
	object := p.put("object", "x")
	for _, r := range []covey.Range{{Off: -1, Len: 1}, {Len: 0}, {Len: -1}, {Off: 1 << 62, Len: 1 << 62}} {
		_, err := p.Bucket.Get(p.ctx, p.prefix+"object", object.Version, r)
		p.wantKind(err, covey.ErrInvalid)
	}
	_, err := p.Bucket.List(p.ctx, origin.ListRequest{Prefix: p.prefix, Delimiter: "o"})
	if err != nil {
		p.wantKind(err, covey.ErrInvalid) // or it is supported
	}
}

// oddKeys are names that go wrong where somebody escapes, splits or trims.
var oddKeys = []string{
	" leading and trailing ", "a+b", "a%41b", "100%", "a#b", "a?b=c&d", "a&b", "a;b", "a:b", "a=b", "a@b",
	"quote'\"", "back\\slash", "<tag>", "star*", "[x]{y}", "~tilde", "caf\u00e9", "cafe\u0301", "日本語", "🐙",
	"line\nbreak", "tab\there", "...", "..a", "a..", "-dash", "x/ y /z", "deep/" + strings.Repeat("d/", 100) + "leaf",
	"long/" + strings.Repeat("l", 255), "UPPER", "upper",
}

func testOddKeys(p *place) {
	for i, key := range oddKeys {
		p.put(key, fmt.Sprint("body ", i))
	}
	got := p.list("", "", 0)
	want := slices.Sorted(slices.Values(oddKeys))
	if !slices.Equal(got, want) {
		p.Errorf("listing of odd keys:\n got %q\nwant %q", got, want)
	}
	for i, key := range oddKeys {
		info := p.stat(key)
		body, err := p.get(key, info.Version, 0, info.Size)
		if want := fmt.Sprint("body ", i); err != nil || body != want {
			p.Errorf("%q: read %q, %v; want %q", key, body, err, want)
		}
		if err := p.Bucket.Delete(p.ctx, p.prefix+key); err != nil {
			p.Error(err)
		}
	}
	if left := p.list("", "", 0); len(left) != 0 {
		p.Errorf("left after deleting all: %q", left)
	}
}

func testEmptyObject(p *place) {
	if put := p.put("empty", ""); put.Size != 0 || put.Version == "" {
		p.Errorf("put: %+v", put)
	}
	if got := p.stat("empty"); got.Size != 0 || got.Version == "" {
		p.Errorf("stat: %+v", got)
	}
	if got := p.list("", "", 0); !slices.Equal(got, []string{"empty"}) {
		p.Errorf("list: %q", got)
	}
}

// content returns n bytes that differ at each offset, so that a shifted or
// swapped range shows.
func content(seed byte, n int) string {
	var b bytes.Buffer
	b.Grow(n + 8)
	for i := 0; b.Len() < n; i += 8 {
		fmt.Fprintf(&b, "%c%07x", 'A'+seed%26, i)
	}
	return b.String()[:n]
}

func testRanges(p *place) {
	// More than a chunk of any driver, and no multiple of one.
	const size = 3<<20 + 17
	whole := content(0, size)
	version := p.put("object", whole).Version
	for _, r := range []covey.Range{
		{Off: 0, Len: 1}, {Off: 0, Len: size}, {Off: 0, Len: size - 1}, {Off: 1, Len: size - 1},
		{Off: size - 1, Len: 1}, {Off: 1 << 20, Len: 1 << 20}, {Off: 1<<20 - 1, Len: 2}, {Off: size / 2, Len: 4096},
	} {
		got, err := p.get("object", version, r.Off, r.Len)
		if err != nil {
			p.Errorf("%+v: %v", r, err)
		} else if got != whole[r.Off:r.End()] {
			p.Errorf("%+v: wrong bytes (%d of them)", r, len(got))
		}
	}
}

func testRangeBeyondEnd(p *place) {
	version := p.put("object", "0123456789").Version
	for _, r := range []covey.Range{{Off: 0, Len: 11}, {Off: 9, Len: 2}, {Off: 10, Len: 1}, {Off: 1000, Len: 1}} {
		got, err := p.get("object", version, r.Off, r.Len)
		if got != "" || !(errors.Is(err, covey.ErrInvalid) || errors.Is(err, covey.ErrStale)) {
			p.Errorf("%+v of 10 bytes: %q, %v", r, got, err)
		}
	}
}

func testReader(p *place) {
	const size = 300_000
	whole := content(1, size)
	version := p.put("object", whole).Version
	body, err := p.Bucket.Get(p.ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: size})
	if err != nil {
		p.Fatal(err)
	}
	if err := iotest.TestReader(body, []byte(whole)); err != nil {
		p.Error(err)
	}
	if err := body.Close(); err != nil {
		p.Error(err)
	}
	// Closing early is no error and no leak.
	body, err = p.Bucket.Get(p.ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: size})
	if err != nil {
		p.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		p.Error(err)
	}
	body.Close()
}

func testVersionChanges(p *place) {
	seen := map[string]bool{}
	var versions []string
	// The same size each time, and one body twice.
	for _, body := range []string{"aaaa", "bbbb", "cccc"} {
		v := p.put("object", body).Version
		if seen[v] {
			p.Fatalf("version %q was used before", v)
		}
		seen[v] = true
		versions = append(versions, v)
	}
	// fault 24: an object that was overwritten.
	for _, v := range versions[:2] {
		got, err := p.get("object", v, 0, 4)
		if got != "" {
			p.Errorf("read %q of an old version", got)
		}
		p.wantKind(err, covey.ErrStale)
	}
	if got, err := p.get("object", versions[2], 1, 2); got != "cc" || err != nil {
		p.Errorf("read %q, %v", got, err)
	}
}

// testNeverMixed overwrites an object between the first and the last read of
// it: what comes is all old, or an error.
func testNeverMixed(p *place) {
	const size = 8 << 20
	before, after := content(2, size), content(3, size)
	version := p.put("object", before).Version
	body, err := p.Bucket.Get(p.ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: size})
	if err != nil {
		p.Fatal(err)
	}
	defer body.Close()
	got := make([]byte, 1000)
	if _, err := io.ReadFull(body, got); err != nil {
		p.Fatal(err)
	}
	p.put("object", after)
	rest, err := io.ReadAll(body)
	got = append(got, rest...)
	if err != nil && !errors.Is(err, covey.ErrStale) {
		p.Error(err)
	}
	if !strings.HasPrefix(before, string(got)) {
		p.Error("bytes of two versions")
	}
	if err == nil && len(got) != size {
		p.Errorf("%d bytes without an error", len(got))
	}
}

func testPut(p *place) {
	info, err := p.Bucket.Put(p.ctx, p.prefix+"a/b/stream", struct{ io.Reader }{strings.NewReader("streamed")}, 8)
	if err != nil {
		p.Fatal(err)
	}
	if info.Key != p.prefix+"a/b/stream" || info.Size != 8 || info.Version == "" {
		p.Errorf("put: %+v", info)
	}
	if got, err := p.get("a/b/stream", info.Version, 0, 8); got != "streamed" || err != nil {
		p.Errorf("read %q, %v", got, err)
	}
	// A body that is longer than announced is cut.
	info, err = p.Bucket.Put(p.ctx, p.prefix+"long", strings.NewReader("12345678"), 4)
	if err != nil {
		p.Fatal(err)
	}
	if got := p.stat("long"); got.Size != 4 || got.Version != info.Version {
		p.Errorf("stat: %+v", got)
	}
}

func testPutShortBody(p *place) {
	old := p.put("object", "old")
	broken := errors.New("broken")
	for _, body := range []io.Reader{
		strings.NewReader("too short"),
		io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken)),
	} {
		_, err := p.Bucket.Put(p.ctx, p.prefix+"object", body, 100)
		p.wantKind(err, covey.ErrInvalid)
		_, err = p.Bucket.Put(p.ctx, p.prefix+"new", body, 100)
		if err == nil {
			p.Fatal("a short body was stored")
		}
	}
	if got := p.stat("object"); got.Version != old.Version {
		p.Errorf("a failed put changed the object: %+v", got)
	}
	if got := p.list("", "", 0); !slices.Equal(got, []string{"object"}) {
		p.Errorf("a failed put left %q", got)
	}
}

// testPutAtomic reads while an object is overwritten: each read is of one body.
func testPutAtomic(p *place) {
	const size = 256 << 10
	bodies := []string{content(4, size), content(5, size)}
	p.put("object", bodies[0])
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				body := bodies[i%2]
				if _, err := p.Bucket.Put(p.ctx, p.prefix+"object", strings.NewReader(body), size); err != nil {
					p.Error(err)
					return
				}
			}
		}
	})
	defer writer.Wait()
	defer close(stop)
	read := 0
	for range 50 {
		info := p.stat("object")
		if info.Size != size {
			p.Fatalf("half an object: %+v", info)
		}
		got, err := p.get("object", info.Version, 0, size)
		switch {
		case err == nil && got != bodies[0] && got != bodies[1]:
			p.Fatal("a mixed body")
		case err == nil:
			read++
		case !errors.Is(err, covey.ErrStale):
			p.Fatal(err)
		}
	}
	if read == 0 {
		p.Log("every read was overtaken by a write")
	}
}

func testDelete(p *place) {
	p.put("dir/a", "x")
	p.put("dir/b", "x")
	for range 2 { // the second time it is gone, which is no error
		if err := p.Bucket.Delete(p.ctx, p.prefix+"dir/a"); err != nil {
			p.Fatal(err)
		}
	}
	if err := p.Bucket.Delete(p.ctx, p.prefix+"nowhere/at/all"); err != nil {
		p.Fatal(err)
	}
	if got := p.list("", "", 0); !slices.Equal(got, []string{"dir/b"}) {
		p.Errorf("left: %q", got)
	}
}

func testCancelled(p *place) {
	version := p.put("object", content(6, 4<<20)).Version
	ctx, cancel := context.WithCancel(p.ctx)
	body, err := p.Bucket.Get(ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: 4 << 20})
	if err != nil {
		p.Fatal(err)
	}
	defer body.Close()
	cancel()
	// What is buffered may still come; then the context's error does.
	if _, err := io.ReadAll(body); err != nil {
		p.wantKind(err, context.Canceled)
	}
	_, err = p.Bucket.Stat(ctx, p.prefix+"object")
	p.wantKind(err, context.Canceled)
	_, err = p.Bucket.List(ctx, origin.ListRequest{Prefix: p.prefix})
	p.wantKind(err, context.Canceled)
	_, err = p.Bucket.Get(ctx, p.prefix+"object", version, covey.Range{Len: 1})
	p.wantKind(err, context.Canceled)
	_, err = p.Bucket.Put(ctx, p.prefix+"other", strings.NewReader("x"), 1)
	p.wantKind(err, context.Canceled)
	p.wantKind(p.Bucket.Delete(ctx, p.prefix+"object"), context.Canceled)
	p.stat("object")
}

func testConcurrent(p *place) {
	const workers, rounds = 8, 20
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range rounds {
				key := fmt.Sprintf("%d/%d", w, i)
				body := content(byte(w), 1000+i)
				info, err := p.Bucket.Put(p.ctx, p.prefix+key, strings.NewReader(body), int64(len(body)))
				if err != nil {
					p.Error(err)
					return
				}
				if got, err := p.get(key, info.Version, 0, int64(len(body))); err != nil || got != body {
					p.Errorf("%s: %v", key, err)
				}
			}
		})
	}
	all.Wait()
	if got := p.list("", "", 0); len(got) != workers*rounds {
		p.Errorf("listed %d objects of %d", len(got), workers*rounds)
	}
}
