package origintest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/covey-cache/covey/origin"
)

func testListEmpty(p *place) {
	for _, prefix := range []string{"", "missing", "missing/", "a/b/c/", "a//b/", "../", "./"} {
		page, err := p.List(p.ctx, origin.ListRequest{Prefix: p.prefix + prefix})
		if err != nil || len(page.Objects)+len(page.Prefixes) != 0 || page.Next != "" {
			p.Errorf("%q: %+v, %v", prefix, page, err)
		}
	}
	p.put("file", "x")
	if got := p.list("file/", "/", 0); len(got) != 0 {
		p.Errorf("below a file: %q", got)
	}
}

// orderKeys sort differently by name and by key: "/" lies between "." and "0".
var orderKeys = []string{
	"a", "a!/x", "a-b/x", "a.d", "a.d.e/f", "a0", "aa/b/c", "aa/b.c", "aa/b-/d", "aa!", "aa0",
	"A", "Z", "z", "é", "日", "\U0001F419",
}

func testListOrder(p *place) {
	for _, key := range orderKeys {
		p.put(key, key)
	}
	want := slices.Sorted(slices.Values(orderKeys))
	if got := p.list("", "", 0); !slices.Equal(got, want) {
		p.Errorf("recursive:\n got %q\nwant %q", got, want)
	}
	want = []string{"A", "Z", "a", "a!/", "a-b/", "a.d", "a.d.e/", "a0", "aa!", "aa/", "aa0", "z", "é", "日", "\U0001F419"}
	if got := p.list("", "/", 0); !slices.Equal(got, want) {
		p.Errorf("one directory:\n got %q\nwant %q", got, want)
	}
	for limit := 1; limit <= 4; limit++ {
		if got := p.list("", "/", limit); !slices.Equal(got, want) {
			p.Errorf("one directory in pages of %d:\n got %q\nwant %q", limit, got, want)
		}
	}
}

func testListDelimiter(p *place) {
	for _, key := range []string{"x", "d/1", "d/2", "d/e/1", "d/e/f/1", "g/1"} {
		p.put(key, key)
	}
	for prefix, want := range map[string][]string{
		"":     {"d/", "g/", "x"},
		"d/":   {"d/1", "d/2", "d/e/"},
		"d/e/": {"d/e/1", "d/e/f/"},
		"d":    {"d/"},
		"d/e":  {"d/e/"},
		"x":    {"x"},
		"x/":   nil,
	} {
		if got := p.list(prefix, "/", 0); !slices.Equal(got, want) {
			p.Errorf("%q: got %q, want %q", prefix, got, want)
		}
	}
}

func testListPrefix(p *place) {
	for _, key := range []string{"ab/1", "abc/1", "abc/2/3", "abd", "b"} {
		p.put(key, key)
	}
	for prefix, want := range map[string][]string{
		"ab":     {"ab/1", "abc/1", "abc/2/3", "abd"},
		"abc":    {"abc/1", "abc/2/3"},
		"abc/":   {"abc/1", "abc/2/3"},
		"abc/2":  {"abc/2/3"},
		"abc/2/": {"abc/2/3"},
		"B":      nil,
	} {
		if got := p.list(prefix, "", 0); !slices.Equal(got, want) {
			p.Errorf("%q: got %q, want %q", prefix, got, want)
		}
	}
}

func testListPages(p *place) {
	var want []string
	for i := range 25 {
		for _, key := range []string{fmt.Sprintf("f%02d", i), fmt.Sprintf("f%02d.d/x/%d", i, i), fmt.Sprintf("f%02d.d/y", i)} {
			p.put(key, key)
			want = append(want, key)
		}
	}
	slices.Sort(want)
	for _, limit := range []int{1, 2, 7, len(want) - 1, len(want), len(want) + 1, 1_000_000} {
		if got := p.list("", "", limit); !slices.Equal(got, want) {
			p.Errorf("pages of %d:\n got %q\nwant %q", limit, got, want)
		}
	}
	// Names that come and go between pages disturb no others.
	page, err := p.List(p.ctx, origin.ListRequest{Prefix: p.prefix, Limit: 10})
	if err != nil {
		p.Fatal(err)
	}
	if err := p.Delete(p.ctx, page.Objects[9].Key); err != nil {
		p.Fatal(err)
	}
	p.put("e-new", "x")
	page, err = p.List(p.ctx, origin.ListRequest{Prefix: p.prefix, Limit: 10, Token: page.Next})
	if err != nil {
		p.Fatal(err)
	}
	if got := p.pageNames(page, 10); len(got) == 0 || got[0] != want[10] {
		p.Errorf("second page %q, want it to begin with %q", got, want[10])
	}
}

// testListStat: what a listing says of an object is what Stat says.
func testListStat(p *place) {
	for i := range 5 {
		p.put(fmt.Sprintf("dir/%d", i), strings.Repeat("x", i))
	}
	page, err := p.List(p.ctx, origin.ListRequest{Prefix: p.prefix + "dir/", Delimiter: "/"})
	if err != nil {
		p.Fatal(err)
	}
	if len(page.Objects) != 5 {
		p.Fatalf("%+v", page)
	}
	for _, o := range page.Objects {
		got := p.stat(strings.TrimPrefix(o.Key, p.prefix))
		if got.Size != o.Size || got.Version != o.Version || !got.ModTime.Equal(o.ModTime) || got.Mode != o.Mode {
			p.Errorf("listed as %+v, stat %+v", o, got)
		}
	}
}
