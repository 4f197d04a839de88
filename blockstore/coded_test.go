package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/covey-cache/covey"
)

func compression(t testing.TB, s string) Compression {
	t.Helper()
	c, err := ParseCompression(s)
	if err != nil || c.String() != s {
		t.Fatalf("%q is %v: %v", s, c, err)
	}
	return c
}

// testKeys makes keys of the given numbers; the first writes.
func testKeys(t testing.TB, numbers ...byte) *Keys {
	t.Helper()
	var text strings.Builder
	for _, n := range numbers {
		fmt.Fprintf(&text, "# key %d\n%s\n\n", n, strings.Repeat(fmt.Sprintf("%02x", n), keyLen))
	}
	k, err := ParseKeys([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// codings are the forms that a store can be told to keep blocks in.
func codings(t testing.TB) map[string]Options {
	return map[string]Options{
		"zstd":      {Compress: compression(t, "zstd")},
		"auto":      {Compress: compression(t, "auto")},
		"key":       {Keys: testKeys(t, 1)},
		"zstd+key":  {Compress: compression(t, "zstd:9"), Keys: testKeys(t, 1)},
		"auto+keys": {Compress: compression(t, "auto"), Keys: testKeys(t, 2, 1)},
	}
}

// What goes into a store in any form comes out, before and after a restart, also
// under another form; raw objects can be passed through and no others.
func TestCodings(t *testing.T) {
	text, noise, short := object("text/a", 5*testBlock+77), object("noise", 3*testBlock+5), object("text/short", 3)
	objects := []covey.Object{text, noise, short}
	for name, opts := range codings(t) {
		t.Run(name, func(t *testing.T) {
			opts.Dir, opts.Budget, opts.VerifyRate = t.TempDir(), 1<<30, 1<<40
			s := mustOpen(t, opts)
			mustPin(t, s, text)
			for _, o := range objects {
				putAll(t, s, o)
			}
			check := func(when string) {
				t.Helper()
				for _, o := range objects {
					for i := range o.Blocks() {
						wantBlock(t, s, o.Block(i))
					}
				}
				if v, err := s.Verify(t.Context(), nil, nil); err != nil || v.Bad+v.Unreadable != 0 || v.Blocks != 11 {
					t.Errorf("%s: verify: %+v, %v", when, v, err)
				}
				if du, err := s.Du(nil); err != nil || du.Used != s.Usage().Used || du.Missing != 0 || s.Usage().Reserved != 0 {
					t.Errorf("%s: du %+v, %v; usage %+v", when, du, err, s.Usage())
				}
			}
			check("put")
			packed := opts.Compress.mode != compressOff
			if used := s.Stat(text).Used; (used <= DiskUse(text)/2) != packed {
				t.Errorf("text takes %d of %d bytes", used, DiskUse(text))
			}
			if used := s.Stat(noise).Used; used != DiskUse(noise) {
				t.Errorf("noise takes %d of %d bytes", used, DiskUse(noise))
			}
			for _, o := range objects {
				f, err := s.OpenWhole(o)
				raw := opts.Keys == nil && o != text
				if (err == nil) != raw || err != nil && !errors.Is(err, covey.ErrNotFound) {
					t.Errorf("open %s: %v, want a descriptor: %v", o.Key, err, raw)
				}
				if err == nil {
					f.Close()
				}
				checkHoles(t, opts, s, o)
			}
			mustClose(t, s)
			s = mustOpen(t, opts)
			check("after a restart")
			mustClose(t, s)
			other := opts
			other.Compress = Compression{}
			s = mustOpen(t, other)
			check("with another form")
			var freed int64
			if err := s.Unpin(text); err != nil {
				t.Fatal(err)
			}
			for _, l := range []covey.Locator{text.Block(2), noise.Block(1)} {
				if err := s.Drop(l); err != nil {
					t.Fatal(err)
				}
			}
			used := s.Usage().Used
			for _, o := range objects {
				n, err := s.Evict(o)
				if err != nil {
					t.Fatal(err)
				}
				freed += n
			}
			if u := s.Usage(); freed != used || u.Used != 0 || u.Reserved != 0 {
				t.Errorf("%d of %d bytes were freed: %+v", freed, used, u)
			}
		})
	}
}

// The first block of an object that says anything decides whether it is compressed,
// whichever comes first, and after a restart as well.
func TestAutoSamplesObjectsOnce(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Budget: 1 << 30, Compress: compression(t, "auto")}
	s := mustOpen(t, opts)
	text := object("text/a", 4*testBlock+5)
	mixed := object("text/mixed", 4*testBlock)
	noise := content(object("noise", testBlock).Block(0))
	putAs := func(l covey.Locator, b []byte) {
		t.Helper()
		if err := s.Admit(l, placeOf(l), b); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, text.Block(4))
	put(t, s, text.Block(0))
	putAs(mixed.Block(2), noise)
	put(t, s, mixed.Block(0))
	mustClose(t, s)
	s = mustOpen(t, opts)
	put(t, s, text.Block(1))
	put(t, s, mixed.Block(1))
	if st := s.Stat(text); st.Used > st.Plain/2 {
		t.Errorf("an object whose last, short block came first: %+v", st)
	}
	if st := s.Stat(mixed); st.Used != st.Plain {
		t.Errorf("an object whose first block did not pack: %+v", st)
	}
}

// checkHoles compares what the file takes with what the store counts, and looks for
// plain bytes where there should be none.
func checkHoles(t *testing.T, opts Options, s *tier, o covey.Object) {
	t.Helper()
	b, err := os.ReadFile(dataPath(opts.Dir, o))
	if err != nil {
		t.Fatal(err)
	}
	plain := content(o.Block(0))
	if n := min(len(plain), 64); opts.Keys != nil && n > 16 && bytes.Contains(b, plain[:n]) {
		t.Errorf("%s is in the clear on disk", o.Key)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dataPath(opts.Dir, o), &st); err != nil {
		t.Fatal(err)
	}
	if used := s.Stat(o).Used; st.Blocks*512 > used+unit {
		t.Errorf("%s: the file takes %d bytes, counted are %d", o.Key, st.Blocks*512, used)
	}
}

// Small random reads of a coded block decode it once; the memory has a bound, and
// what was evicted under a reader is still read.
func TestDecodedBlocksAreKept(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), Budget: 1 << 30, Compress: compression(t, "zstd"), DecodedBytes: 3 * testBlock})
	o := object("text/o", 8*testBlock)
	putAll(t, s, o)
	h, err := s.Get(o.Block(0))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	want := content(o.Block(0))
	for i := range 100 {
		var b [100]byte
		off := int64(i * 599)
		if n, err := h.ReadAt(b[:], off); n != len(b) || err != nil || !bytes.Equal(b[:], want[off:off+100]) {
			t.Fatalf("read at %d: %d, %v", off, n, err)
		}
	}
	if st := s.coder.decoded.stats(); st.misses != 1 || st.hits != 99 || st.size != testBlock {
		t.Errorf("%+v after 100 reads of one block", st)
	}
	for i := range o.Blocks() {
		wantBlock(t, s, o.Block(i))
	}
	if st := s.coder.decoded.stats(); st.size != 3*testBlock {
		t.Errorf("%d bytes are kept, the bound is %d", st.size, 3*testBlock)
	}
	if _, err := s.Evict(o); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, len(want)); true {
		if n, err := h.ReadAt(b, 0); n != len(want) || err != nil || !bytes.Equal(b, want) {
			t.Errorf("read of an evicted block: %d, %v", n, err)
		}
	}
}

