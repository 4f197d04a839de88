package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// logBuffer keeps what is logged, for tests that count lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// wantState checks the state of each tier.
func wantState(t *testing.T, s *Store, want ...TierState) {
	t.Helper()
	var got []TierState
	for _, u := range s.Tiers() {
		got = append(got, u.State)
		if (u.State == TierOK) != (u.Why == "") || strings.Contains(u.Why, "\n") {
			t.Errorf("tier %s is %q because of %q", u.Dir, u.State, u.Why)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("tiers are %v, want %v: %+v", got, want, s.Tiers())
	}
}

// fault 10, fault 11, fault 13: the fast tier's disk is full or refuses to write or
// to sync. It takes nothing more, says so once, and is read from; new blocks go to
// the slow tier. Once the disk is well the tier comes back by itself, with what was
// durable.
func TestTierFails(t *testing.T) {
	for name, tc := range map[string]struct {
		path  string
		err   error
		kinds []errorfs.OpKind
	}{
		"no space": {"/fast/data/", syscall.ENOSPC, []errorfs.OpKind{errorfs.OpFileWriteAt}},
		"write":    {"/fast/data/", syscall.EIO, []errorfs.OpKind{errorfs.OpFileWriteAt}},
		"sync":     {"/fast/data/", syscall.EIO, []errorfs.OpKind{errorfs.OpFileSync}},
		"index":    {"/fast/index/", syscall.EIO, []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData}},
		"all":      {"/fast/", syscall.EIO, []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs, toggle := faultyFS(MemFS(), tc.path, tc.err, tc.kinds...)
				opts := twoTiers(fs, 1<<20, 1<<20)
				var log logBuffer
				reg := prometheus.NewRegistry()
				opts.Log, opts.Registry = log.logger(), reg
				s := mustOpenStore(t, opts)
				old, late, next := object("old", 2*testBlock), object("late", testBlock), object("next", 2*testBlock)
				putAll(t, s, old)
				if err := s.Sync(); err != nil {
					t.Fatal(err)
				}
				toggle.On()
				putAll(t, s, late) // whichever tier takes it
				_ = s.Sync()       // which finds out, if the write did not
				synctest.Wait()
				wantState(t, s, TierReadOnly, TierOK)
				putAll(t, s, next)
				if got := tierNames(s, next); got != "slow:0 slow:1" {
					t.Errorf("admitted to %q", got)
				}
				wantBlock(t, s, old.Block(0))
				wantBlock(t, s, old.Block(1))
				if n := log.count("admits nothing until"); n != 1 {
					t.Errorf("%d lines say so, want 1", n)
				}
				if n := gaugeOf(t, reg, "/fast"); n != 0 {
					t.Errorf("covey_blockstore_up is %v", n)
				}
				time.Sleep(20 * time.Minute) // it is tried again, and fails
				if name == "all" {
					wantState(t, s, TierReadOnly, TierOK)
					wantBlock(t, s, old.Block(0))
				}

				toggle.Off()
				time.Sleep(maxRevivePause)
				wantState(t, s, TierOK, TierOK)
				if n := gaugeOf(t, reg, "/fast"); n != 1 {
					t.Errorf("covey_blockstore_up is %v", n)
				}
				wantBlock(t, s, old.Block(0))
				wantBlock(t, s, old.Block(1))
				wantBlock(t, s, next.Block(1))
				again := object("again", testBlock)
				putAll(t, s, again)
				if got := tierNames(s, again); got != "fast:0" {
					t.Errorf("admitted to %q", got)
				}
				mustClose(t, s)
			})
		})
	}
}

