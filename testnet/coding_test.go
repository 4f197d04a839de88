package testnet_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/testnet"
)

// textFiles is a data set of which half packs well.
func textFiles(t *testing.T, m *mesh) {
	t.Helper()
	for name, size := range map[string]int{"text/large.csv": 3*blockSize + 5, "text/small.csv": 90_000, "text/tiny": 2} {
		path := filepath.Join(m.tree.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		b := content(name, size)
		for i := range b {
			b[i] = "0123,\n45"[b[i]&7]
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := testnet.ReadTree(m.tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	if m.tree = tree; tree.Upload(t.Context(), m.s3, bucket) != nil {
		t.Fatal("upload failed")
	}
}

func writeKey(t *testing.T, m *mesh, name string, lines ...string) string {
	t.Helper()
	file := filepath.Join(m.dir, name)
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// onDisk returns whether the bytes are in any file of the cache, and what its files
// take.
func onDisk(t *testing.T, dir string, plain []byte) (found bool, used int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found = found || bytes.Contains(b, plain)
		var st syscall.Stat_t
		err = syscall.Stat(path, &st)
		used += st.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, used
}

// A cache that is compressed and encrypted serves the same bytes through the mount
// and to neighbours, before and after a restart, and shows none of them on disk.
func TestCompressedAndEncryptedCache(t *testing.T) {
	const first, second = "1111111111111111111111111111111111111111111111111111111111111111", "22222222222222222222222222222222222222222222222222222222222222ff"
	m := newMesh(t, map[string]int{"noise": blockSize + 77, "empty": 0})
	textFiles(t, m)
	key := writeKey(t, m, "key", first)
	p := m.agent(t, "--compress", "zstd", "--cache-key", key)
	m.compare(t, p)
	m.compare(t, p)
	s, err := p.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Mounts[0].OpensPassthrough > 2 { // the empty file
		t.Errorf("%d opens of encrypted objects were passed through", s.Mounts[0].OpensPassthrough)
	}
	plain := content("text/large.csv", 64)
	for i := range plain {
		plain[i] = "0123,\n45"[plain[i]&7]
	}
	for _, b := range [][]byte{plain, content("noise", 64)} {
		if found, used := onDisk(t, p.CacheDir(), b); found || used == 0 || used > m.tree.Bytes*3/4 {
			t.Errorf("in the clear on disk: %v; %d bytes for %d", found, used, m.tree.Bytes)
		}
	}
	before := m.originGets(t)
	neighbour := m.agent(t)
	m.compare(t, neighbour)
	if err := neighbour.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}

	for what, args := range map[string][]string{
		"no key":    nil,
		"wrong key": {"--cache-key", writeKey(t, m, "wrong", second)},
		"no file":   {"--cache-key", filepath.Join(m.dir, "none")},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := m.Start(ctx, testnet.AgentSpec{Dir: p.Dir(), Mounts: p.Mounts(), Args: args})
		cancel()
		if err == nil || !strings.Contains(err.Error(), "key") {
			t.Errorf("%s: the agent started: %v", what, err)
		}
		t.Logf("%s: %v", what, err)
	}
	again := m.agentWith(t, testnet.AgentSpec{
		Dir: p.Dir(), Args: []string{"--cache-key", writeKey(t, m, "rotated", second, first)},
	})
	m.compare(t, again)
	if got := m.originGets(t) - before; got != 0 {
		t.Errorf("%d GETs for what a cache had that was rotated to another key", got)
	}
}

// With auto, what does not pack stays fit for passthrough.
func TestCompressAutoLeavesNoiseRaw(t *testing.T) {
	m := newMesh(t, map[string]int{"noise": blockSize + 77})
	textFiles(t, m)
	p := m.agent(t, "--compress", "auto")
	m.compare(t, p)
	m.compare(t, p)
	s, err := p.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Mounts[0].Passthrough && s.Mounts[0].OpensPassthrough == 0 {
		t.Error("no open was passed through")
	}
	if _, used := onDisk(t, p.CacheDir(), []byte("x")); used > 2*blockSize+m.tree.Bytes/2 {
		t.Errorf("%d bytes on disk for %d", used, m.tree.Bytes)
	}
}

// fault 7: a bit flips on the disk of a running agent. covey verify finds it, and the
// agent fetches the block anew without anybody reading it; from its neighbour, since
// that has it.
func TestVerifyMends(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 3 * blockSize})
	p, neighbour := m.agent(t), m.agent(t)
	m.compare(t, p)
	m.compare(t, neighbour)
	before := m.originGets(t)
	flipBit(t, p.CacheDir(), 3*blockSize)
	job, err := p.Client().Verify(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the verification ends", func() bool {
		j, err := p.Client().Job(t.Context(), job.ID)
		return err == nil && !j.Ended.IsZero()
	})
	eventually(t, 20*time.Second, "the block is back", func() bool {
		st, err := p.Client().Stat(t.Context(), filepath.Join(p.Mount(), "f"))
		return err == nil && st.BlocksCached == st.Blocks
	})
	metrics := scrape(t, p)
	if got := metrics[`covey_corrupt_blocks_total{source="disk"}`]; got != 1 {
		t.Errorf("covey_corrupt_blocks_total{disk} = %v, want 1", got)
	}
	if got := m.originGets(t) - before; got != 0 {
		t.Errorf("%d GETs although the neighbour has the block", got)
	}
	m.compare(t, p)
}
