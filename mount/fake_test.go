package mount

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
)

// testBlock is the block size of the fakes: small, so that a few files have many
// blocks.
const testBlock = covey.MinBlockSize

// content is the oracle: byte i of a file is a function of its path, its version
// and i alone.
func content(path, version string, off int64, p []byte) {
	seed := covey.Sum([]byte(path + "\x00" + version))
	key := binary.LittleEndian.Uint64(seed[:])
	var word [8]byte
	for len(p) > 0 {
		x := key + uint64(off)/8
		x = (x ^ x>>33) * 0xff51afd7ed558ccd
		binary.LittleEndian.PutUint64(word[:], x^x>>33)
		n := copy(p, word[off%8:])
		p, off = p[n:], off+int64(n)
	}
}

func wanted(path, version string, size int64) []byte {
	p := make([]byte, size)
	content(path, version, 0, p)
	return p
}

// fakeNames is a namespace in memory that can change and fail.
type fakeNames struct {
	mu          sync.Mutex
	opts        dataset.Options
	entries     map[string]dataset.Entry
	down        error // what every method that asks the origin returns
	invalidated map[string]int
	lookups     atomic.Int64
	lists       atomic.Int64
	watcher     dataset.Watcher
}

func newFakeNames() *fakeNames {
	return &fakeNames{
		opts:        dataset.Options{BlockSize: testBlock, MaxAge: -1},
		entries:     map[string]dataset.Entry{"": {Kind: dataset.Dir}},
		invalidated: map[string]int{},
	}
}

func (f *fakeNames) put(p string, e dataset.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Name = path.Base(p)
	f.entries[p] = e
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if _, ok := f.entries[dir]; !ok {
			f.entries[dir] = dataset.Entry{Name: path.Base(dir), Kind: dataset.Dir, Mode: 0o755 | fs.ModeDir}
		}
	}
}

func (f *fakeNames) file(p, version string, size int64) {
	f.put(p, dataset.Entry{Kind: dataset.File, Size: size, Version: version, ModTime: time.Unix(1_700_000_000, 5)})
}

func (f *fakeNames) remove(p string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.entries, p)
}

func (f *fakeNames) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

func (f *fakeNames) current(p string) (dataset.Entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.entries[p]
	return e, ok
}

func (f *fakeNames) Name() string             { return "fake:///data" }
func (f *fakeNames) Options() dataset.Options { return f.opts }

func (f *fakeNames) Lookup(_ context.Context, p string) (dataset.Entry, error) {
	f.lookups.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, ok := f.entries[p]; ok {
		return e, nil // known entries survive an origin that is away
	}
	if f.down != nil {
		return dataset.Entry{}, fmt.Errorf("look up %s: %w", p, f.down)
	}
	return dataset.Entry{}, fmt.Errorf("look up %s: %w", p, covey.ErrNotFound)
}

func (f *fakeNames) list(dir string) (all []dataset.Entry, err error) {
	f.lists.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	for p, e := range f.entries {
		if p != "" && (path.Dir(p) == dir || path.Dir(p) == "." && dir == "") {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b dataset.Entry) int { return cmp.Compare(a.Name, b.Name) })
	return all, f.down
}

func (f *fakeNames) ReadDir(_ context.Context, dir string) iter.Seq2[dataset.Entry, error] {
	return func(yield func(dataset.Entry, error) bool) {
		all, err := f.list(dir)
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(dataset.Entry{}, fmt.Errorf("list %s: %w", dir, err))
		}
	}
}

func (f *fakeNames) Believed(string) time.Duration   { return f.left() }
func (f *fakeNames) BelievedIn(string) time.Duration { return f.left() }

func (f *fakeNames) left() time.Duration {
	if f.opts.Immutable {
		return 1 << 62
	}
	return max(0, f.opts.MaxAge)
}

func (f *fakeNames) Watch(w dataset.Watcher) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watcher = w
	return func() {}
}