func gaugeOf(t *testing.T, reg *prometheus.Registry, tier string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "covey_blockstore_up" && m.GetLabel()[0].GetValue() == tier {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no covey_blockstore_up of %s", tier)
	return 0
}

// fault 10: a real file system fills up under the fast tier. Blocks go to the slow
// one, reads go on, and Revive brings the tier back once there is room.
func TestTierFull(t *testing.T) {
	disk := mountTmpfs(t, 24<<20)
	s := mustOpenStore(t, Options{
		Dir: filepath.Join(disk, "fast"), Budget: 20 << 20,
		Slower: []TierOptions{{Dir: t.TempDir(), Budget: 64 << 20}},
	})
	old, late := object("old", 10*testBlock), object("late", testBlock)
	putAll(t, s, old)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(disk, "other")
	if err := os.WriteFile(other, make([]byte, 24<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill: %v", err)
	}
	fast := s.shelves[0].at.Load()
	fast.mu.Lock()
	fast.room = unlimited // as if nobody had looked since
	fast.mu.Unlock()
	putAll(t, s, late)
	if got := filepath.Base(tierDir(s, late)); got == "fast" {
		t.Error("it was admitted to a full file system")
	}
	wantState(t, s, TierReadOnly, TierOK)
	for i := range old.Blocks() {
		wantBlock(t, s, old.Block(i))
	}
	dir := filepath.Join(disk, "fast")
	if err := s.Revive(dir); !errors.Is(err, covey.ErrFull) || strings.Contains(err.Error(), "\n") {
		t.Errorf("revive on a full file system: %v, want one line that wraps ErrFull", err)
	}
	wantState(t, s, TierReadOnly, TierOK)
	wantBlock(t, s, old.Block(0))
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := s.Revive(dir); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, TierOK, TierOK)
	for i := range old.Blocks() {
		wantBlock(t, s, old.Block(i))
	}
	wantBlock(t, s, late.Block(0))
	if err := s.Revive(dir); err != nil {
		t.Errorf("revive a tier that is well: %v", err)
	}
	if err := s.Revive("/none"); !errors.Is(err, covey.ErrNotFound) {
		t.Errorf("revive a tier that is none: %v", err)
	}
}

// tierDir is the directory of the first tier that has any of an object.
func tierDir(s *Store, o covey.Object) string {
	for t := range s.tiers() {
		if t.blocksOf(o.ID()) > 0 {
			return t.opts.Dir
		}
	}
	return ""
}

// fault 15: a tier is on a read-only file system when the store opens. The other
// serves; when all are, a little memory does; a tier that can be written to again
// comes back, with its blocks.
func TestTierReadOnlyAtStart(t *testing.T) {
	disk := mountTmpfs(t, 24<<20)
	dir := filepath.Join(disk, "fast")
	o := object("o", 2*testBlock)
	s := mustOpenStore(t, Options{Dir: dir, Budget: 8 << 20})
	putAll(t, s, o)
	mustClose(t, s)
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", disk, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	s = mustOpenStore(t, Options{Dir: dir, Budget: 8 << 20, Slower: []TierOptions{{Dir: t.TempDir(), Budget: 8 << 20}}})
	wantState(t, s, TierOff, TierOK)
	wantMissing(t, s, o.Block(0))
	put(t, s, o.Block(0))
	wantBlock(t, s, o.Block(0))
	if err := s.Revive(dir); !errors.Is(err, covey.ErrReadOnly) {
		t.Errorf("revive: %v", err)
	}
	mustClose(t, s)

	s = mustOpenStore(t, Options{Dir: dir, Budget: 8 << 20, Spare: 1 << 20})
	wantState(t, s, TierOff, TierOK)
	put(t, s, o.Block(1))
	wantBlock(t, s, o.Block(1))
	remount(0)
	if err := s.Revive(dir); err != nil {
		t.Fatal(err)
	}
	for i := 0; len(s.Tiers()) > 1; i++ { // the memory goes as soon as it is noticed
		if i == 1000 {
			t.Fatalf("the memory stays: %+v", s.Tiers())
		}
		time.Sleep(time.Millisecond)
	}
	wantState(t, s, TierOK)
	wantBlock(t, s, o.Block(0))
	wantBlock(t, s, o.Block(1))
}

// fault 14: the fast tier's disk answers nothing for 30 s. Whoever reads from it or
// writes to it is free within 2 s, what comes after that at once; the slow tier
// serves meanwhile, and the fast one comes back by itself with all it had.
func TestTierStalls(t *testing.T) {
	for name, kinds := range map[string][]errorfs.OpKind{
		"reads":  {errorfs.OpFileReadAt},
		"writes": {errorfs.OpFileWriteAt},
		"both":   {errorfs.OpFileReadAt, errorfs.OpFileWriteAt, errorfs.OpOpen},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var until time.Time // the stall's end
				toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
					for _, k := range kinds {
						if op.Kind == k && strings.HasPrefix(op.Path, "/fast/data/") {
							time.Sleep(time.Until(until))
						}
					}
					return nil
				})}
				opts := twoTiers(errorfs.Wrap(MemFS(), toggle), 100*testBlock, 100*testBlock)
				var log logBuffer
				opts.Log = log.logger()
				s := mustOpenStore(t, opts)
				o, slow := object("o", 4*testBlock), object("slow", 90*testBlock)
				putAll(t, s, o)
				big := object("big", 80*testBlock)
				putAll(t, s, big)
				putAll(t, s, slow)
				if got := tierNames(s, slow)[:4]; got != "slow" {
					t.Fatalf("in %s", got)
				}
				h, err := s.Get(o.Block(0))
				if err != nil {
					t.Fatal(err)
				}
				until = time.Now().Add(30 * time.Second)
				toggle.On()
				began := time.Now()
				within := func(what string, limit time.Duration) {
					t.Helper()
					if took := time.Since(began); took > limit {
						t.Errorf("%s took %v, want at most %v", what, took, limit)
					}
					began = time.Now()
				}
				var all sync.WaitGroup
				if name != "writes" {
					_, err := h.ReadAt(make([]byte, 100), 5)
					if !errors.Is(err, covey.ErrUnavailable) {
						t.Errorf("read under a handle: %v", err)
					}
					within("read under a handle", 2*time.Second)
					if _, err := s.Get(o.Block(1)); !errors.Is(err, covey.ErrUnavailable) {
						t.Errorf("get: %v", err)
					}
					within("get after that", 0)
				} else {
					for i := range maxWriters { // these wait with the disk
						l := object(fmt.Sprint("stuck", i), 1).Block(0)
						all.Go(func() { put(t, s, l) })
					}
					synctest.Wait()
				}
				put(t, s, object("new", testBlock).Block(0))
				within("the first put", 2*time.Second)
				put(t, s, object("new2", testBlock).Block(0))
				within("a put after that", 0)
				if got := tierNames(s, object("new2", testBlock)); got != "slow:0" {
					t.Errorf("admitted to %q", got)
				}
				wantBlock(t, s, slow.Block(7))
				within("get from the other tier", 0)
				wantState(t, s, TierStalled, TierOK)
				if n := log.count("passed by until"); n != 1 {
					t.Errorf("%d lines say so", n)
				}

				time.Sleep(time.Until(until) + time.Second)
				synctest.Wait()
				all.Wait()
				wantState(t, s, TierOK, TierOK)
				if got, err := io.ReadAll(io.NewSectionReader(h, 0, testBlock)); err != nil || !bytes.Equal(got, content(o.Block(0))) {
					t.Errorf("read under the handle: %v", err)
				}
				h.Release()
				for i := range o.Blocks() {
					wantBlock(t, s, o.Block(i))
				}
				mustClose(t, s)
			})
		})
	}
}

// A caller who gave up has its buffer to itself.
func TestStalledReadLeavesBufferAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := MemFS()
		toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && strings.Contains(op.Path, "/data/") {
				time.Sleep(10 * time.Second)
			}
			return nil
		})}
		s := mustOpenStore(t, Options{Dir: "/c", Budget: 1 << 20, FS: errorfs.Wrap(fs, toggle)})
		o := object("o", testBlock)
		putAll(t, s, o)
		h, err := s.Get(o.Block(0))
		if err != nil {
			t.Fatal(err)
		}
		toggle.On()
		buf := bytes.Repeat([]byte("mine"), 100)
		if n, err := h.ReadAt(buf, 0); n != 0 || !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("read: %d, %v", n, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !bytes.Equal(buf, bytes.Repeat([]byte("mine"), 100)) {
			t.Error("the buffer was written to after the read had returned")
		}
		h.Release()
		mustClose(t, s)
	})
}
