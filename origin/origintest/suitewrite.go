package origintest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing/iotest"

	"github.com/covey-cache/covey"
)

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
		if err := p.Delete(p.ctx, p.prefix+key); err != nil {
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

func testPut(p *place) {
	info, err := p.Put(p.ctx, p.prefix+"a/b/stream", struct{ io.Reader }{strings.NewReader("streamed")}, 8)
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
	info, err = p.Put(p.ctx, p.prefix+"long", strings.NewReader("12345678"), 4)
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
		_, err := p.Put(p.ctx, p.prefix+"object", body, 100)
		p.wantKind(err, covey.ErrInvalid)
		_, err = p.Put(p.ctx, p.prefix+"new", body, 100)
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
				if _, err := p.Put(p.ctx, p.prefix+"object", strings.NewReader(body), size); err != nil {
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
		if err := p.Delete(p.ctx, p.prefix+"dir/a"); err != nil {
			p.Fatal(err)
		}
	}
	if err := p.Delete(p.ctx, p.prefix+"nowhere/at/all"); err != nil {
		p.Fatal(err)
	}
	if got := p.list("", "", 0); !slices.Equal(got, []string{"dir/b"}) {
		p.Errorf("left: %q", got)
	}
}

func testConcurrent(p *place) {
	const workers, rounds = 8, 20
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range rounds {
				key := fmt.Sprintf("%d/%d", w, i)
				body := content(byte(w), 1000+i)
				info, err := p.Put(p.ctx, p.prefix+key, strings.NewReader(body), int64(len(body)))
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
