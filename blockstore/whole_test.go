package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

func wantWhole(t testing.TB, s interface {
	OpenWhole(covey.Object) (*os.File, error)
}, o covey.Object) *os.File {
	t.Helper()
	f, err := s.OpenWhole(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	wantContent(t, f, o)
	return f
}

func wantContent(t testing.TB, f io.ReaderAt, o covey.Object) {
	t.Helper()
	var want []byte
	for i := range o.Blocks() {
		want = append(want, content(o.Block(i))...)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, o.Size+1))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: other bytes than were admitted (err %v)", o.Key, err)
	}
}

func TestOpenWhole(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Budget: 1 << 30}
	s := mustOpen(t, opts)
	o, empty := object("o", 2*testBlock+1), object("empty", 0)
	put(t, s, o.Block(0))
	put(t, s, o.Block(2))
	if _, err := s.OpenWhole(o); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("open of a part: %v", err)
	}
	put(t, s, o.Block(1))
	if err := s.PutEmpty(empty); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, s, o)
	wantWhole(t, s, empty)
	mustClose(t, s)

	s = mustOpen(t, opts)
	f := wantWhole(t, s, o)
	wantWhole(t, s, empty)
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("the descriptor can be written to")
	}
	// The file was given away: dropping a block must leave it as it is.
	if err := s.Drop(o.Block(1)); err != nil {
		t.Fatal(err)
	}
	for i := range o.Blocks() {
		wantMissing(t, s, o.Block(i))
	}
	putAll(t, s, o)
	wantContent(t, f, o)
	wantWhole(t, s, o)
	if err := s.DropObject(o); err != nil {
		t.Fatal(err)
	}
	wantContent(t, f, o)
	if u := s.Usage(); u.Used != 0 || u.Objects != 1 {
		t.Errorf("usage %+v, want the empty object only", u)
	}
}

// A large object is checked in the background before its file is given away.
func TestOpenWholeLarge(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Budget: 1 << 30}
	o := object("large", checkInline+1)
	o.BlockSize = 16 << 20
	s := mustOpen(t, opts)
	putAll(t, s, o)
	wantWhole(t, s, o)
	mustClose(t, s)
	s = mustOpen(t, opts)
	if _, err := s.OpenWhole(o); !errors.Is(err, covey.ErrNotFound) {
		t.Fatalf("open before the check: %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		f, err := s.OpenWhole(o)
		if err == nil {
			f.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A handle's bytes stay, whatever is dropped and admitted.
func TestHandleOutlivesDrop(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), Budget: 1 << 30})
	o := object("o", 3*testBlock)
	putAll(t, s, o)
	h, err := s.Get(o.Block(1))
	if err != nil {
		t.Fatal(err)
	}
	// Another block of the object goes alone.
	if err := s.Drop(o.Block(0)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, s, o.Block(0))
	wantBlock(t, s, o.Block(1))
	// This one takes the file along, so that it cannot change under the handle.
	if err := s.Drop(o.Block(1)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, s, o.Block(2))
	wrong := bytes.Repeat([]byte("x"), int(testBlock))
	if err := s.Put(o.Block(1), placeOf(o.Block(1)), covey.Sum(wrong), wrong); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	got := make([]byte, testBlock)
	if n, err := h.ReadAt(got, 0); err != nil || n != len(got) || !bytes.Equal(got, content(o.Block(1))) {
		t.Errorf("bytes under the handle changed: %d, %v", n, err)
	}
	if n, err := h.ReadAt(got, testBlock-1); n != 1 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if _, err := h.ReadAt(got, testBlock); !errors.Is(err, io.EOF) {
		t.Errorf("read behind the end: %v", err)
	}
	h.Release()
}

