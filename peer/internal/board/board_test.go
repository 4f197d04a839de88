package board

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
)

func notice(manifest byte) *Notice {
	return &Notice{
		Manifest: [32]byte{manifest}, Capacity: 1 << 40, Life: 30 * time.Second,
		Jobs: []Job{{
			Spec: plan.Spec{Samples: 1_281_167, World: 1024, Seed: 42, Epoch: 3, Shuffle: true}, Epochs: 90,
			Position: 5000, Ranks: []uint32{8, 9, 10, 11, 12, 13, 14, 15},
		}},
	}
}

func TestMessages(t *testing.T) {
	n := notice(1)
	b, err := AppendNotice(nil, n)
	if err != nil {
		t.Fatal(err)
	}
	// The contract is a few hundred bytes.
	if len(b) > 150 {
		t.Errorf("a notice of one job and eight ranks has %d bytes", len(b))
	}
	got, err := ParseNotice(b)
	if err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("%+v, %v", got, err)
	}
	nodes := []Node{{Peer: "a", Capacity: 7, Jobs: n.Jobs}, {Peer: "b"}}
	if b, err = AppendNodes(nil, nodes); err != nil {
		t.Fatal(err)
	}
	back, err := ParseNodes(b)
	if err != nil || !reflect.DeepEqual(back, nodes) {
		t.Errorf("%+v, %v", back, err)
	}
	for i := range b {
		if _, err := ParseNodes(b[:i]); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

func FuzzNotice(f *testing.F) {
	b, _ := AppendNotice(nil, notice(1))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ParseNotice(b)
		if err != nil {
			return
		}
		again, err := AppendNotice(nil, n)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := ParseNotice(again); err != nil || !reflect.DeepEqual(n, m) {
			t.Fatalf("%+v, then %+v, %v", n, m, err)
		}
	})
}

func FuzzNodes(f *testing.F) {
	b, _ := AppendNodes(nil, []Node{{Peer: "a", Capacity: 7, Jobs: notice(1).Jobs}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if nodes, err := ParseNodes(b); err == nil {
			if _, err := AppendNodes(nil, nodes); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestBoard(t *testing.T) {
	var b Board
	now := time.Unix(1000, 0)
	if others := b.Pin("a", notice(1), now); len(others) != 0 {
		t.Errorf("%v", others)
	}
	if others := b.Pin("b", notice(1), now); len(others) != 1 || others[0].Peer != "a" {
		t.Errorf("%v", others)
	}
	if others := b.Pin("c", notice(2), now); len(others) != 0 {
		t.Errorf("of another manifest: %v", others)
	}
	// Who says nothing for its notice's life is forgotten.
	if others := b.Pin("b", notice(1), now.Add(29*time.Second)); len(others) != 1 {
		t.Errorf("%v", others)
	}
	if others := b.Pin("b", notice(1), now.Add(31*time.Second)); len(others) != 0 {
		t.Errorf("%v", others)
	}
	gone := notice(1)
	gone.Life = 0
	b.Pin("b", gone, now.Add(32*time.Second))
	if others := b.Pin("a", notice(1), now.Add(32*time.Second)); len(others) != 0 {
		t.Errorf("after it was withdrawn: %v", others)
	}
}

func TestBoardIsBounded(t *testing.T) {
	var b Board
	now := time.Unix(1000, 0)
	for i := range maxManifests + 10 {
		n := notice(0)
		n.Manifest = [32]byte{byte(i), byte(i >> 8), 1}
		b.Pin("a", n, now)
	}
	if len(b.told) > maxManifests {
		t.Errorf("%d manifests", len(b.told))
	}
	b = Board{}
	full := map[covey.PeerID]pinned{}
	for i := range MaxNodes {
		full[covey.PeerID(fmt.Sprint(i))] = pinned{ends: now.Add(time.Second)}
	}
	b.told = map[[32]byte]map[covey.PeerID]pinned{notice(1).Manifest: full}
	for _, id := range []covey.PeerID{"new", "0"} {
		if others := b.Pin(id, notice(1), now); len(others) < MaxNodes-1 {
			t.Errorf("%s hears of %d nodes", id, len(others))
		}
	}
	if n := len(b.told[notice(1).Manifest]); n > MaxNodes {
		t.Errorf("%d nodes", n)
	}
}
