package dataset

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// holdLimit is how many entries may be held back because a directory that
// belongs in front of them could still come. Beyond it, one request finds out.
const holdLimit = 1000

// pager turns the pages of one directory's listing, which come in the order of
// the keys, into entries in the order of the names. Both differ, since the
// directory "a" is the key "a/", behind "a-1" and "a.txt".
//
// INVARIANT: everything in pending has a greater name than everything taken.
type pager struct {
	prefix  string
	bucket  origin.Bucket
	pending []Entry
	last    string // greatest key so far, without the prefix
	exists  bool
	// probed holds directories that the origin was asked about ahead of their
	// turn. Each is a prefix of last, so there are at most 255.
	probed map[string]bool
	// patient says to hold back whatever it takes instead of asking.
	patient bool
	// late are directories that came although they were not there when asked
	// about: made meanwhile, or empty ones of a file system.
	late    []string
	hidden  int
	example string
}

func newPager(prefix string, b origin.Bucket) *pager {
	return &pager{prefix: prefix, bucket: b, probed: make(map[string]bool)}
}

// keyed is a page's item with its place in the order of keys.
type keyed struct {
	key   string // without the directory's prefix; directories end with "/"
	entry Entry
}

// add takes in a page and reports whether it had anything new. A page that goes
// back behind the one before is an error: the origin would list for ever.
func (p *pager) add(page origin.Page) (progress bool, err error) {
	items, err := p.items(page)
	if err != nil {
		return false, err
	}
	for _, it := range items {
		switch {
		case it.key == "": // the directory's own marker
			p.exists = true
			continue
		case it.key == p.last && strings.HasSuffix(it.key, "/"):
			continue // a roll-up that a server repeats on the next page
		case it.key <= p.last:
			return false, fmt.Errorf("the origin repeats itself: key %q behind %q: %w",
				p.prefix+it.key, p.prefix+p.last, covey.ErrUnavailable)
		}
		p.last, p.exists, progress = it.key, true, true
		switch {
		case it.entry.Kind == 0 || !validName(it.entry.Name):
			p.hide(it.key)
		case it.entry.Kind == Dir && p.isProbed(it.entry.Name):
			// It is in its place already, or that place has been passed.
			if !p.probed[it.entry.Name] {
				p.late = append(p.late, it.entry.Name)
			}
		default:
			p.pending = append(p.pending, it.entry)
		}
	}
	return progress, nil
}

func (p *pager) hide(key string) {
	if p.hidden == 0 {
		p.example = p.prefix + key
	}
	p.hidden++
}

// items returns the page's objects and roll-ups in the order of the keys.
func (p *pager) items(page origin.Page) ([]keyed, error) {
	items := make([]keyed, 0, len(page.Objects)+len(page.Prefixes))
	for _, info := range page.Objects {
		rest, ok := strings.CutPrefix(info.Key, p.prefix)
		if !ok {
			return nil, p.foreign(info.Key)
		}
		e := entryOf(rest, info)
		if name, marker := strings.CutSuffix(rest, "/"); marker {
			e = p.directory(name)
		}
		items = append(items, keyed{rest, e})
	}
	for _, key := range page.Prefixes {
		rest, ok := strings.CutPrefix(key, p.prefix)
		if !ok || rest == "" {
			return nil, p.foreign(key)
		}
		items = append(items, keyed{rest, p.directory(strings.TrimSuffix(rest, "/"))})
	}
	byKey := func(a, b keyed) int { return cmp.Compare(a.key, b.key) }
	if !slices.IsSortedFunc(items, byKey) {
		slices.SortFunc(items, byKey)
	}
	// A marker and a roll-up of the same directory are one.
	return slices.CompactFunc(items, func(a, b keyed) bool { return a.key == b.key }), nil
}

func (p *pager) foreign(key string) error {
	return fmt.Errorf("the origin answers key %q to prefix %q: %w", key, p.prefix, covey.ErrUnavailable)
}

// directory returns the entry of a directory, of no kind when it has to be
// hidden.
func (p *pager) directory(name string) Entry {
	if !dirFits(p.prefix + name + "/") {
		return Entry{}
	}
	return Entry{Name: name, Kind: Dir}
}

// entryOf returns the entry of one object, of no kind when the cache could not
// name it.
func entryOf(name string, info origin.Info) Entry {
	e := Entry{
		Name: name, Kind: File, Size: info.Size,
		ModTime: info.ModTime, Mode: info.Mode.Perm(), Version: info.Version,
	}
	if info.Link != "" {
		e.Kind, e.Link, e.Size = Symlink, info.Link, int64(len(info.Link))
	}
	if len(info.Key) > covey.MaxKeyLen || len(e.Version) > covey.MaxVersionLen ||
		len(e.Link) > math.MaxUint16 || e.Size < 0 || e.Size > covey.MaxObjectSize {
		return Entry{}
	}
	return e
}

