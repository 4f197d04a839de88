package testnet_test

import (
	"bytes"
	"os"
	"testing"
)

// A mesh on the plain data plane, and an agent that has tls only among its members:
// every byte is right and each is read from the origin once.
func TestPlainDataPlane(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 8 * blockSize, "g": 100, "dir/h": blockSize + 1})
	holder := m.agent(t, "--data-plane", "plain")
	m.compare(t, holder)
	before := m.originGets(t)
	for _, args := range [][]string{{"--data-plane", "plain"}, nil} {
		reader := m.agent(t, args...)
		m.compare(t, reader)
		s, err := reader.Client().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: "plain", false: "tls"}[args != nil]; s.DataPlane != want {
			t.Errorf("status says %q, want %q", s.DataPlane, want)
		}
		if s.Fetched.Neighbour != m.tree.Bytes {
			t.Errorf("%d bytes from neighbours, want all %d", s.Fetched.Neighbour, m.tree.Bytes)
		}
		log, err := os.ReadFile(reader.LogFile())
		if err != nil || bytes.Contains(log, []byte("plain data plane of a member cannot be reached")) {
			t.Errorf("%v: fell back:\n%s", err, log)
		}
	}
	if got := m.originGets(t) - before; got != 0 {
		t.Errorf("%d GETs for what a neighbour has", got)
	}
}
