package blockstore

import (
	"errors"
	"io"
	"testing"

	"github.com/covey-cache/covey"
)

// BenchmarkCodings admits and reads blocks of 4 MiB in each form: "text" has 2 bits
// a byte, "noise" does not pack. cold decodes each block anew, warm finds it in the
// memory cache, small is a read of 4 KiB of one that is there. Raw is the reference
// of the same run.
func BenchmarkCodings(b *testing.B) {
	auto, zstd := compression(b, "auto"), compression(b, "zstd:1")
	for _, form := range []struct {
		name string
		opts Options
	}{
		{"raw", Options{}},
		{"auto", Options{Compress: auto}},
		{"zstd1", Options{Compress: zstd}},
		{"gcm", Options{Keys: testKeys(b, 1)}},
		{"zstd1+gcm", Options{Compress: zstd, Keys: testKeys(b, 1)}},
	} {
		for _, kind := range []string{"text/", "noise/"} {
			opts := form.opts
			opts.Dir, opts.Budget, opts.DecodedBytes = b.TempDir(), 1<<40, 8<<20
			s := mustOpen(b, opts)
			benchCoding(b, s, form.name+"/"+kind, benchObject(0, 64*covey.DefaultBlockSize), blockContent(kind))
		}
	}
}

// blockContent is a block of the default size.
func blockContent(key string) []byte {
	o := object(key, covey.DefaultBlockSize)
	o.BlockSize = covey.DefaultBlockSize
	return content(o.Block(0))
}

func benchCoding(b *testing.B, s *tier, name string, o covey.Object, data []byte) {
	digest := covey.Sum(data)
	size := int64(len(data))
	b.Run(name+"admit", func(b *testing.B) {
		b.SetBytes(size)
		i := 0
		for b.Loop() {
			if i == o.Blocks() {
				b.StopTimer()
				if err := s.DropObject(o); err != nil {
					b.Fatal(err)
				}
				i = 0
				b.StartTimer()
			}
			if err := s.Put(o.Block(i), covey.Place{Slot: uint8(i)}, digest, data); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
	for i := range 4 {
		if err := s.Put(o.Block(i), covey.Place{Slot: uint8(i)}, digest, data); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, size)
	read := func(b *testing.B, i, n int) {
		h, err := s.Get(o.Block(i))
		if err != nil {
			b.Fatal(err)
		}
		defer h.Release()
		if n, err := h.ReadAt(buf[:n], 0); err != nil && !errors.Is(err, io.EOF) {
			b.Fatal(n, err)
		}
	}
	b.Run(name+"cold", func(b *testing.B) {
		b.SetBytes(size)
		i := 0
		for b.Loop() {
			read(b, i%4, len(buf)) // the memory cache has room for two
			i++
		}
	})
	b.Run(name+"warm", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			read(b, 0, len(buf))
		}
	})
	b.Run(name+"small", func(b *testing.B) {
		for b.Loop() {
			read(b, 0, 4<<10)
		}
	})
}