// fault 7: bits flip in blocks that are compressed, encrypted, or both, and blocks
// are cut short. None is served.
func TestCodedBitFlips(t *testing.T) {
	o := object("text/o", 3*testBlock)
	for name, opts := range codings(t) {
		t.Run(name, func(t *testing.T) {
			bad := 0
			opts.Dir, opts.Budget = t.TempDir(), 1<<30
			opts.OnCorrupt = func(covey.Locator) { bad++ }
			s := mustOpen(t, opts)
			for i := range o.Blocks() {
				put(t, s, o.Block(i))
				if err := s.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, s)
			flipBit(t, dataPath(opts.Dir, o), 0)
			if err := os.Truncate(dataPath(opts.Dir, o), 2*testBlock+5); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, opts)
			wantMissing(t, s, o.Block(0))
			wantBlock(t, s, o.Block(1))
			wantMissing(t, s, o.Block(2))
			if bad != 2 {
				t.Errorf("%d blocks reported, want 2", bad)
			}
			put(t, s, o.Block(0))
			wantBlock(t, s, o.Block(0))
			// Under a handle, too.
			h, err := s.Get(o.Block(1))
			if err != nil {
				t.Fatal(err)
			}
			flipBit(t, dataPath(opts.Dir, o), testBlock+9)
			s.coder.decoded = newDecodedCache(0) // forget what was decoded
			if n, err := h.ReadAt(make([]byte, 10), 0); err == nil {
				t.Errorf("read of %d bytes that had flipped", n)
			}
			h.Release()
			wantMissing(t, s, o.Block(1))
		})
	}
}

