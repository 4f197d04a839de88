package testnet_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/testnet"
)

// tieredFiles are 26 MiB in files of one to three blocks.
func tieredFiles() map[string]int {
	files := map[string]int{"small": 100}
	for i := range 4 {
		files[fmt.Sprintf("one/%d", i)] = blockSize / 2
		files[fmt.Sprintf("two/%d", i)] = blockSize + 1<<18
	}
	files["three"] = 2*blockSize + 1
	return files
}

func tiersOf(t *testing.T, p *testnet.Process) []gateway.Tier {
	t.Helper()
	list, err := p.Client().Tiers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// An agent with a fast tier that is smaller than the data set and a slow one that is
// not reads the origin once, fills both, passes files of both through, and has them
// again after a restart. What a neighbour then reads is a replica there.
func TestAgentWithTwoTiers(t *testing.T) {
	m := newMesh(t, tieredFiles())
	slow := filepath.Join(m.dir, "slow")
	spec := testnet.AgentSpec{CacheSize: "12MiB", Args: []string{"--cache", slow + ":64MiB"}}
	p := m.agentWith(t, spec)
	m.compare(t, p)
	read := m.originBytes(t)
	m.compare(t, p)
	if n := m.originBytes(t); n != read {
		t.Errorf("the second epoch read %d bytes of the origin", n-read)
	}
	tiers := tiersOf(t, p)
	if len(tiers) != 2 || tiers[0].Used == 0 || tiers[1].Used == 0 || tiers[0].Used > 12<<20 || tiers[0].State != "ok" {
		t.Fatalf("tiers %+v", tiers)
	}
	du, err := p.Client().Du(t.Context(), p.Mount())
	if err != nil || len(du.Total.Tiers) != 2 || du.Total.Tiers[0].Blocks == 0 || du.Total.Tiers[1].Blocks == 0 ||
		du.Total.Tiers[0].Blocks+du.Total.Tiers[1].Blocks < du.Total.Blocks || du.Total.BlocksReplica != 0 {
		t.Errorf("du %+v, %v", du.Total, err)
	}
	st, err := p.Client().Stat(t.Context(), p.Mount())
	if err != nil || st.FilesCached != st.Files || len(st.Tiers) != 2 || st.BlocksReplica != 0 {
		t.Errorf("stat %+v, %v", st, err)
	}
	loc, err := p.Client().Locate(t.Context(), filepath.Join(p.Mount(), "three"))
	if err != nil || len(loc.Blocks) != 3 || loc.Blocks[0].Tier == "" || loc.Blocks[0].Replica {
		t.Errorf("locate %+v, %v", loc, err)
	}
	other := m.agent(t)
	m.compare(t, other)
	if n := m.originBytes(t); n != read {
		t.Errorf("the neighbour read %d bytes of the origin", n-read)
	}
	if du, err := other.Client().Du(t.Context(), ""); err != nil || du.Total.BlocksReplica != du.Total.Blocks || du.Total.Blocks == 0 {
		t.Errorf("the neighbour's du %+v, %v", du.Total, err)
	}
	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}

	dir := filepath.Dir(p.CacheDir())
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	spec.Dir = dir
	p = m.agentWith(t, spec)
	m.compare(t, p)
	if n := m.originBytes(t); n != read {
		t.Errorf("after a restart %d bytes were read of the origin", n-read)
	}
}

// fault 10: a real file system fills up under the fast tier of an agent. Its mount
// goes on, the tier says what it is, and comes back when it is asked to.
func TestAgentWhoseTierFillsUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which mounting a small tmpfs needs; run the tests as root, as .ci/run does")
	}
	m := newMesh(t, tieredFiles())
	fast := filepath.Join(m.dir, "a1", "cache")
	if err := os.MkdirAll(fast, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("covey-test", fast, "tmpfs", 0, "size=32m"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(fast, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := m.agentWith(t, testnet.AgentSpec{CacheSize: "24MiB", Args: []string{"--cache", filepath.Join(m.dir, "slow") + ":64MiB"}})
	if _, err := os.ReadFile(filepath.Join(p.Mount(), "three")); err != nil {
		t.Fatal(err)
	}
	// Somebody else takes all the room there is.
	filler := filepath.Join(fast, "lost+found") // a name that a file system may have
	if err := os.WriteFile(filler, make([]byte, 32<<20), 0o600); err == nil {
		t.Fatal("32 MiB fit beside what is cached")
	}
	m.compare(t, p)
	m.compare(t, p)
	if tiers := tiersOf(t, p); tiers[1].Used == 0 || tiers[1].State != "ok" {
		t.Errorf("tiers %+v", tiers)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Client().ReviveTier(ctx, fast); err != nil {
		t.Errorf("revive: %v", err)
	}
	if tiers := tiersOf(t, p); tiers[0].State != "ok" {
		t.Errorf("tiers %+v", tiers)
	}
	m.compare(t, p)
}
