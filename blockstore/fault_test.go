package blockstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// dataPath is where an object's file is.
func dataPath(dir string, o covey.Object) string {
	id := o.ID()
	return filepath.Join(dir, nameData, shardName(id[0]), id.String())
}

// fault 5: power is lost at every single operation of a fixed run: open, admit,
// sync, move, drop, close. Each picture opens, holds what was synced by then, and
// serves no other bytes.
func TestCrashAtEachOperation(t *testing.T) {
	coded := Options{Compress: compression(t, "zstd"), Keys: testKeys(t, 1)}
	for _, run := range []struct {
		keep int
		opts Options
		name string
	}{{0, Options{}, "raw"}, {60, Options{}, "raw"}, {60, coded, "coded"}} {
		keep := run.keep
		t.Run(fmt.Sprintf("%s-keep%d", run.name, keep), func(t *testing.T) {
			opts := run.opts
			opts.Dir, opts.Budget = "/a/b", 1<<30
			mem := MemFS()
			var pictures []*vfs.MemFS
			var durable []int // blocks that must be there, at each picture
			var synced atomic.Int64
			marker := 0 // operations since one on a marker of the index
			point := errorfs.InjectorFunc(func(op errorfs.Op) error {
				n, takes := int(synced.Load()), 1
				if marker++; strings.Contains(op.Path, markerPrefix) {
					marker = 0
				}
				if keep > 0 && marker < 4 {
					takes = 12 // which of several names survives is decided here
				}
				for range takes {
					pictures = append(pictures, CrashMemFS(mem, uint64(len(pictures)), keep))
					durable = append(durable, n)
				}
				return nil
			})
			o := object("text/o", 8*testBlock)
			opts.FS, opts.SyncEvery = errorfs.Wrap(mem, serial(point)), time.Hour
			runTrace(t, opts, o, &synced)
			t.Logf("%d crash points", len(pictures))
			for i, fs := range pictures {
				opts.FS = fs
				s, err := openTier(opts)
				if err != nil {
					t.Fatalf("crash point %d: %v", i, err)
				}
				for j := range o.Blocks() {
					if h, err := s.Get(o.Block(j)); err == nil {
						h.Release()
						wantBlock(t, s, o.Block(j))
					} else if j < durable[i] {
						t.Errorf("crash point %d: block %d was synced and is gone: %v", i, j, err)
					}
				}
				mustClose(t, s)
			}
		})
	}
}

// serial lets one operation at a time through an injector.
func serial(inj errorfs.Injector) errorfs.Injector {
	var mu = make(chan struct{}, 1)
	return errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu <- struct{}{}
		defer func() { <-mu }()
		return inj.MaybeError(op)
	})
}

func runTrace(t *testing.T, opts Options, o covey.Object, synced *atomic.Int64) {
	s := mustOpen(t, opts)
	for i := range o.Blocks() {
		put(t, s, o.Block(i))
		if i%3 == 2 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			synced.Store(int64(i) + 1)
		}
	}
	synced.Store(5)
	if err := s.Drop(o.Block(5)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	mustClose(t, mustOpen(t, opts))
}

// fault 6: the end of a file is gone. The blocks in it are not served; the others
// are.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	o := object("o", 3*testBlock)
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
	putAll(t, s, o)
	mustClose(t, s)
	if err := os.Truncate(dataPath(dir, o), 3*testBlock-100); err != nil {
		t.Fatal(err)
	}
	var bad []int
	s = mustOpen(t, Options{Dir: dir, Budget: 1 << 30, OnCorrupt: func(l covey.Locator) { bad = append(bad, l.Index) }})
	if f, err := s.OpenWhole(o); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("open whole: %v, %v", f, err)
	}
	wantMissing(t, s, o.Block(2))
	wantBlock(t, s, o.Block(0))
	wantBlock(t, s, o.Block(1))
	if fmt.Sprint(bad) != "[2]" {
		t.Errorf("reported corrupt %v, want block 2", bad)
	}
	put(t, s, o.Block(2))
	f, err := s.OpenWhole(o)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// fault 7: one bit of each kind of place in a file flips.
