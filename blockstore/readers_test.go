package blockstore

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/covey-cache/covey"
)

// waitSwept waits until a tier has cleared out what a crash left.
func waitSwept(t *testing.T, s *tier) {
	t.Helper()
	for range 1000 {
		if !s.unswept.Load() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the tier is not swept")
}

// fault 10: a tier fails and is opened anew under its readers. Neither clearing out what
// the index never heard of, nor a later drop, changes a byte that they read.
func TestReviveUnderReaders(t *testing.T) {
	fs, toggle := faultyFS(MemFS(), "/fast/index/", syscall.EIO,
		errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData)
	opts := twoTiers(fs, 1<<20, 1<<20)
	opts.still, opts.SyncEvery = true, time.Hour
	s := mustOpenStore(t, opts)
	o := object("o", 3*testBlock)
	put(t, s, o.Block(0))
	put(t, s, o.Block(1))
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	put(t, s, o.Block(2))
	toggle.On()
	if err := s.Sync(); err == nil {
		t.Fatal("the index was written: the test proves nothing")
	}
	var held []Handle
	for i := range o.Blocks() {
		h, err := s.Get(o.Block(i))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		held = append(held, h)
	}
	toggle.Off()
	if err := s.Revive("/fast"); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, TierOK, TierOK)
	waitSwept(t, s.shelves[0].at.Load())
	wantMissing(t, s, o.Block(2)) // it was not durable
	if err := s.Drop(o.Block(0)); err != nil {
		t.Fatal(err)
	}
	for i, h := range held {
		got := make([]byte, h.Len())
		if _, err := h.ReadAt(got, 0); err != nil || covey.Sum(got) != h.Digest() {
			t.Errorf("block %d changed under its reader (err %v)", i, err)
		}
	}
	put(t, s, o.Block(2))
	wantBlock(t, s, o.Block(2))
}

// fault 4: an agent is killed just after it gave a whole file to the kernel, and
// before the index heard of its last block; a holder keeps the mount, and the reader.
func TestCrashUnderPassthrough(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	s := mustOpen(t, Options{Dir: dir, SyncEvery: time.Hour})
	o := object("o", 3*testBlock)
	put(t, s, o.Block(0))
	put(t, s, o.Block(1))
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	put(t, s, o.Block(2))
	// What a kill leaves is what the file system has now.
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	after := mustOpen(t, Options{Dir: copied})
	f, err := after.data.descriptor(o.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	waitSwept(t, after)
	wantContent(t, f, o)
	wantMissing(t, after, o.Block(2))
	if err := after.Drop(o.Block(0)); err != nil {
		t.Fatal(err)
	}
	wantContent(t, f, o)
}