func TestDropPunches(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
	o := object("o", 2*testBlock)
	putAll(t, s, o)
	if err := s.Drop(o.Block(0)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dataPath(dir, o))
	if err != nil || !bytes.Equal(b[:testBlock], make([]byte, testBlock)) || !bytes.Equal(b[testBlock:], content(o.Block(1))) {
		t.Errorf("file after a drop: %v", err)
	}
	if err := s.Drop(o.Block(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dataPath(dir, o)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file after the last drop: %v", err)
	}
	if err := s.Drop(o.Block(1)); err != nil {
		t.Errorf("drop of what is not here: %v", err)
	}
}

func TestBudgetStopsAdmission(t *testing.T) {
	s := mustOpen(t, Options{Dir: "/c", FS: MemFS(), Budget: 2*testBlock + unit})
	o := object("o", 3*testBlock)
	put(t, s, o.Block(0))
	put(t, s, o.Block(2))
	b := content(o.Block(1))
	if err := s.Put(o.Block(1), placeOf(o.Block(1)), covey.Sum(b), b); !errors.Is(err, covey.ErrFull) {
		t.Errorf("put over the budget: %v", err)
	}
	put(t, s, object("small", 1).Block(0))
	if err := s.Drop(o.Block(0)); err != nil {
		t.Fatal(err)
	}
	put(t, s, o.Block(1))
	if u := s.Usage(); u.Used != u.Budget || u.ReadOnly {
		t.Errorf("usage %+v", u)
	}
}

func TestPutRefusesNonsense(t *testing.T) {
	s := mustOpen(t, Options{Dir: "/c", FS: MemFS()})
	l := object("o", 10).Block(0)
	d := covey.Sum(content(l))
	for name, err := range map[string]error{
		"length": s.Put(l, covey.Place{}, d, make([]byte, 9)),
		"slot":   s.Put(l, covey.Place{Slot: 64}, d, make([]byte, 10)),
		"digest": s.Put(l, covey.Place{}, covey.Digest{}, make([]byte, 10)),
		"index":  s.Put(covey.Locator{Object: l.Object, Index: 1}, covey.Place{}, d, nil),
		"empty":  s.PutEmpty(l.Object),
	} {
		if !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for _, o := range []Options{{}, {Dir: "x", Budget: -1}, {Dir: "x", SyncEvery: -1}, {Dir: "x", VerifyRate: -1}, {Dir: "x", Policy: "no"}} {
		if _, err := openTier(o); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("open with %+v: %v", o, err)
		}
	}
}

// Many goroutines put, get, drop and list the same few objects at once.
func TestConcurrentUse(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Budget: 1 << 30, SyncEvery: time.Millisecond}
	s := mustOpen(t, opts)
	objects := []covey.Object{object("a", 1), object("b", 2*testBlock), object("c", 5*testBlock-1)}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 60 {
				o := objects[(i+g)%len(objects)]
				l := o.Block((i * 7 % 5) % o.Blocks())
				switch {
				case i%20 == 19 && g == 0:
					if err := s.DropObject(o); err != nil {
						t.Error(err)
					}
				case i%10 == 9 && g == 1:
					if err := s.Drop(l); err != nil {
						t.Error(err)
					}
				case i%5 == 4:
					for range s.All() {
						s.Present(extentOf(o, 0))
					}
					if f, err := s.OpenWhole(o); err == nil {
						wantContent(t, f, o)
						f.Close()
					}
				default:
					put(t, s, l)
					if h, err := s.Get(l); err == nil {
						b := make([]byte, h.Len())
						if _, err := h.ReadAt(b, 0); err != nil || !bytes.Equal(b, content(l)) {
							t.Errorf("%s: wrong bytes (err %v)", l, err)
						}
						h.Release()
					}
				}
			}
		})
	}
	wg.Wait()
	want := s.Usage()
	mustClose(t, s)
	s = mustOpen(t, opts)
	if got := s.Usage(); got.Blocks != want.Blocks || got.Used != want.Used {
		t.Errorf("after a restart %+v, want %+v", got, want)
	}
	for _, o := range objects {
		for i := range o.Blocks() {
			if s.Present(extentOf(o, 0)).Has(i) {
				wantBlock(t, s, o.Block(i))
			}
		}
	}
}