func TestBitFlipInBlock(t *testing.T) {
	dir := t.TempDir()
	o := object("o", 2*testBlock+10)
	for _, off := range []int64{0, testBlock - 1, testBlock, 2 * testBlock, 2*testBlock + 9} {
		s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
		putAll(t, s, o)
		mustClose(t, s)
		flipBit(t, dataPath(dir, o), off)
		s = mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
		for i := range o.Blocks() {
			if r := o.BlockRange(i); off >= r.Off && off < r.End() {
				wantMissing(t, s, o.Block(i))
				if s.Present(extentOf(o, 0)).Has(i) {
					t.Errorf("offset %d: still said to be present", off)
				}
			} else {
				wantBlock(t, s, o.Block(i))
			}
		}
		mustClose(t, s)
	}
}

func flipBit(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// fault 8: a bit flips in a file of the index, at any place of any file, or the
// file is cut short or gone. The store opens, possibly empty, and serves no wrong
// byte.
func TestDamagedIndex(t *testing.T) {
	golden := t.TempDir()
	var objects []covey.Object
	s := mustOpen(t, Options{Dir: golden, Budget: 1 << 30})
	for i := range 40 {
		o := object(fmt.Sprintf("o%d", i), 1000)
		objects = append(objects, o)
		putAll(t, s, o)
		if i == 20 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := s.index.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, s)
	names, err := os.ReadDir(filepath.Join(golden, nameIndex))
	if err != nil {
		t.Fatal(err)
	}
	cold := 0
	damage := map[string]func(path string, size int64){
		"flip at the start":  func(p string, n int64) { flipBit(t, p, 0) },
		"flip in the middle": func(p string, n int64) { flipBit(t, p, n/2) },
		"flip at a third":    func(p string, n int64) { flipBit(t, p, n/3) },
		"flip at the end":    func(p string, n int64) { flipBit(t, p, n-1) },
		"cut short":          func(p string, n int64) { _ = os.Truncate(p, n/2) },
		"gone":               func(p string, _ int64) { _ = os.Remove(p) },
	}
	for _, name := range names {
		info, err := name.Info()
		if err != nil {
			t.Fatal(err)
		}
		for what, harm := range damage {
			if info.Size() == 0 && what != "gone" {
				continue
			}
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
				t.Fatal(err)
			}
			harm(filepath.Join(dir, nameIndex, name.Name()), info.Size())
			if served := surviveDamage(t, name.Name()+" "+what, dir, objects); served == 0 {
				cold++
			}
		}
	}
	if cold == 0 {
		t.Error("no damage had an effect: the test proves nothing")
	}
}

// surviveDamage opens a damaged store twice and returns how many blocks the first
// time served.
func surviveDamage(t *testing.T, what, dir string, objects []covey.Object) (served int) {
	t.Helper()
	for try := range 2 {
		s, err := openTier(Options{Dir: dir, Budget: 1 << 30})
		if err != nil {
			t.Fatalf("%s: open %d: %v", what, try, err)
		}
		for _, o := range objects {
			if h, err := s.Get(o.Block(0)); err == nil {
				h.Release()
				wantBlock(t, s, o.Block(0))
				if try == 0 {
					served++
				}
			} else if !errors.Is(err, covey.ErrNotFound) && !errors.Is(err, covey.ErrUnavailable) {
				t.Errorf("%s: get: %v", what, err)
			}
		}
		_ = s.Close() // may fail on what was damaged
	}
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
	o := object("after", 10)
	putAll(t, s, o)
	wantBlock(t, s, o.Block(0))
	mustClose(t, s)
	return served
}

// fault 9: the index directory is deleted, or is something else. The store starts
// empty, and the old data goes.
func TestIndexGone(t *testing.T) {
	for what, harm := range map[string]func(dir string) error{
		"deleted": func(dir string) error { return os.RemoveAll(filepath.Join(dir, nameIndex)) },
		"a file":  func(dir string) error { return replaceByFile(filepath.Join(dir, nameIndex)) },
		"foreign": func(dir string) error {
			x := filepath.Join(dir, nameIndex)
			if err := os.RemoveAll(x); err != nil {
				return err
			}
			return foreignIndex(x)
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			o := object("o", 2*testBlock)
			s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
			putAll(t, s, o)
			mustClose(t, s)
			if err := harm(dir); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
			wantMissing(t, s, o.Block(0))
			if u := s.Usage(); u.Used != 0 || u.Blocks != 0 {
				t.Errorf("usage %+v, want nothing", u)
			}
			putAll(t, s, o)
			wantBlock(t, s, o.Block(1))
			mustClose(t, s)
			if _, err := os.Stat(filepath.Join(dir, nameTrash)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("old data is still there: %v", err)
			}
			s = mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
			wantBlock(t, s, o.Block(0))
		})
	}
}

