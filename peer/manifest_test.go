package peer

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

// manifestText is a manifest of one object, signed by a node.
func manifestText(t testing.TB, n *node, digests ...covey.Digest) string {
	t.Helper()
	o := covey.Object{Origin: "s3://b", Key: "k", Version: "1", Size: int64(len(digests)) * covey.MinBlockSize, BlockSize: covey.MinBlockSize}
	l := manifestLine{Origin: o.Origin, Key: o.Key, Version: o.Version, Size: o.Size, BlockSize: o.BlockSize}
	for _, d := range digests {
		l.Digests = append(l.Digests, d.String())
	}
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	text := manifestHead + string(b) + "\n"
	sum := sha256.Sum256([]byte(text))
	s, err := n.signManifest(sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + fmt.Sprintf("%s%s %s\n", signaturePlain, s.signer, base64.StdEncoding.EncodeToString(s.bytes))
}

// A manifest is good for the cluster that signed it, whole and unchanged.
func TestManifestSignatures(t *testing.T) {
	key, other := NewClusterKey(), NewClusterKey()
	writer, reader := newNode(t, NetworkOptions{Key: &key}), newNode(t, NetworkOptions{Key: &key})
	issued := newNode(t, NetworkOptions{Record: issue(t, key, "", time.Hour)})
	foreign, alone := newNode(t, NetworkOptions{Key: &other}), newNode(t, NetworkOptions{})
	d := []covey.Digest{covey.Sum([]byte("a")), covey.Sum([]byte("b"))}
	text := manifestText(t, writer, d...)
	open := func(n *node, text string) (*Manifest, error) {
		return readManifest(strings.NewReader(text), n.checkManifest)
	}
	for _, n := range []*node{writer, reader, issued} {
		m, err := open(n, text)
		if err != nil {
			t.Fatal(err)
		}
		o := covey.Object{Origin: "s3://b", Key: "k", Version: "1", Size: 2 * covey.MinBlockSize, BlockSize: covey.MinBlockSize}
		for i := range d {
			if got, ok := m.Digest(o.Block(i)); !ok || got != d[i] {
				t.Errorf("block %d: %v, %v", i, got, ok)
			}
		}
		o.Version = "2"
		if _, ok := m.Digest(o.Block(0)); ok {
			t.Error("another version is listed")
		}
	}
	if _, err := open(alone, manifestText(t, alone, d...)); err != nil {
		t.Errorf("its own, of an agent that is alone: %v", err)
	}
	for name, bad := range map[string]struct {
		n    *node
		text string
		kind error
	}{
		"another cluster's":         {reader, manifestText(t, foreign, d...), covey.ErrDenied},
		"read by a stranger":        {foreign, text, covey.ErrDenied},
		"another agent's own":       {reader, manifestText(t, alone, d...), covey.ErrDenied},
		"an issued member's":        {reader, manifestText(t, issued, d...), covey.ErrDenied},
		"a changed digest":          {reader, strings.Replace(text, d[0].String()[:8], "00000000", 1), covey.ErrDenied},
		"a changed version":         {reader, strings.Replace(text, `"version":"1"`, `"version":"2"`, 1), covey.ErrDenied},
		"cut short":                 {reader, text[:strings.Index(text, signaturePlain)], covey.ErrInvalid},
		"something behind":          {reader, text + "{}\n", covey.ErrInvalid},
		"a digest too few":          {reader, strings.Replace(text, `"`+d[0].String()+`",`, "", 1), covey.ErrInvalid},
		"a digest that is none":     {reader, strings.Replace(text, d[0].String(), "zz", 1), covey.ErrInvalid},
		"a line that is no JSON":    {reader, manifestHead + "x\n", covey.ErrInvalid},
		"empty":                     {reader, "", covey.ErrInvalid},
		"something else":            {reader, "#!/bin/sh\n", covey.ErrInvalid},
		"a signature that is short": {reader, manifestHead + "signature cluster AAAA\n", covey.ErrInvalid},
	} {
		if _, err := open(bad.n, bad.text); !errors.Is(err, bad.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No input is accepted without its signature, or makes the reader take more than
// its share of memory.
func FuzzManifest(f *testing.F) {
	n := newNode(f, NetworkOptions{})
	good := manifestText(f, n, covey.Sum([]byte("a")))
	f.Add([]byte(good))
	f.Add([]byte(manifestHead + `{"size":9223372036854775807,"block_size":1,"digests":[]}` + "\n"))
	f.Add([]byte(manifestHead + "{}\n{}\nsignature cluster " + strings.Repeat("A", 86) + "==\n"))
	f.Add([]byte("signature a b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := readManifest(bytes.NewReader(b), n.checkManifest)
		if err == nil && string(b) != good {
			t.Fatal("accepted what was not signed")
		}
		if err != nil && !errors.Is(err, covey.ErrInvalid) && !errors.Is(err, covey.ErrDenied) {
			t.Fatalf("error of kind %v", err)
		}
	})
}