func (f *fakeNames) After(p string) (string, dataset.Entry, bool) {
	dir := path.Dir(p)
	all, _ := f.list(strings.TrimSuffix(dir, "."))
	for _, e := range all {
		if e.Kind == dataset.File && e.Name > path.Base(p) {
			return path.Join(dir, e.Name), e, true
		}
	}
	return "", dataset.Entry{}, false
}

func (f *fakeNames) Settled(string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down == nil
}

func (f *fakeNames) Object(p string, e dataset.Entry) covey.Object {
	return covey.Object{Origin: "fake:///", Key: p, Version: e.Version, Size: e.Size, BlockSize: f.opts.BlockSize}
}

// Extent cuts as the real thing does: a large file every 64 blocks, small ones
// grouped within their directory.
func (f *fakeNames) Extent(_ context.Context, p string, e dataset.Entry, index int) (*covey.Extent, int, error) {
	o := f.Object(p, e)
	var blocks []covey.Locator
	if o.Blocks() > 1 {
		first := index / covey.MaxExtentBlocks * covey.MaxExtentBlocks
		for i := first; i < min(first+covey.MaxExtentBlocks, o.Blocks()); i++ {
			blocks = append(blocks, o.Block(i))
		}
		return covey.NewExtent(blocks), index - first, nil
	}
	dir := strings.TrimSuffix(p, path.Base(p))
	all, _ := f.list(strings.TrimSuffix(dir, "/"))
	slot := -1
	for _, x := range all {
		so := f.Object(dir+x.Name, x)
		if x.Kind != dataset.File || so.Blocks() != 1 {
			continue
		}
		if len(blocks) == covey.MaxExtentBlocks {
			if slot >= 0 {
				break
			}
			blocks = nil
		}
		if so.Key == p {
			slot = len(blocks)
		}
		blocks = append(blocks, so.Block(0))
	}
	if slot < 0 {
		return nil, 0, fmt.Errorf("extent of %s: %w", p, covey.ErrNotFound)
	}
	return covey.NewExtent(blocks), slot, nil
}

func (f *fakeNames) Invalidate(p string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.invalidated[p]++
}

// fakeBlocks is a cache over sparse files, with an origin that makes the bytes
// up as [content] says.
type fakeBlocks struct {
	names *fakeNames
	dir   string
	full  bool // admits nothing

	mu      sync.Mutex
	present map[covey.ObjectID]map[int]bool
	down    error
	hang    chan struct{} // Get waits until it is closed
	asked   []covey.Locator
	forgone []covey.Locator
	exact   int64 // bytes of exact ranges
	fetched []covey.Locator

	open  atomic.Int64 // handles that were not released
	local atomic.Int64
	gets  atomic.Int64
	waits atomic.Int64 // Gets that hang now
}

func newFakeBlocks(t testing.TB, names *fakeNames) *fakeBlocks {
	return newFakeBlocksIn(t.TempDir(), names)
}

func newFakeBlocksIn(dir string, names *fakeNames) *fakeBlocks {
	return &fakeBlocks{names: names, dir: dir, present: map[covey.ObjectID]map[int]bool{}}
}

func (f *fakeBlocks) file(o covey.Object) string { return filepath.Join(f.dir, o.ID().String()) }

func (f *fakeBlocks) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

func (f *fakeBlocks) admitNothing() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = true
}

func (f *fakeBlocks) block(hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = hang
}

// fetch brings one block from the "origin": only the current version exists.
func (f *fakeBlocks) fetch(l covey.Locator) ([]byte, error) {
	f.mu.Lock()
	err := f.down
	f.fetched = append(f.fetched, l)
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	e, ok := f.names.current(l.Key)
	switch {
	case !ok:
		return nil, covey.ErrNotFound
	case e.Version != l.Version:
		return nil, covey.ErrStale
	}
	data := make([]byte, l.Range().Len)
	content(l.Key, l.Version, l.Range().Off, data)
	return data, nil
}