// The second of two puts of one block waits for the first, and writes nothing.
func TestPutOnce(t *testing.T) {
	r := prometheus.NewRegistry()
	s := mustOpen(t, Options{Dir: "/c", FS: MemFS(), Registry: r})
	l := object("o", testBlock).Block(0)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { put(t, s, l) })
	}
	wg.Wait()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if m.Label[0].GetName() != "tier" || m.Label[0].GetValue() != "/c" {
				t.Errorf("%s has labels %v", f.GetName(), m.Label)
			}
		}
	}
	if got["covey_blockstore_admitted_blocks_total"] != 1 || got["covey_blockstore_bytes"] != 65536 {
		t.Errorf("metrics %v, want one block of 65536 bytes written", got)
	}
	mustClose(t, s)
	mustClose(t, mustOpen(t, Options{Dir: "/d", FS: MemFS(), Registry: r}))
}

// An admitted block is durable SyncEvery later, with nobody asking; an idle store
// commits nothing.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := MemFS()
		s, err := openTier(Options{Dir: "/c", FS: mem, SyncEvery: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		l := object("o", 100).Block(0)
		put(t, s, l)
		for _, tc := range []struct {
			wait time.Duration
			here bool
		}{{2 * time.Second, false}, {2 * time.Second, true}} {
			time.Sleep(tc.wait)
			synctest.Wait()
			after, err := openTier(Options{Dir: "/c", FS: CrashMemFS(mem, 1, 0)})
			if err != nil {
				t.Fatal(err)
			}
			if tc.here {
				wantBlock(t, after, l)
			} else {
				wantMissing(t, after, l)
			}
			mustClose(t, after)
		}
		group := s.group
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.group != group {
			t.Errorf("an idle store committed %d groups", s.group-group)
		}
		mustClose(t, s)
	})
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
	putAll(t, s, object("o", 1))
	mustClose(t, s)
	s = mustOpen(t, Options{Dir: dir, Budget: 1 << 30})
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		want := os.FileMode(0o600)
		if info.IsDir() {
			want = 0o700
		}
		if err == nil && info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
}

// A link planted in the cache directory leads nowhere.
func TestPlantedLinks(t *testing.T) {
	o := object("o", 10)
	id := o.ID()
	for _, where := range []string{nameData, filepath.Join(nameData, shardName(id[0])), filepath.Join(nameData, shardName(id[0]), id.String()), nameIndex} {
		dir, target := t.TempDir(), t.TempDir()
		victim := filepath.Join(target, "victim")
		if err := os.WriteFile(victim, []byte("precious!!"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustClose(t, mustOpen(t, Options{Dir: dir, Budget: 1 << 30}))
		link := filepath.Join(dir, where)
		if strings.HasSuffix(where, id.String()) {
			target = victim
		}
		err := errors.Join(os.RemoveAll(link), os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(target, link))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := openTier(Options{Dir: dir, Budget: 1 << 30}); err == nil {
			b := content(o.Block(0))
			t.Logf("%s: put: %v", where, s.Put(o.Block(0), placeOf(o.Block(0)), covey.Sum(b), b))
			_ = s.Sync() // whether it works is not the question
			mustClose(t, s)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "precious!!" {
			t.Errorf("%s: the file behind the link is %q, %v", where, b, err)
		}
		if names, err := os.ReadDir(filepath.Dir(victim)); err != nil || len(names) != 1 {
			t.Errorf("%s: files were made behind the link: %v, %v", where, names, err)
		}
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	for name, body := range map[string]string{"holiday.jpg": "x", nameFormat: "covey-blockstore 3\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openTier(Options{Dir: dir})
		if !errors.Is(err, covey.ErrInvalid) || strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%s: %v, want one line that wraps ErrInvalid", name, err)
		}
		t.Log(err)
	}
}
