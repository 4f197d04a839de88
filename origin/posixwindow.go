package origin

import (
	"os"
	"slices"
	"sort"
	"strings"
	"time"
)

// dirName is a name in a directory.
type dirName struct {
	name string
	dir  bool
}

// sortKey is what orders names as S3 orders keys.
func (d dirName) sortKey() string {
	if d.dir {
		return d.name + "/"
	}
	return d.name
}

// dirWindow is a run of a directory's names in order. A directory gives them in
// no order, so that the first page needs all of it to be read. Holding all names
// would take memory without bound, reading all of them again for each page of a
// thousand would take a thousand scans for a million names. A window of the
// 65,536 smallest names behind a point takes a few MiB and 16 scans.
type dirWindow struct {
	dir, prefix string
	from        string    // all names from here to the last are in names
	names       []dirName // sorted by sortKey
	more        bool      // the directory has names behind the last
	made        time.Time
	limit       int // of names
}

const (
	windowNames = 64 << 10
	// keepWindows bounds the memory of listings under way, and smallWindow is
	// read again sooner than it is looked up.
	keepWindows = 4
	smallWindow = 256
	// windowAge is how old the names of a later page may be. What a page says
	// of each is looked up when it is made, and names that have gone are left
	// out; only a new name can be missed, as it can between any two pages.
	windowAge = 30 * time.Second
)

// window returns the next names of an open directory that begin with prefix and
// are not before from.
func (b *posixBucket) window(l *lister, dir *os.Root, key, prefix, from string) (*dirWindow, error) {
	if from != "" {
		if w := b.takeWindow(key, prefix, from); w != nil {
			return w, nil
		}
	}
	w := &dirWindow{dir: key, prefix: prefix, from: from, made: time.Now(), limit: b.windowNames}
	err := readDirents(dir, w.offer, func() error {
		l.progress.Add(1)
		return l.ctx.Err()
	})
	w.trim()
	return w, err
}

// offer takes a name into the window if it belongs there.
func (w *dirWindow) offer(d dirName) {
	if !strings.HasPrefix(d.name, w.prefix) || strings.HasPrefix(d.name, uploadPrefix) || d.sortKey() < w.from {
		return
	}
	w.names = append(w.names, d)
	if len(w.names) == 2*w.limit {
		w.trim()
	}
}

// trim sorts the window and drops what is too much.
func (w *dirWindow) trim() {
	slices.SortFunc(w.names, func(a, b dirName) int { return strings.Compare(a.sortKey(), b.sortKey()) })
	if len(w.names) > w.limit {
		clear(w.names[w.limit:])
		w.names = w.names[:w.limit]
		w.more = true
	}
}

// keepWindow keeps what is left of a window for the next page.
func (b *posixBucket) keepWindow(w *dirWindow, next int) {
	if len(w.names)-next < smallWindow {
		return
	}
	if next > 0 {
		w.from = w.names[next-1].sortKey()
	}
	w.names = w.names[next:]
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.windows = append(b.windows, w)
	if len(b.windows) > keepWindows {
		b.windows = slices.Delete(b.windows, 0, 1)
	}
}

// covers reports whether a scan from there would find these names and no others.
func (w *dirWindow) covers(from string) bool {
	return from >= w.from && (!w.more || from <= w.names[len(w.names)-1].sortKey())
}

// takeWindow returns a kept window that goes on from there, or nil. It belongs
// to the caller then.
func (b *posixBucket) takeWindow(dir, prefix, from string) *dirWindow {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.windows = slices.DeleteFunc(b.windows, func(w *dirWindow) bool { return time.Since(w.made) > windowAge })
	for i, w := range b.windows {
		if w.dir != dir || w.prefix != prefix || !w.covers(from) {
			continue
		}
		b.windows = slices.Delete(b.windows, i, i+1)
		at := sort.Search(len(w.names), func(i int) bool { return w.names[i].sortKey() >= from })
		w.from, w.names = from, w.names[at:]
		return w
	}
	return nil
}