// A block that is moved to another slot or another object, with its record, does
// not open there.
func TestSealedBlocksStayInTheirPlace(t *testing.T) {
	c := &coder{keys: testKeys(t, 1)}
	var err error
	if c.pack, err = newPacker(compression(t, "zstd")); err != nil {
		t.Fatal(err)
	}
	k := blockKey{object("text/a", 1).ID(), 3}
	data := content(object("text/a", testBlock).Block(0))
	for _, compress := range []bool{false, true} {
		r := record{}
		var buf *buffer
		if r.coding, buf, err = c.encode(k, data, compress); err != nil {
			t.Fatal(err)
		}
		r.crc = crcOf(buf.b)
		file := bytes.NewReader(bytes.Clone(buf.b))
		plain := make([]byte, len(data))
		if err := c.decode(k, &r, file, 0, plain); err != nil || !bytes.Equal(plain, data) {
			t.Fatalf("decode: %v", err)
		}
		for what, change := range map[string]func(*blockKey, *record){
			"another slot":   func(k *blockKey, _ *record) { k.index++ },
			"another object": func(k *blockKey, _ *record) { k.id[0] ^= 1 },
			"another nonce":  func(_ *blockKey, r *record) { r.coding.nonce[5] ^= 1 },
			"another tag":    func(_ *blockKey, r *record) { r.coding.tag[5] ^= 1 },
			"another form":   func(_ *blockKey, r *record) { r.coding.codec ^= codecZstd },
		} {
			k, r := k, r
			other := *r.coding
			r.coding = &other
			change(&k, &r)
			if err := c.decode(k, &r, file, 0, plain); !errors.Is(err, errMismatch) {
				t.Errorf("%s: %v, want a mismatch", what, err)
			}
		}
		again, buf2, err := c.encode(k, data, compress)
		if err != nil || again.nonce == r.coding.nonce || bytes.Equal(buf2.b, buf.b) {
			t.Errorf("the same block encrypts to the same bytes twice (%v)", err)
		}
	}
}

// Frames that are not what was stored are corruption, and cost no more memory than
// the block.
func TestZstdFramesAreChecked(t *testing.T) {
	p, err := newPacker(compression(t, "zstd"))
	if err != nil {
		t.Fatal(err)
	}
	plain := content(object("text/a", testBlock).Block(0))
	buf := getBuffer(0)
	if !p.pack(plain, buf) {
		t.Fatal("text does not pack")
	}
	frame := buf.b
	got := make([]byte, len(plain))
	if err := p.unpack(frame, got); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("unpack: %v", err)
	}
	dict, err := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(7, plain), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	enc, err := newEncoder(zstd.SpeedFastest)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"bomb":             enc.EncodeAll(make([]byte, 64<<20), nil),
		"one byte more":    enc.EncodeAll(make([]byte, len(plain)+1), nil),
		"one byte less":    enc.EncodeAll(make([]byte, len(plain)-1), nil),
		"wrong dictionary": dict.EncodeAll(plain, nil),
		"trailing byte":    append(bytes.Clone(frame), 0),
		"trailing frame":   append(bytes.Clone(frame), enc.EncodeAll([]byte("x"), nil)...),
		"skippable before": append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9}, frame...),
		"skippable behind": append(bytes.Clone(frame), 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9),
		"cut short":        frame[:len(frame)-1],
		"empty":            nil,
		"not a frame":      []byte("hello, world"),
	} {
		clear(got)
		allocs := testing.AllocsPerRun(1, func() { err = p.unpack(bad, got) })
		if !errors.Is(err, covey.ErrCorrupt) {
			t.Errorf("%s: %v, want corruption", what, err)
		}
		if allocs > 100 {
			t.Errorf("%s: %.0f allocations", what, allocs)
		}
	}
}

