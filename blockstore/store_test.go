package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
)

func TestMain(m *testing.M) {
	runHolder()
	goleak.VerifyTestMain(m)
}

const testBlock = covey.MinBlockSize

func object(key string, size int64) covey.Object {
	return covey.Object{Origin: "s3://bucket", Key: key, Version: "v1", Size: size, BlockSize: testBlock}
}

// content is the bytes of a block, which follow from its name.
func content(l covey.Locator) []byte {
	id := l.ID()
	var seed [32]byte
	copy(seed[:], id[:])
	b := make([]byte, l.Range().Len)
	_, _ = rand.NewChaCha8(seed).Read(b)
	if strings.HasPrefix(l.Key, "text/") { // 2 bits a byte
		for i := range b {
			b[i] = "acgt"[b[i]&3]
		}
	}
	return b
}

// extentOf returns an object's extent number n.
func extentOf(o covey.Object, n int) *covey.Extent {
	var ls []covey.Locator
	for i := n * covey.MaxExtentBlocks; i < min(o.Blocks(), (n+1)*covey.MaxExtentBlocks); i++ {
		ls = append(ls, o.Block(i))
	}
	return covey.NewExtent(ls)
}

func placeOf(l covey.Locator) covey.Place {
	e := extentOf(l.Object, l.Index/covey.MaxExtentBlocks)
	return covey.Place{Extent: e.ID, Slot: uint8(l.Index % covey.MaxExtentBlocks)}
}

func put(t testing.TB, s blocks, l covey.Locator) {
	t.Helper()
	b := content(l)
	if err := s.Put(l, placeOf(l), covey.Sum(b), b); err != nil {
		t.Fatal(err)
	}
}

func putAll(t testing.TB, s blocks, o covey.Object) {
	t.Helper()
	for i := range o.Blocks() {
		put(t, s, o.Block(i))
	}
}

func mustOpen(t testing.TB, o Options) *tier {
	t.Helper()
	s, err := openTier(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustClose(t testing.TB, s io.Closer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// wantBlock checks that the block is here, with its bytes.
func wantBlock(t testing.TB, s blocks, l covey.Locator) {
	t.Helper()
	h, err := s.Get(l)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	got, err := io.ReadAll(io.NewSectionReader(h, 0, int64(h.Len())+1))
	if want := content(l); err != nil || !bytes.Equal(got, want) || h.Digest() != covey.Sum(want) {
		t.Fatalf("block %s has other bytes than were admitted (err %v)", l, err)
	}
}

func wantMissing(t testing.TB, s blocks, l covey.Locator) {
	t.Helper()
	h, err := s.Get(l)
	if err == nil {
		h.Release()
	}
	if !errors.Is(err, covey.ErrNotFound) {
		t.Fatalf("get %s: %v, want ErrNotFound", l, err)
	}
}

// dump is what the directory would hear.
func dump(s *tier) map[covey.ExtentID]string {
	m := map[covey.ExtentID]string{}
	for h := range s.All() {
		m[h.Extent] = fmt.Sprintf("%x %d", uint64(h.Have), len(h.Digests))
		for _, d := range h.Digests {
			m[h.Extent] += fmt.Sprintf(" %x", d[:4])
		}
	}
	return m
}

func TestStoreKeepsBlocks(t *testing.T) {
	for _, kind := range []string{"os", "mem"} {
		t.Run(kind, func(t *testing.T) {
			opts := Options{Dir: t.TempDir() + "/a/b", Budget: 64 << 20}
			if kind == "mem" {
				opts.FS = MemFS()
			}
			s := mustOpen(t, opts)
			large := object("large", 70*testBlock+1)
			small := object("small", 1)
			for i := range large.Blocks() {
				if i != 3 {
					put(t, s, large.Block(i))
				}
			}
			putAll(t, s, small)
			if err := s.PutEmpty(object("empty", 0)); err != nil {
				t.Fatal(err)
			}
			check := func() {
				t.Helper()
				if got, want := s.Present(extentOf(large, 0)), covey.FirstBits(64).Without(3); got != want {
					t.Errorf("present %x, want %x", got, want)
				}
				wantBlock(t, s, small.Block(0))
				wantBlock(t, s, large.Block(70))
				wantBlock(t, s, large.Block(69))
				wantMissing(t, s, large.Block(3))
				wantMissing(t, s, object("small", 2).Block(0))
				u := s.Usage()
				if u.Objects != 3 || u.Whole != 2 || u.Blocks != 71 || u.Used != 69*testBlock+2*unit || u.ReadOnly {
					t.Errorf("usage %+v", u)
				}
			}
			check()
			before := dump(s)
			if len(before) != 3 {
				t.Errorf("%d extents, want 3", len(before))
			}
			mustClose(t, s)
			mustClose(t, s)
			if _, err := s.Get(small.Block(0)); !errors.Is(err, covey.ErrUnavailable) {
				t.Errorf("get after close: %v", err)
			}
			s = mustOpen(t, opts)
			check()
			if after := dump(s); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("after a restart the extents are\n%v, want\n%v", after, before)
			}
			n := 0
			for range s.Objects() {
				n++
			}
			if n != 3 {
				t.Errorf("%d objects, want 3", n)
			}
		})
	}
}