func replaceByFile(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("not a directory"), 0o600)
}

// foreignIndex makes a Pebble database of somebody else.
func foreignIndex(dir string) error {
	x, err := openIndex(dir, vfs.Default, true, 0, Options{}.withDefaults().Log)
	if err != nil {
		return err
	}
	return errors.Join(x.db.Set([]byte("user"), []byte("value"), nil), x.close())
}

// mountTmpfs mounts a file system of the given size.
func mountTmpfs(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which mounting a small file system needs; run the tests as root, as .ci/run does")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fault 10: the file system fills up, once by us and once by others. Admission
// stops, reads go on, and the store opens again.
func TestFileSystemFull(t *testing.T) {
	dir := mountTmpfs(t, 24<<20)
	opts := Options{Dir: filepath.Join(dir, "cache"), Budget: 1 << 30}
	s := mustOpen(t, opts)
	o := object("o", 1000*testBlock)
	n := 0
	for ; n < o.Blocks(); n++ {
		b := content(o.Block(n))
		if err := s.Put(o.Block(n), placeOf(o.Block(n)), covey.Sum(b), b); errors.Is(err, covey.ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 || n == o.Blocks() {
		t.Fatalf("%d blocks of 64 KiB fit 24 MiB", n)
	}
	if u := s.Usage(); u.ReadOnly {
		t.Errorf("the reserve was used up: %+v", u)
	}
	// Now somebody else takes the reserve.
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 24<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill: %v", err)
	}
	s.mu.Lock()
	s.room = unlimited // as if nobody had looked since
	s.mu.Unlock()
	b := content(o.Block(n))
	if err := s.Put(o.Block(n), placeOf(o.Block(n)), covey.Sum(b), b); !errors.Is(err, covey.ErrFull) {
		t.Errorf("put on a full file system: %v", err)
	}
	if u := s.Usage(); !u.ReadOnly {
		t.Errorf("usage %+v, want admission stopped", u)
	}
	for i := range n {
		wantBlock(t, s, o.Block(i))
	}
	err := s.Close()
	t.Logf("close on a full file system: %v", err)

	_, err = openTier(opts)
	t.Logf("open on a full file system: %v", err)
	if err != nil && (!errors.Is(err, covey.ErrFull) || strings.Contains(err.Error(), "\n")) {
		t.Errorf("open on a full file system: %v, want one line that wraps ErrFull", err)
	}
	if err := os.Remove(filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, opts)
	for i := range n {
		if s.Present(extentOf(o, i/64)).Has(i % 64) {
			wantBlock(t, s, o.Block(i))
		}
	}
	mustClose(t, s)
}

// faultyFS fails operations of one kind on paths that contain a string.
func faultyFS(fs vfs.FS, what string, err error, kinds ...errorfs.OpKind) (vfs.FS, *errorfs.Toggle) {
	toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		for _, k := range kinds {
			if op.Kind == k && strings.Contains(op.Path, what) {
				return err
			}
		}
		return nil
	})}
	return errorfs.Wrap(fs, toggle), toggle
}

