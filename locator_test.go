package covey_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
)

var update = flag.Bool("update", false, "write testdata anew")

// vector is one entry of testdata/locators.json: what another implementation
// has to reproduce. Strings that are not UTF-8 are given in hexadecimal.
type vector struct {
	Name      string `json:"name"`
	OriginHex string `json:"origin_hex"`
	KeyHex    string `json:"key_hex"`
	Version   string `json:"version"`
	Size      int64  `json:"size"`
	BlockSize int64  `json:"block_size"`
	Index     int    `json:"index"`
	Canonical string `json:"canonical_hex"`
	BlockID   string `json:"block_id_hex"`
	CID       string `json:"cid"`
	ObjectID  string `json:"object_id_hex"`
}

func vectorLocators() map[string]covey.Locator {
	object := func(origin, key, version string, size int64) covey.Object {
		return covey.Object{Origin: origin, Key: key, Version: version, Size: size, BlockSize: covey.DefaultBlockSize}
	}
	large := object("s3://bucket", "shards/train-000.tar", `"9b2cf535f27731c974343645a3985328-12"`, 1<<40)
	large.BlockSize = 16 << 20
	return map[string]covey.Locator{
		"one byte":           object("s3://b", "k", `"e"`, 1).Block(0),
		"exactly one block":  object("s3://b", "k", `"e"`, 4<<20).Block(0),
		"last of two blocks": object("s3://b", "k", `"e"`, 4<<20+1).Block(1),
		"custom endpoint":    object("s3://b?endpoint=http://127.0.0.1:9000", "a/b/c", "v", 100).Block(0),
		"posix":              object("file:///mnt/nfs/data", "tree/file", "100-1700000000000000000-42", 100).Block(0),
		"no version":         object("file:///d", "f", "", 100).Block(0),
		"key not UTF-8":      object("file:///d", "f\xff\xfe", "1", 100).Block(0),
		"unicode key":        object("s3://b", "データ/π.bin", "1", 100).Block(0),
		"large":              large.Block(65535),
	}
}

func TestLocatorVectors(t *testing.T) {
	const file = "testdata/locators.json"
	var got []vector
	for name, l := range vectorLocators() {
		id, object := l.ID(), l.Object.ID()
		got = append(got, vector{
			Name: name, OriginHex: hex.EncodeToString([]byte(l.Origin)), KeyHex: hex.EncodeToString([]byte(l.Key)),
			Version: l.Version, Size: l.Size, BlockSize: l.BlockSize, Index: l.Index,
			Canonical: hex.EncodeToString(l.AppendCanonical(nil)), BlockID: hex.EncodeToString(id[:]),
			CID: id.String(), ObjectID: object.String(),
		})
	}
	slices.SortFunc(got, func(a, b vector) int { return strings.Compare(a.Name, b.Name) })
	if *update {
		b, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != len(got) {
		t.Fatalf("%s has %d vectors, the test %d", file, len(want), len(got))
	}
	byName := map[string]vector{}
	for _, v := range want {
		byName[v.Name] = v
	}
	for _, v := range got {
		if v != byName[v.Name] {
			t.Errorf("%s:\n got %+v\nwant %+v", v.Name, v, byName[v.Name])
		}
	}
}

func TestParseLocatorRoundTrip(t *testing.T) {
	for name, l := range vectorLocators() {
		got, err := covey.ParseLocator(l.AppendCanonical(nil))
		if err != nil || got != l {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, l)
		}
	}
}

func TestParseLocatorRefuses(t *testing.T) {
	good := covey.Object{Origin: "s3://b", Key: "k", Version: "v", Size: 10, BlockSize: covey.DefaultBlockSize}.Block(0)
	enc := good.AppendCanonical(nil)
	alter := func(f func(*covey.Locator)) []byte {
		l := good
		f(&l)
		return l.AppendCanonical(nil)
	}
	nonShortest := append(append([]byte(nil), enc[:len(enc)-1]...), 0x80, 0x00)
	for name, b := range map[string][]byte{
		"empty":                nil,
		"no domain":            enc[1:],
		"truncated":            enc[:len(enc)-1],
		"trailing byte":        append(append([]byte(nil), enc...), 0),
		"long varint":          nonShortest,
		"index out of range":   alter(func(l *covey.Locator) { l.Index = 1 }),
		"tiny blocks":          alter(func(l *covey.Locator) { l.BlockSize = 1 }),
		"huge blocks":          alter(func(l *covey.Locator) { l.BlockSize = covey.MaxBlockSize + 1 }),
		"five TiB in 64 KiB":   alter(func(l *covey.Locator) { l.Size, l.BlockSize = covey.MaxObjectSize, covey.MinBlockSize }),
		"empty object":         alter(func(l *covey.Locator) { l.Size = 0 }),
		"no origin":            alter(func(l *covey.Locator) { l.Origin = "" }),
		"no key":               alter(func(l *covey.Locator) { l.Key = "" }),
		"long key":             alter(func(l *covey.Locator) { l.Key = strings.Repeat("k", covey.MaxKeyLen+1) }),
		"length beyond buffer": append([]byte("covey/locator/1\n"), 0xff, 0x07),
	} {
		if l, err := covey.ParseLocator(b); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%s: got %+v, %v; want ErrInvalid", name, l, err)
		}
	}
}

func FuzzParseLocator(f *testing.F) {
	for _, l := range vectorLocators() {
		f.Add(l.AppendCanonical(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := covey.ParseLocator(b)
		if err != nil {
			return
		}
		if string(l.AppendCanonical(nil)) != string(b) {
			t.Fatalf("%x decodes to %+v, which encodes differently", b, l)
		}
		if r := l.Range(); r.Off < 0 || r.Len <= 0 || r.End() > l.Size {
			t.Fatalf("range %+v outside an object of %d bytes", r, l.Size)
		}
	})
}
