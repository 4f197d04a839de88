package blockstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/covey-cache/covey"
)

// fault 7: bits flip under a running store, in blocks that were checked before.
// Verify finds exactly those, and they come back as any other block does.
func TestVerifyFindsBitFlips(t *testing.T) {
	dir := t.TempDir()
	var reported []string
	s := mustOpen(t, Options{
		Dir: dir, Budget: 1 << 30, VerifyRate: 1 << 40,
		OnCorrupt: func(l covey.Locator) { reported = append(reported, fmt.Sprint(l.Key, l.Index)) },
	})
	a, b, c := object("a", 4*testBlock+1), object("b", 3*testBlock), object("c", 10)
	for _, o := range []covey.Object{a, b, c} {
		putAll(t, s, o)
	}
	mustPin(t, s, a)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(t.Context(), nil, nil); err != nil || v != (Verified{Objects: 3, Blocks: 9, Of: 9, Bytes: a.Size + b.Size + c.Size}) {
		t.Errorf("verify of a good store: %+v, %v", v, err)
	}
	flipBit(t, dataPath(dir, a), 2*testBlock+7)
	flipBit(t, dataPath(dir, a), 4*testBlock)
	flipBit(t, dataPath(dir, b), 0)
	steps, last := 0, Verified{}
	v, err := s.Verify(t.Context(), func(o covey.Object) bool { return o.Key != "b" }, func(v Verified) { steps++; last = v })
	if err != nil || v != last || steps != 6 || v != (Verified{Objects: 2, Blocks: 6, Of: 6, Bytes: a.Size + c.Size, Bad: 2}) {
		t.Errorf("verify: %+v after %d steps, the last %+v; %v", v, steps, last, err)
	}
	if fmt.Sprint(reported) != "[a2 a4]" {
		t.Errorf("reported %v, want a2 and a4", reported)
	}
	for i := range a.Blocks() {
		if i == 2 || i == 4 {
			wantMissing(t, s, a.Block(i))
			put(t, s, a.Block(i))
		}
		wantBlock(t, s, a.Block(i))
	}
	if u := s.Usage(); u.Reserved != 0 || u.Blocks != 9 {
		t.Errorf("usage %+v", u)
	}
	if v, err := s.Verify(t.Context(), nil, nil); err != nil || v.Bad != 1 {
		t.Errorf("verify of all: %+v, %v", v, err)
	}
	wantMissing(t, s, b.Block(0))
}

// A block whose checksum agrees with its wrong bytes is found by its digest.
func TestVerifyComparesDigests(t *testing.T) {
	s := mustOpen(t, Options{Dir: "/c", FS: MemFS(), VerifyRate: 1 << 40})
	l, k := object("o", 100).Block(0), blockKey{object("o", 100).ID(), 0}
	put(t, s, l)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	r, err := s.index.block(k)
	if err != nil {
		t.Fatal(err)
	}
	r.digest[0] ^= 1
	if err := s.index.write(func(b *pebble.Batch) error { return b.Set(k.append(nil), r.encode(), nil) }); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(t.Context(), nil, nil); err != nil || v.Bad != 1 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	wantMissing(t, s, l)
}

// fault 12: the disk cannot read some blocks back.
func TestVerifyOnFailingDisk(t *testing.T) {
	bad := object("bad", 2*testBlock)
	fs, toggle := faultyFS(MemFS(), bad.ID().String(), syscall.EIO, errorfs.OpFileReadAt)
	s := mustOpen(t, Options{Dir: "/c", FS: fs, VerifyRate: 1 << 40})
	good := object("good", 2*testBlock)
	putAll(t, s, good)
	putAll(t, s, bad)
	toggle.On()
	if v, err := s.Verify(t.Context(), nil, nil); err != nil || v.Unreadable != 2 || v.Bad != 0 || v.Blocks != 4 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	wantMissing(t, s, bad.Block(0))
	wantBlock(t, s, good.Block(1))
}

// Verify keeps to its rate, and ends with its context and with the store.
func TestVerifyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, Options{Dir: "/c", FS: MemFS(), VerifyRate: testBlock})
		o := object("o", 20*testBlock)
		putAll(t, s, o)
		began := time.Now()
		if v, err := s.Verify(t.Context(), nil, nil); err != nil || v.Blocks != 20 {
			t.Errorf("verify: %+v, %v", v, err)
		}
		if d := time.Since(began).Round(time.Second); d != 20*time.Second {
			t.Errorf("20 blocks at one a second took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5500*time.Millisecond)
		defer cancel()
		if v, err := s.Verify(ctx, nil, nil); err == nil || v.Blocks != 5 || strings.Contains(err.Error(), "\n") {
			t.Errorf("verify for 5.5 s: %+v, %v", v, err)
		}
		time.AfterFunc(3500*time.Millisecond, func() { mustClose(t, s) })
		if v, err := s.Verify(t.Context(), nil, nil); !errors.Is(err, covey.ErrUnavailable) || v.Blocks != 3 {
			t.Errorf("verify of a store that closes: %+v, %v", v, err)
		}
	})
}
