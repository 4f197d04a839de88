package blockstore

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

// fault 7: the scrubber finds what rotted, in idle time and at its rate, and tells
// what is lost and where it was advertised. It rests while the store is used.
func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := MemFS()
		var mu sync.Mutex
		known := map[covey.Locator]covey.Place{}
		lost := func() map[covey.Locator]covey.Place {
			mu.Lock()
			defer mu.Unlock()
			return maps.Clone(known)
		}
		s, err := Open(Options{Dir: "/c", FS: mem, OnLost: func(l covey.Locator, p covey.Place) {
			mu.Lock()
			defer mu.Unlock()
			known[l] = p
		}})
		if err != nil {
			t.Fatal(err)
		}
		o, small := object("o", 20*testBlock), object("small", 10)
		for _, o := range []covey.Object{o, small} {
			for i := range o.Blocks() {
				if err := s.Admit(o.Block(i), placeOf(o.Block(i)), content(o.Block(i))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		d := fsData{fs: mem, dir: "/c/data"}
		if err := d.write(o.ID(), 7*testBlock+3, []byte("rot")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- s.Scrub(ctx, testBlock) }()
		for range 30 { // somebody reads a block a second
			time.Sleep(time.Second)
			h, err := s.Get(o.Block(0))
			if err != nil {
				t.Fatal(err)
			}
			h.Release()
		}
		if len(lost()) != 0 {
			t.Error("scrubbed while the store was in use")
		}
		for len(lost()) == 0 && time.Since(began) < time.Minute {
			time.Sleep(time.Second)
		}
		if fmt.Sprint(lost()) != fmt.Sprint(map[covey.Locator]covey.Place{o.Block(7): placeOf(o.Block(7))}) {
			t.Errorf("lost %v", lost())
		}
		// An hour later, the next pass.
		if err := d.write(small.ID(), 0, []byte("rot")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(scrubRest + time.Minute)
		if len(lost()) != 2 {
			t.Errorf("lost after two passes: %v", lost())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		go func() { done <- s.Scrub(t.Context(), testBlock) }()
		time.Sleep(time.Second)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("scrub of a store that was closed: %v", err)
		}
	})
}

// A file that is gone takes all of its object's blocks, and each is told.
func TestLostFile(t *testing.T) {
	dir := t.TempDir()
	lost := map[covey.Locator]covey.Place{}
	s := mustOpen(t, Options{Dir: dir, Budget: 1 << 30, OnLost: func(l covey.Locator, p covey.Place) { lost[l] = p }})
	o := object("o", 5*testBlock)
	for _, i := range []int{0, 1, 4} {
		put(t, s, o.Block(i))
	}
	if err := os.Remove(dataPath(dir, o)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, s, o.Block(1))
	if len(lost) != 3 || lost[o.Block(4)] != placeOf(o.Block(4)) {
		t.Errorf("lost %v", lost)
	}
	if _, err := s.Evict(o); err != nil {
		t.Fatal(err)
	}
	put(t, s, o.Block(0))
	if err := s.Drop(o.Block(0)); err != nil || len(lost) != 3 {
		t.Errorf("what was dropped on purpose is told as lost: %v, %v", lost, err)
	}
}

func TestDiskPressure(t *testing.T) {
	for text, want := range map[string]float64{
		"some avg10=12.81 avg60=7.17 avg300=6.38 total=1\nfull avg10=0.00\n": 12.81,
		"":                            0,
		"some avg10=x avg60=1":        0,
		"some avg10=100.00 avg60=1\n": 100,
	} {
		file := filepath.Join(t.TempDir(), "io")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := diskPressure(file); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if got := diskPressure("none"); got != 0 {
		t.Errorf("no file: %v", got)
	}
}
