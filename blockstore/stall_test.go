package blockstore

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// fault 14: the disk takes 30 s for a sync, of blocks or of the index. Nobody who
// admits, reads or lists waits for it; what was admitted meanwhile is durable once
// the disk is back.
func TestDiskStalls(t *testing.T) {
	const stall = 30 * time.Second
	for name, path := range map[string]string{"blocks": "/data/", "index": "/index/"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem := MemFS()
				slow, toggle := delayingFS(mem, path, stall)
				s := mustOpen(t, Options{Dir: "/c", Budget: 1 << 30, FS: slow, SyncEvery: time.Second})
				o, other := object("o", 4*testBlock), object("other", testBlock)
				put(t, s, o.Block(0))
				if err := s.Sync(); err != nil {
					t.Fatal(err)
				}
				toggle.On()
				put(t, s, o.Block(1))
				time.Sleep(2 * time.Second) // the commit has begun, and hangs
				synctest.Wait()

				began := time.Now()
				put(t, s, o.Block(2))
				putAll(t, s, other)
				for i := range 3 {
					wantBlock(t, s, o.Block(i))
				}
				if err := s.Drop(other.Block(0)); err != nil {
					t.Fatal(err)
				}
				if len(dump(s)) != 1 || s.Usage().ReadOnly {
					t.Errorf("while the disk stalls: %v, %+v", dump(s), s.Usage())
				}
				if d := time.Since(began); d > 0 {
					t.Errorf("callers waited %v for the disk", d)
				}
				synctest.Wait()
				s.mu.Lock()
				stalled := s.flushing != nil
				s.mu.Unlock()
				if !stalled {
					t.Fatal("no commit was under way: the test proves nothing")
				}

				toggle.Off()
				time.Sleep(10 * stall)
				after := mustOpen(t, Options{Dir: "/c", Budget: 1 << 30, FS: CrashMemFS(mem, 1, 0)})
				for i := range 3 {
					wantBlock(t, after, o.Block(i))
				}
				wantMissing(t, after, other.Block(0))
				mustClose(t, after)
				mustClose(t, s)
			})
		})
	}
}

// delayingFS delays the syncs of files whose path contains a string.
func delayingFS(fs FS, what string, d time.Duration) (FS, *errorfs.Toggle) {
	toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		if (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) && strings.Contains(op.Path, what) {
			time.Sleep(d)
		}
		return nil
	})}
	return errorfs.Wrap(fs, toggle), toggle
}

// A disk that answers at the very moment at which it is called stalled is not passed by
// for ever: nothing would be waiting for it that could say otherwise.
func TestAnswerAtLastMoment(t *testing.T) {
	for range 10_000 { // of which a few meet the moment
		synctest.Test(t, func(t *testing.T) {
			s := &tier{opts: Options{Dir: "/c"}, log: slog.New(slog.DiscardHandler)}
			s.begin(false)
			s.metrics = newMetrics(s, nil)
			slow := func() error { time.Sleep(stallAfter); return nil }
			var all sync.WaitGroup
			all.Go(func() {
				_, _ = guard(s, func() (int, error) { return 0, slow() }, func(int) {})
			})
			for range maxWriters + 1 {
				all.Go(func() { _ = s.inTurn(slow) })
			}
			all.Wait()
			synctest.Wait()
			if s.stalled() {
				t.Fatalf("reads %v, writes %v: everything was answered, and it is passed by",
					s.reads.stalled.Load(), s.writes.stalled.Load())
			}
		})
	}
}
