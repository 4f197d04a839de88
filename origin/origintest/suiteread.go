package origintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing/iotest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

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
		_, err := p.Stat(p.ctx, p.prefix+key)
		p.wantKind(err, covey.ErrNotFound)
		_, err = p.get(key, "0123456789abcdef0123456789abcdef", 0, 1)
		p.wantKind(err, covey.ErrNotFound)
	}
	deleted := p.put("gone", "x")
	if err := p.Delete(p.ctx, p.prefix+"gone"); err != nil {
		p.Fatal(err)
	}
	// fault 25: an object that is deleted fails a read that pins its version.
	_, err := p.get("gone", deleted.Version, 0, 1)
	p.wantKind(err, covey.ErrNotFound)
}

func testInvalidKeys(p *place) {
	for _, key := range []string{"", strings.Repeat("k", covey.MaxKeyLen+1)} {
		_, err := p.Stat(p.ctx, key)
		p.wantKind(err, covey.ErrInvalid)
		_, err = p.Get(p.ctx, key, "v", covey.Range{Len: 1})
		p.wantKind(err, covey.ErrInvalid)
		_, err = p.Put(p.ctx, key, strings.NewReader(""), 0)
		p.wantKind(err, covey.ErrInvalid)
		p.wantKind(p.Delete(p.ctx, key), covey.ErrInvalid)
	}
	object := p.put("object", "x")
	for _, r := range []covey.Range{{Off: -1, Len: 1}, {Len: 0}, {Len: -1}, {Off: 1 << 62, Len: 1 << 62}} {
		_, err := p.Get(p.ctx, p.prefix+"object", object.Version, r)
		p.wantKind(err, covey.ErrInvalid)
	}
	_, err := p.List(p.ctx, origin.ListRequest{Prefix: p.prefix, Delimiter: "o"})
	if err != nil {
		p.wantKind(err, covey.ErrInvalid) // or it is supported
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
		if got != "" || (!errors.Is(err, covey.ErrInvalid) && !errors.Is(err, covey.ErrStale)) {
			p.Errorf("%+v of 10 bytes: %q, %v", r, got, err)
		}
	}
}

func testReader(p *place) {
	const size = 300_000
	whole := content(1, size)
	version := p.put("object", whole).Version
	body, err := p.Get(p.ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: size})
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
	body, err = p.Get(p.ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: size})
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
	body, err := p.Get(p.ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: size})
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

func testCancelled(p *place) {
	version := p.put("object", content(6, 4<<20)).Version
	ctx, cancel := context.WithCancel(p.ctx)
	body, err := p.Get(ctx, p.prefix+"object", version, covey.Range{Off: 0, Len: 4 << 20})
	if err != nil {
		p.Fatal(err)
	}
	defer body.Close()
	cancel()
	// What is buffered may still come; then the context's error does.
	if _, err := io.ReadAll(body); err != nil {
		p.wantKind(err, context.Canceled)
	}
	_, err = p.Stat(ctx, p.prefix+"object")
	p.wantKind(err, context.Canceled)
	_, err = p.List(ctx, origin.ListRequest{Prefix: p.prefix})
	p.wantKind(err, context.Canceled)
	_, err = p.Get(ctx, p.prefix+"object", version, covey.Range{Len: 1})
	p.wantKind(err, context.Canceled)
	_, err = p.Put(ctx, p.prefix+"other", strings.NewReader("x"), 1)
	p.wantKind(err, context.Canceled)
	p.wantKind(p.Delete(ctx, p.prefix+"object"), context.Canceled)
	p.stat("object")
}