// fault 11: the disk refuses to write, a block or the index.
// fault 13: the disk refuses to sync, a block or the index. What was not
// acknowledged may be gone after the restart, what was is not.
func TestWriteAndSyncErrors(t *testing.T) {
	for _, tc := range []struct {
		name, path string
		kinds      []errorfs.OpKind
		putFails   bool
		keepsNew   bool // the block at hand stays readable until the restart
	}{
		{"block write", "/data/", []errorfs.OpKind{errorfs.OpFileWriteAt}, true, false},
		{"block sync", "/data/", []errorfs.OpKind{errorfs.OpFileSync}, false, false},
		{"index write", "/index/", []errorfs.OpKind{errorfs.OpFileWrite}, false, true},
		{"index sync", "/index/", []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData}, false, true},
		{"index create", "/index/", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpRename}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := MemFS()
			fs, toggle := faultyFS(mem, tc.path, syscall.EIO, tc.kinds...)
			s := mustOpen(t, Options{Dir: "/c", Budget: 1 << 30, FS: fs, SyncEvery: time.Hour})
			old, late := object("old", 2*testBlock), object("late", testBlock)
			putAll(t, s, old)
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			toggle.On()
			b := content(late.Block(0))
			err := s.Put(late.Block(0), placeOf(late.Block(0)), covey.Sum(b), b)
			if (err != nil) != tc.putFails {
				t.Fatalf("put: %v", err)
			}
			if err := s.Sync(); (err == nil) != tc.putFails {
				t.Fatalf("sync: %v", err)
			}
			if err := s.Put(old.Block(0), covey.Place{}, covey.Sum(content(old.Block(0))), content(old.Block(0))); err != nil {
				t.Errorf("put of what is here: %v", err)
			}
			other := object("other", 1)
			if err := s.Put(other.Block(0), covey.Place{}, covey.Sum([]byte("x")), []byte("x")); !errors.Is(err, covey.ErrReadOnly) {
				t.Errorf("put after the fault: %v, want ErrReadOnly", err)
			}
			if !s.Usage().ReadOnly {
				t.Error("usage does not say read-only")
			}
			wantBlock(t, s, old.Block(0))
			wantBlock(t, s, old.Block(1))
			if tc.keepsNew {
				wantBlock(t, s, late.Block(0))
			} else {
				wantMissing(t, s, late.Block(0))
			}
			if n := len(dump(s)); n < 1 {
				t.Errorf("%d extents after the fault", n)
			}
			after := CrashMemFS(mem, 1, 0)
			if err := s.Close(); (err == nil) != tc.putFails {
				t.Errorf("close: %v", err)
			}
			toggle.Off()
			for _, fs := range []vfs.FS{after, mem} {
				s = mustOpen(t, Options{Dir: "/c", Budget: 1 << 30, FS: fs})
				wantBlock(t, s, old.Block(0))
				wantBlock(t, s, old.Block(1))
				if h, err := s.Get(late.Block(0)); err == nil {
					h.Release()
					wantBlock(t, s, late.Block(0))
				}
				mustClose(t, s)
			}
		})
	}
}

// fault 12: the disk cannot read a block back. It is dropped, so that it is
// fetched again; under a handle the read fails and the next Get finds nothing.
func TestReadErrors(t *testing.T) {
	fs, toggle := faultyFS(MemFS(), "/data/", syscall.EIO, errorfs.OpFileReadAt)
	opts := Options{Dir: "/c", Budget: 1 << 30, FS: fs}
	o := object("o", 3*testBlock)
	s := mustOpen(t, opts)
	putAll(t, s, o)
	mustClose(t, s)
	s = mustOpen(t, opts)
	h, err := s.Get(o.Block(1))
	if err != nil {
		t.Fatal(err)
	}
	toggle.On()
	wantMissing(t, s, o.Block(0))
	if _, err := h.ReadAt(make([]byte, 10), 0); !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("read under a handle: %v", err)
	}
	toggle.Off()
	h.Release()
	wantMissing(t, s, o.Block(1))
	for i := range o.Blocks() {
		put(t, s, o.Block(i))
		wantBlock(t, s, o.Block(i))
	}
}

// fault 15: the cache directory is read-only. The error says so in one line, and
// callers can tell.
func TestReadOnlyDirectory(t *testing.T) {
	dir := mountTmpfs(t, 8<<20)
	o := object("o", 10)
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 20})
	putAll(t, s, o)
	mustClose(t, s)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := openTier(Options{Dir: dir, Budget: 1 << 20})
	if !errors.Is(err, covey.ErrReadOnly) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
		t.Errorf("open: %v, want one line that wraps ErrReadOnly", err)
	}
	_, err = openTier(Options{Dir: filepath.Join(dir, "new"), Budget: 1 << 20})
	if !errors.Is(err, covey.ErrReadOnly) {
		t.Errorf("make: %v", err)
	}
}
