package blockstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/covey-cache/covey"
)

// FuzzRecord feeds every decoder of the index. What one accepts it encodes to the
// same bytes again, but for varints that are longer than need be.
func FuzzRecord(f *testing.F) {
	o := object("key", 3*testBlock+1)
	p := presence{group: 7, size: o.Size, blockSize: o.BlockSize, bits: []byte{0b1011}}
	whole := presence{group: 1 << 40, size: 1 << 40, blockSize: covey.DefaultBlockSize, whole: true}
	r := record{digest: covey.Digest{1}, crc: 2, place: covey.Place{Extent: covey.ExtentID{3}, Slot: 63}}
	sealed := r
	sealed.coding = &coding{codec: codecAll, stored: 300, key: KeyID{1}, nonce: [nonceLen]byte{2}, tag: [tagLen]byte{3}}
	packed := r
	packed.coding = &coding{codec: codecZstd, stored: 5}
	coded := p
	coded.coded, coded.use = true, 40
	a := advert{key: blockKey{o.ID(), 5}, place: r.place, digest: r.digest}
	for kind, b := range [][]byte{
		r.encode(), append(extentKey(a.place), a.appendValue(nil)...), p.encode(), encodeObject(o), mark{7, true}.encode(),
	} {
		f.Add(byte(kind), b)
	}
	f.Add(byte(2), whole.encode())
	f.Add(byte(2), coded.encode())
	f.Add(byte(0), sealed.encode())
	f.Add(byte(0), packed.encode())
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		var again []byte
		var err error
		switch kind % 5 {
		case 0:
			var r record
			r, err = parseRecord(b)
			again = r.encode()
		case 1:
			n := min(34, len(b))
			var a advert
			a, err = parseAdvert(b[:n], b[n:])
			again = a.appendValue(extentKey(a.place))
			if err == nil && b[0] != keyExtent {
				again[0] = b[0]
			}
		case 2:
			var p presence
			p, err = parsePresence(b)
			again = p.encode()
			for i := range min(p.object().Blocks(), 1000) {
				if err == nil {
					p.has(i)
				}
			}
		case 3:
			var o covey.Object
			o, err = parseObject(b)
			again = encodeObject(o)
		case 4:
			var m mark
			m, err = parseMark(b)
			again = m.encode()
		}
		if err == nil && !bytes.Equal(again, b) && len(again) >= len(b) {
			t.Errorf("kind %d: %x was read and is %x when written", kind%5, b, again)
		}
	})
}

// FuzzFrame feeds what is read from a slot to the decoder of zstd frames: it never
// yields anything but the wanted number of bytes, and what it accepts is one frame
// of them.
func FuzzFrame(f *testing.F) {
	p, err := newPacker(Compression{mode: compressZstd})
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{1, 100, 5000} {
		f.Add(p.enc.EncodeAll(bytes.Repeat([]byte("covey "), n), nil), 6*n)
	}
	f.Add(p.enc.EncodeAll(make([]byte, 1<<20), nil), 100)
	f.Fuzz(func(t *testing.T, frame []byte, n int) {
		if n < 0 || n > 1<<20 {
			return
		}
		plain := make([]byte, n+1)
		if err := p.unpack(frame, plain[:n:n]); err != nil {
			if !errors.Is(err, covey.ErrCorrupt) {
				t.Errorf("%v does not say that it is corrupt", err)
			}
			return
		}
		again := make([]byte, n)
		if err := p.unpack(p.enc.EncodeAll(plain[:n], nil), again); err != nil || !bytes.Equal(plain[:n], again) {
			t.Errorf("what was read does not come back: %v", err)
		}
	})
}

// FuzzKeys feeds the reader of key files: what it accepts has keys, all different,
// and no error shows any of the text.
func FuzzKeys(f *testing.F) {
	f.Add([]byte(NewKeyLine() + "\n# comment\n\n" + NewKeyLine()))
	f.Add([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n"))
	f.Add([]byte(keyPrefix + "short"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseKeys(text)
		if err != nil {
			if !errors.Is(err, covey.ErrInvalid) || len(err.Error()) > 200 {
				t.Errorf("%v", err)
			}
			return
		}
		if len(k.ids) == 0 || len(k.ids) > maxKeys || len(k.byID) != len(k.ids) {
			t.Errorf("%d keys with %d identifiers", len(k.byID), len(k.ids))
		}
	})
}

// The table agrees with a map, through growth, removal and reuse.
func TestTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	tab := newTable()
	model := map[covey.ObjectID]map[int]bool{}
	var ids []covey.ObjectID
	for range 2000 {
		var id covey.ObjectID
		for i := range id {
			id[i] = byte(rng.Uint32())
		}
		id[0] %= 2 // few buckets, long runs
		ids = append(ids, id)
	}
	for range 60000 {
		id := ids[rng.IntN(len(ids))]
		e := tab.find(&id)
		if (e != nil) != (model[id] != nil) {
			t.Fatalf("found %v, want %v", e, model[id])
		}
		switch {
		case e == nil:
			model[id] = map[int]bool{}
			tab.add(id, 1+int(id[1])) // some over 64
		case rng.IntN(3) == 0:
			delete(model, id)
			tab.remove(e)
		default:
			i := rng.IntN(int(e.blocks))
			if tab.has(e, i) != model[id][i] {
				t.Fatalf("block %d: %v, want %v", i, tab.has(e, i), model[id][i])
			}
			if model[id][i] {
				delete(model[id], i)
				tab.unset(e, i)
			} else {
				model[id][i] = true
				tab.set(e, i)
				tab.mark(e, i)
			}
			if int(e.count) != len(model[id]) || tab.checked(e) != int(e.count) {
				t.Fatalf("count %d, checked %d, want %d", e.count, tab.checked(e), len(model[id]))
			}
		}
	}
	blocks, whole := 0, 0
	for id, m := range model {
		blocks += len(m)
		if len(m) == 1+int(id[1]) {
			whole++
		}
	}
	if tab.objects != len(model) || tab.blocks != blocks || tab.whole != whole {
		t.Errorf("%d objects, %d blocks, %d whole; want %d, %d, %d", tab.objects, tab.blocks, tab.whole, len(model), blocks, whole)
	}
}