func (f *fakeBlocks) put(l covey.Locator, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full {
		return nil
	}
	w, err := os.OpenFile(f.file(l.Object), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Truncate(l.Size); err != nil {
		return err
	}
	if _, err := w.WriteAt(data, l.Range().Off); err != nil {
		return err
	}
	id := l.Object.ID()
	if f.present[id] == nil {
		f.present[id] = map[int]bool{}
	}
	f.present[id][l.Index] = true
	return nil
}

// fill makes the whole object present.
func (f *fakeBlocks) fill(t testing.TB, p string) {
	t.Helper()
	e, _ := f.names.current(p)
	o := f.names.Object(p, e)
	for i := range o.Blocks() {
		data := make([]byte, o.BlockRange(i).Len)
		content(p, e.Version, o.BlockRange(i).Off, data)
		if err := f.put(o.Block(i), data); err != nil {
			t.Fatal(err)
		}
	}
}

// evict drops the whole object.
func (f *fakeBlocks) evict(o covey.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.present, o.ID())
	_ = os.Remove(f.file(o))
}

// fakeHandle is a section of a cache file, or of memory.
type fakeHandle struct {
	*io.SectionReader
	f    *fakeBlocks
	file *os.File
	once atomic.Bool
}

func (h *fakeHandle) ReadAt(p []byte, off int64) (int, error) {
	if h.once.Load() {
		return 0, errors.New("read of a released handle")
	}
	return h.SectionReader.ReadAt(p, off)
}
func (h *fakeHandle) Len() int             { return int(h.Size()) }
func (h *fakeHandle) Digest() covey.Digest { return covey.Digest{} }
func (h *fakeHandle) Release() {
	if h.once.Swap(true) {
		panic("released twice")
	}
	if h.file != nil {
		h.file.Close()
	}
	h.f.open.Add(-1)
}

func (f *fakeBlocks) Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error) {
	l := e.Blocks[slot]
	f.mu.Lock()
	hang := f.hang
	have := f.present[l.Object.ID()][l.Index]
	f.mu.Unlock()
	if hang != nil {
		f.waits.Add(1)
		defer f.waits.Add(-1)
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, fmt.Errorf("get %v: %w", l, ctx.Err())
		}
	}
	f.gets.Add(1)
	if have {
		if r, err := os.Open(f.file(l.Object)); err == nil {
			f.open.Add(1)
			return &fakeHandle{SectionReader: io.NewSectionReader(r, l.Range().Off, l.Range().Len), f: f, file: r}, nil
		}
	}
	data, err := f.fetch(l)
	if err == nil {
		err = f.put(l, data)
	}
	if err != nil {
		return nil, fmt.Errorf("get %v: %w", l, err)
	}
	f.open.Add(1)
	return &fakeHandle{SectionReader: io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), f: f}, nil
}

func (f *fakeBlocks) Prefetch(e *covey.Extent, slots covey.Bitmap) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range slots.Slots() {
		f.asked = append(f.asked, e.Blocks[i])
	}
	return slots.Len()
}

// ReadRange reads exactly what is asked for when the cache admits nothing.
func (f *fakeBlocks) ReadRange(_ context.Context, e *covey.Extent, slot int, off int64, p []byte) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := e.Blocks[slot]
	if !f.full || f.present[l.Object.ID()][l.Index] {
		return false, nil
	}
	f.exact += int64(len(p))
	content(l.Key, l.Version, l.Range().Off+off, p)
	return true, f.down
}

func (f *fakeBlocks) Forgo(e *covey.Extent, slots covey.Bitmap) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range slots.Slots() {
		f.forgone = append(f.forgone, e.Blocks[i])
	}
	return slots.Len()
}

func (f *fakeBlocks) takeAsked() []covey.Locator {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.asked
	f.asked = nil
	return asked
}

func (f *fakeBlocks) OpenWhole(o covey.Object) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.Blocks() == 0 || len(f.present[o.ID()]) < o.Blocks() {
		return nil, fmt.Errorf("open %s: %w", o.Key, covey.ErrNotFound)
	}
	return os.Open(f.file(o))
}

func (f *fakeBlocks) CountLocal(n int64) { f.local.Add(n) }
