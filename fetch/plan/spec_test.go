package plan

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/covey-cache/covey"
)

// TestSpecGolden fixes the encoding; loaders in other languages test against the
// same file.
func TestSpecGolden(t *testing.T) {
	var cases []struct {
		Name    string
		Samples uint64 `json:",string"`
		Seed    uint64 `json:",string"`
		Base    uint64 `json:",string"`
		Epoch   uint32
		World   uint32
		RankMap uint32 `json:"rank_map"`
		Shuffle bool
		Drop    bool `json:"drop_last"`
		Hex     string
	}
	readGolden(t, "spec.json", &cases)
	for _, c := range cases {
		s := Spec{
			Samples: c.Samples, Seed: c.Seed, Base: c.Base, Epoch: c.Epoch, World: c.World,
			RankMap: c.RankMap, Shuffle: c.Shuffle, DropLast: c.Drop,
		}
		got, err := s.MarshalBinary()
		if err != nil || hex.EncodeToString(got) != c.Hex {
			t.Errorf("%s: %x, %v, want %s", c.Name, got, err, c.Hex)
		}
		var back Spec
		if err := back.UnmarshalBinary(got); err != nil || back != s {
			t.Errorf("%s: read back as %+v, %v, want %+v", c.Name, back, err, s)
		}
	}
	if len(cases) == 0 {
		t.Error("no cases")
	}
}

func TestSpecRefuses(t *testing.T) {
	good, err := Spec{Samples: 10, World: 2, Shuffle: true}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"too short":      good[:39],
		"too long":       append(bytes.Clone(good), 0),
		"other version":  change(0, 2),
		"other kind":     change(1, 0),
		"unknown flag":   change(2, 4),
		"flag far up":    change(3, 0x80),
		"no ranks":       change(4, 0),
		"too many ranks": change(7, 2),
		"samples":        change(15, 1),
		"base":           change(31, 1),
	} {
		s := Spec{World: 9}
		if err := s.UnmarshalBinary(b); !errors.Is(err, covey.ErrInvalid) || s.World != 9 {
			t.Errorf("%s: %v, %+v", name, err, s)
		}
	}
	if _, err := (Spec{}).MarshalBinary(); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("zero spec: %v", err)
	}
}

func FuzzSpec(f *testing.F) {
	b, err := Spec{Samples: 7, World: 3, Seed: 9, Epoch: 2, Base: 3, Shuffle: true, DropLast: true}.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Spec
		if s.UnmarshalBinary(b) != nil {
			return
		}
		again, err := s.MarshalBinary()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x was read as %+v, which is %x, %v", b, s, again, err)
		}
		// Every rank's share is whole, and the shares make up what is left.
		left := s.Samples - min(s.Base, s.Samples)
		if total := s.PerRank() * uint64(s.World); total > left+uint64(s.World)-1 || total+uint64(s.World) <= left {
			t.Fatalf("%+v: %d ranks read %d each", s, s.World, s.PerRank())
		}
	})
}