// take returns the entries that nothing can come in front of any more, in the
// order of the names, and all of them when the last page is in.
func (p *pager) take(ctx context.Context, last bool) ([]Entry, error) {
	slices.SortFunc(p.pending, func(a, b Entry) int {
		// A directory wins over a file of its name: it is sorted in front, and
		// what follows with the same name goes.
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(rank(a.Kind), rank(b.Kind)))
	})
	k := len(p.pending)
	for !last {
		open, ok := p.openDirectory()
		if !ok {
			break
		}
		k, _ = slices.BinarySearchFunc(p.pending, open, func(e Entry, name string) int { return cmp.Compare(e.Name, name) })
		if p.patient || len(p.pending)-k <= holdLimit {
			break
		}
		if err := p.probe(ctx, open, k); err != nil {
			return nil, err
		}
		k = len(p.pending)
	}
	out := p.dedupe(p.pending[:k:k])
	p.pending = slices.Clone(p.pending[k:])
	return out, nil
}

func rank(k Kind) int {
	if k == Dir {
		return 0
	}
	return 1
}

func (p *pager) dedupe(entries []Entry) []Entry {
	out := entries[:0]
	for _, e := range entries {
		if len(out) > 0 && out[len(out)-1].Name == e.Name {
			p.hide(e.Name)
			continue
		}
		out = append(out, e)
	}
	return out
}

// openDirectory returns the shortest name that could still turn up as a
// directory although entries with greater names have come: a prefix of the last
// key that is followed there by a byte below the slash, or all of it.
func (p *pager) openDirectory() (string, bool) {
	if strings.HasSuffix(p.last, "/") {
		// Everything in this directory is rolled up, so only shorter ones are
		// open.
		return p.openPrefix(strings.TrimSuffix(p.last, "/"))
	}
	if name, ok := p.openPrefix(p.last); ok {
		return name, true
	}
	return p.last, p.last != "" && !p.isProbed(p.last)
}

func (p *pager) openPrefix(name string) (string, bool) {
	for i := 1; i < len(name); i++ {
		if name[i] < '/' && !p.isProbed(name[:i]) {
			return name[:i], true
		}
	}
	return "", false
}

func (p *pager) isProbed(name string) bool {
	_, ok := p.probed[name]
	return ok
}

// probe asks whether the directory exists and puts it in its place at index k.
func (p *pager) probe(ctx context.Context, name string, k int) error {
	for old := range p.probed {
		if !strings.HasPrefix(p.last, old) {
			delete(p.probed, old)
		}
	}
	there, err := hasKeys(ctx, p.bucket, p.prefix+name+"/")
	if err != nil {
		return err
	}
	p.probed[name] = there
	if dir := p.directory(name); there && dir.Kind == Dir && validName(name) {
		p.pending = slices.Insert(p.pending, k, dir)
	}
	return nil
}

// hasKeys reports whether any key begins with the prefix.
func hasKeys(ctx context.Context, b origin.Bucket, prefix string) (bool, error) {
	var token string
	for range maxIdlePages {
		page, err := b.List(ctx, origin.ListRequest{Prefix: prefix, Delimiter: "/", Token: token, Limit: 1})
		if err != nil {
			return false, err
		}
		if len(page.Objects)+len(page.Prefixes) > 0 {
			return true, nil
		}
		if page.Next == "" {
			return false, nil
		}
		token = page.Next
	}
	return false, fmt.Errorf("the origin answers empty pages to prefix %q: %w", prefix, covey.ErrUnavailable)
}

// maxSiblings is how many names that begin with a directory's may be looked
// through to find that directory itself, when it has nothing in it.
const maxSiblings = 10_000

// isEmptyDir reports whether a directory without keys exists nevertheless, as it
// does in a file system: then its parent rolls it up. It costs one request more
// where nothing is there, and nothing where something is.
func isEmptyDir(ctx context.Context, b origin.Bucket, key string) (bool, error) {
	req := origin.ListRequest{Prefix: strings.TrimSuffix(key, "/"), Delimiter: "/"}
	for seen := 0; seen < maxSiblings; {
		page, err := b.List(ctx, req)
		if err != nil {
			return false, err
		}
		if slices.Contains(page.Prefixes, key) {
			return true, nil
		}
		n := len(page.Objects) + len(page.Prefixes)
		if page.Next == "" || page.Next == req.Token || n == 0 {
			return false, nil
		}
		seen += n
		req.Token = page.Next
	}
	return false, nil
}
