package testnet_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// fault 33: a holder whose disk lost bits sends wrong bytes again and again. Every
// read is right; after the second lie it is not asked any more.
func TestLyingHolderIsBanned(t *testing.T) {
	files := map[string]int{}
	for i := range 4 {
		files[fmt.Sprint("f", i)] = (3 + i) * blockSize
	}
	m := newMesh(t, files)
	holder, reader := m.agent(t), m.agent(t)
	m.compare(t, holder)
	for i := range 4 {
		flipBit(t, holder.CacheDir(), int64(3+i)*blockSize)
	}
	m.compare(t, reader)
	got := scrape(t, reader)
	if lies := got[`covey_corrupt_blocks_total{source="neighbour"}`]; lies < 2 || got["covey_fetch_banned_peers"] != 1 {
		t.Errorf("%v lies counted, %v peers banned", lies, got["covey_fetch_banned_peers"])
	}
	peers, err := reader.Client().Peers(t.Context())
	if err != nil || len(peers) != 1 || peers[0].BadBlocks < 2 || time.Until(peers[0].Banned) < 9*time.Minute {
		t.Errorf("covey peers says %+v, %v", peers, err)
	}
	log, err := os.ReadFile(reader.LogFile())
	if err != nil || !bytes.Contains(log, []byte("is left out for a while")) {
		t.Errorf("not logged: %v", err)
	}
}

// prefetchManifest brings everything to an agent and has it write a manifest.
func prefetchManifest(t *testing.T, p *testnet.Process, file string) {
	t.Helper()
	j, err := p.Client().Prefetch(t.Context(), gateway.PrefetchRequest{Path: p.Mount(), Manifest: file})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the manifest written", func() bool {
		j, err = p.Client().Job(t.Context(), j.ID)
		return err == nil && j.State != "running"
	})
	if j.State != "done" {
		t.Fatalf("prefetch: %+v", j)
	}
}

// An agent that was given a manifest reads what it lists and nothing else: an
// object that was replaced, or came later, is EIO there while others read it. A
// manifest that was changed is refused.
func TestManifestOfAMesh(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 3*blockSize + 1, "dir/g": 100, "empty": 0})
	writer := m.agent(t)
	file := filepath.Join(m.dir, "manifest")
	prefetchManifest(t, writer, file)
	careful := m.agent(t, "--verify-manifest", file, "--max-age", "0s")
	m.compare(t, careful)

	changed := content("another", 3*blockSize+1)
	if err := os.WriteFile(filepath.Join(m.tree.Root, "f"), changed, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.tree.Root, "late"), []byte("late"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := testnet.ReadTree(m.tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Upload(t.Context(), m.s3, bucket); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "late"} {
		eventually(t, 10*time.Second, name+" is EIO", func() bool {
			_, err := os.ReadFile(filepath.Join(careful.Mount(), name))
			return errors.Is(err, syscall.EIO)
		})
	}
	if got, err := os.ReadFile(filepath.Join(careful.Mount(), "dir", "g")); err != nil || !bytes.Equal(got, content("dir/g", 100)) {
		t.Errorf("a file that is listed: %v", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(m.dir, "forged")
	if err := os.WriteFile(forged, bytes.Replace(text, []byte(`"size":100`), []byte(`"size":101`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = m.Start(t.Context(), testnet.AgentSpec{Args: []string{"--verify-manifest", forged}})
	if err == nil || !strings.Contains(err.Error(), "its signature does not fit") {
		t.Errorf("an agent with a forged manifest: %v", err)
	}
}

// The cluster key and the origin's secret are in nothing that an agent says: its
// log, metrics, status, page, arguments, and what it stores.
func TestSecretsStayInside(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 2 * blockSize})
	proxy := origintest.StartFault(t, m.s3)
	var agents []*testnet.Process
	for range 2 {
		agents = append(agents, m.agentWith(t, testnet.AgentSpec{
			Args:   []string{"--log-level", "debug", "--data-plane", "plain"},
			Mounts: []peer.MountSpec{{Source: proxy.URL(bucket, ""), Dir: filepath.Join(m.dir, fmt.Sprint("s", len(agents)))}},
		}))
	}
	for _, p := range agents {
		m.compare(t, p)
	}
	// Something of everything that goes wrong is said, too.
	proxy.Always("list", origintest.Answer(http.StatusForbidden, "SignatureDoesNotMatch"))
	_, _ = os.ReadFile(filepath.Join(agents[0].Mount(), "no", "such")) // it fails either way
	key, err := os.ReadFile(filepath.Join(m.dir, "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	secrets := [][]byte{bytes.TrimSpace(key), bytes.TrimPrefix(bytes.TrimSpace(key), []byte("covey-cluster-1:"))}
	for _, kv := range m.s3.Env() {
		if _, v, ok := strings.Cut(kv, "AWS_SECRET_ACCESS_KEY="); ok {
			secrets = append(secrets, []byte(v))
		}
	}
	if len(secrets) != 3 || len(secrets[2]) < 8 {
		t.Fatalf("the test knows %d secrets", len(secrets))
	}
	for i, p := range agents {
		said := map[string][]byte{}
		for _, file := range []string{p.LogFile(), fmt.Sprintf("/proc/%d/cmdline", p.PID())} {
			if said[file], err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{"/metrics", "/", "/api/v1/status", "/api/v1/peers", "/api/v1/mounts"} {
			res, err := http.Get("http://" + p.HTTP() + path)
			if err != nil {
				t.Fatal(err)
			}
			said[path], err = io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s, %v", path, res.Status, err)
			}
		}
		if len(said[p.LogFile()]) < 300 {
			t.Errorf("agent %d has hardly said anything", i)
		}
		err := filepath.Walk(p.Dir(), func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() && info.Size() < 1<<20 {
				said[path], err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for where, text := range said {
			for k, s := range secrets {
				if bytes.Contains(text, s) {
					t.Errorf("agent %d: secret %d is in %s", i, k, where)
				}
			}
		}
	}
}
