package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden is an order as the files in testdata have it: whole when it is short,
// else by its length, its beginning and its digest.
type golden struct {
	Order  []uint32
	Length int
	First  []uint32
	SHA256 string
}

// check compares an order with the golden one.
func (g golden) check(t testing.TB, got []uint32) {
	t.Helper()
	if g.SHA256 == "" {
		if !slices.Equal(got, g.Order) {
			t.Errorf("order\n got %v\nwant %v", got, g.Order)
		}
		return
	}
	if len(got) != g.Length {
		t.Fatalf("order of %d samples, want %d", len(got), g.Length)
	}
	if first := got[:len(g.First)]; !slices.Equal(first, g.First) {
		t.Errorf("order begins with %v, want %v", first, g.First)
	}
	if sum := digest(got); sum != g.SHA256 {
		t.Errorf("order has SHA-256 %s, want %s", sum, g.SHA256)
	}
}

func digest(order []uint32) string {
	h := sha256.New()
	var buf [4096]byte
	for chunk := range slices.Chunk(order, len(buf)/4) {
		for i, x := range chunk {
			binary.LittleEndian.PutUint32(buf[4*i:], x)
		}
		h.Write(buf[:4*len(chunk)])
	}
	return hex.EncodeToString(h.Sum(nil))
}

type permutationCase struct {
	N    uint64
	Seed uint64 `json:",string"`
	golden
}

func readGolden(t testing.TB, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