// A store opens with the keys it was written with, in any order, and with no fewer.
// Without them it says which one is missing, and nothing is lost.
func TestCacheKeys(t *testing.T) {
	dir := t.TempDir()
	a, b := object("a", 2*testBlock), object("text/b", 2*testBlock)
	open := func(k *Keys) *tier {
		t.Helper()
		return mustOpen(t, Options{Dir: dir, Budget: 1 << 30, Keys: k})
	}
	refused := func(k *Keys, missing *Keys) {
		t.Helper()
		_, err := Open(Options{Dir: dir, Budget: 1 << 30, Keys: k})
		if !errors.Is(err, covey.ErrInvalid) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), missing.ids[0].String()) {
			t.Errorf("open with keys %s: %v", k.names(), err)
		}
	}
	s := open(testKeys(t, 1))
	putAll(t, s, a)
	mustClose(t, s)
	refused(nil, testKeys(t, 1))
	refused(testKeys(t, 2), testKeys(t, 1))
	s = open(testKeys(t, 2, 1)) // rotated
	putAll(t, s, b)
	wantBlock(t, s, a.Block(1))
	mustClose(t, s)
	refused(testKeys(t, 1), testKeys(t, 2))
	refused(testKeys(t, 2), testKeys(t, 1))
	s = open(testKeys(t, 3, 2, 1))
	wantBlock(t, s, a.Block(0))
	wantBlock(t, s, b.Block(0))
	if _, err := s.Evict(a); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	s = open(testKeys(t, 2)) // nothing is left under 1 and 3
	wantBlock(t, s, b.Block(1))
	if err := s.DropObject(b); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	s = open(nil)
	putAll(t, s, a)
	mustClose(t, s)
	s = open(testKeys(t, 4)) // what is in the clear stays
	wantBlock(t, s, a.Block(0))
	putAll(t, s, b)
	wantWhole(t, s, a)
	if f, err := s.OpenWhole(b); err == nil {
		f.Close()
		t.Error("an encrypted object was given away")
	}
}

// Key files that are wrong are one line that says what is, and not what is in them.
func TestReadKeys(t *testing.T) {
	line := NewKeyLine()
	secret := line[len(keyPrefix):]
	many := ""
	for range maxKeys + 1 {
		many += NewKeyLine() + "\n"
	}
	for name, tc := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"empty":     {"# nothing\n\n", 0o600, "no key"},
		"short":     {line[:40], 0o600, "not a key"},
		"odd":       {"secret-" + secret, 0o600, "not a key"},
		"twice":     {line + "\n" + line, 0o600, "line 2: the same key twice"},
		"zero":      {strings.Repeat("0", 64), 0o600, "all zeros"},
		"readable":  {line, 0o644, "chmod 600"},
		"too many":  {many, 0o600, "more than 64"},
		"too large": {strings.Repeat("#\n", maxKeyFile), 0o600, "larger than"},
		"a line":    {strings.Repeat("#", 1<<12) + strings.Repeat("x", 1<<13-1) + "\n" + strings.Repeat("y", 1<<13), 0o600, "larger than"},
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(tc.text), tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := ReadKeys(file)
		if err == nil || !errors.Is(err, covey.ErrInvalid) || !strings.Contains(err.Error(), tc.want) ||
			strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadKeys(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) && err == nil {
		t.Errorf("no file: %v", err)
	}
	k, err := ParseKeys([]byte(line + "\n"))
	if err != nil || len(k.IDs()) != 1 {
		t.Fatalf("%v, %v", k.IDs(), err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Contains(s, secret) || strings.Contains(s, fmt.Sprint(k.byID[k.ids[0]])) {
		t.Error("the key is in formatted output")
	}
}
