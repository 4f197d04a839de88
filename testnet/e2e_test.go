package testnet_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// coveyBinary is the program under test, built once by TestMain.
var coveyBinary string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "covey-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	coveyBinary = filepath.Join(dir, "covey")
	args := []string{"build"}
	// With the race detector an agent is ten times slower, and four of them on
	// two cores are no longer a mesh whose origin bytes say anything. Whole
	// agents run under it in virtual time (TestTwentyAgentsInVirtualTime).
	if os.Getenv("COVEY_RACE_AGENTS") != "" {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "-o", coveyBinary, "github.com/covey-cache/covey/cmd/covey")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build covey: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

const bucket = "data"

// mesh is a real S3 server with a data set, and agents around it.
type mesh struct {
	*testnet.Cluster
	s3   *origintest.S3
	tree *testnet.Tree
	dir  string
	// mounts counts the directories made to mount on.
	mounts int
}

// newMesh makes the data set and uploads it; it starts no agent.
func newMesh(t *testing.T, files map[string]int) *mesh {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing; load the module (modprobe fuse), as .ci/run does")
	}
	dir, err := os.MkdirTemp("", "cv")
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{s3: origintest.StartS3(t), dir: dir}
	if err := m.s3.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "source")
	writeFiles(t, source, files)
	if m.tree, err = testnet.ReadTree(source); err != nil {
		t.Fatal(err)
	}
	if err := m.tree.Upload(t.Context(), m.s3, bucket); err != nil {
		t.Fatal(err)
	}
	m.Cluster, err = testnet.NewCluster(testnet.ClusterOptions{Binary: coveyBinary, Dir: dir, Env: m.s3.Env()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Errorf("stop the mesh: %v", err)
		}
		if t.Failed() {
			m.showLogs(t)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *mesh) showLogs(t *testing.T) {
	for _, p := range m.Agents() {
		if b, err := os.ReadFile(p.LogFile()); err == nil {
			t.Logf("%s:\n%s", p.LogFile(), tail(b, 4000))
		}
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// agent starts one more agent with the data set mounted.
func (m *mesh) agent(t *testing.T, args ...string) *testnet.Process {
	t.Helper()
	return m.agentWith(t, testnet.AgentSpec{Args: args})
}

func (m *mesh) agentWith(t *testing.T, spec testnet.AgentSpec) *testnet.Process {
	t.Helper()
	if spec.Mounts == nil {
		m.mounts++
		at := filepath.Join(m.dir, fmt.Sprintf("m%d", m.mounts))
		spec.Mounts = []peer.MountSpec{{Source: m.s3.URL(bucket, ""), Dir: at}}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := m.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	requireMounted(t, p.Mount())
	return p
}

// requireMounted guards against a test that passes on the disk underneath.
func requireMounted(t *testing.T, dir string) {
	t.Helper()
	if fstype, _, ok := mount.Mounted(dir); !ok || fstype != "fuse.covey" {
		t.Fatalf("%s is no mount of covey (%q, %v)", dir, fstype, ok)
	}
}

func (m *mesh) compare(t *testing.T, p *testnet.Process) {
	t.Helper()
	requireMounted(t, p.Mount())
	if err := m.tree.Compare(t.Context(), p.Mount(), 4); err != nil {
		t.Fatal(err)
	}
	requireMounted(t, p.Mount())
}

func (m *mesh) originBytes(t *testing.T) int64 {
	t.Helper()
	n, err := m.s3.GetBytes()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *mesh) originGets(t *testing.T) int64 {
	t.Helper()
	n, err := m.s3.GetCount()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// writeFiles makes files of the given sizes with contents that follow from
// their names.
func writeFiles(t *testing.T, root string, files map[string]int) {
	t.Helper()
	for name, size := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content(name, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func content(name string, size int) []byte {
	var seed [32]byte
	copy(seed[:], name)
	b := make([]byte, size)
	if _, err := rand.NewChaCha8(seed).Read(b); err != nil {
		panic(err) // it never fails
	}
	return b
}

const blockSize = 4 << 20

// someFiles is a data set with every shape that matters: empty, one byte, around
// a block, several blocks, a directory of small ones.
func someFiles() map[string]int {
	files := map[string]int{
		"empty": 0, "one": 1, "block-1": blockSize - 1, "block": blockSize, "block+1": blockSize + 1,
		"large/a.bin": 5*blockSize + 17, "large/b.bin": 20*blockSize + 1, "deep/er/and/deeper/file": 3000,
		"odd name\twith\nlines": 10, "üñí/π": 31,
	}
	for i := range 300 {
		files[fmt.Sprintf("small/%03d.jpg", i)] = 1000 + i*137
	}
	return files
}

func TestColdAgentsReadTheOriginOnce(t *testing.T) {
	m := newMesh(t, someFiles())
	var agents []*testnet.Process
	for range 4 {
		agents = append(agents, m.agent(t))
	}
	errs := make(chan error)
	for _, p := range agents {
		go func() { errs <- m.tree.Compare(t.Context(), p.Mount(), 4) }()
	}
	for range agents {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, p := range agents {
		requireMounted(t, p.Mount())
	}
	if got, most := m.originBytes(t), m.tree.Bytes*102/100; got < m.tree.Bytes || got > most {
		t.Errorf("the origin sent %d bytes for a data set of %d; want at most %d", got, m.tree.Bytes, most)
	}
	var status [4]int64
	for i, p := range agents {
		s, err := p.Client().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(agents)-1 != s.Peers {
			t.Errorf("agent %d has %d peers", i, s.Peers)
		}
		status[i] = s.Fetched.Neighbour
	}
	t.Logf("bytes from neighbours by agent: %v of %d", status, m.tree.Bytes)
	for i, p := range agents {
		x := scrape(t, p)
		t.Logf("agent %d: %v reads without a grant, %v questions held, leases lost: %v expired, %v failed, %v unanswered", i,
			x["covey_origin_overrides_total"], x["covey_directory_held_total"], x[`covey_directory_leases_lost_total{why="expired"}`],
			x[`covey_directory_leases_lost_total{why="failed"}`], x[`covey_directory_leases_lost_total{why="unanswered"}`])
	}
}

func TestNewcomerReadsNothingFromTheOrigin(t *testing.T) {
	m := newMesh(t, someFiles())
	for range 3 {
		m.compare(t, m.agent(t))
	}
	before := m.originGets(t)
	newcomer := m.agent(t)
	m.compare(t, newcomer)
	if got := m.originGets(t) - before; got != 0 {
		t.Errorf("a newcomer beside three full caches made %d GETs", got)
	}
	metrics := scrape(t, newcomer)
	if got := metrics[`covey_fetch_bytes_total{source="origin"}`]; got != 0 {
		t.Errorf("covey_fetch_bytes_total{origin} = %v", got)
	}
	if got := metrics[`covey_fetch_bytes_total{source="neighbour"}`]; int64(got) != m.tree.Bytes {
		t.Errorf("covey_fetch_bytes_total{neighbour} = %v, want %d", got, m.tree.Bytes)
	}
}

func TestRestartFindsTheCache(t *testing.T) {
	m := newMesh(t, someFiles())
	p := m.agent(t)
	m.compare(t, p)
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	before := m.originGets(t)
	again := m.agentWith(t, testnet.AgentSpec{Dir: p.Dir()})
	m.compare(t, again)
	if got := m.originGets(t) - before; got != 0 {
		t.Errorf("a restarted agent with a full cache made %d GETs", got)
	}
}

// A mesh that is restarted as a whole finds its blocks again, wherever they are.
func TestWholeMeshRestartsWarm(t *testing.T) {
	m := newMesh(t, someFiles())
	a, b := m.agent(t), m.agent(t)
	m.compare(t, a)
	for _, p := range []*testnet.Process{a, b} {
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	before := m.originGets(t)
	a = m.agentWith(t, testnet.AgentSpec{Dir: a.Dir()})
	b = m.agentWith(t, testnet.AgentSpec{Dir: b.Dir()})
	m.compare(t, b)
	if got := m.originGets(t) - before; got != 0 {
		t.Errorf("after a restart of all agents, %d GETs for what one of them holds", got)
	}
	m.compare(t, a)
}

func TestWarmReadsArePassedThrough(t *testing.T) {
	m := newMesh(t, someFiles())
	p := m.agent(t)
	m.compare(t, p)
	s, err := p.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !s.Mounts[0].Passthrough {
		if os.Geteuid() != 0 {
			t.Skipf("passthrough needs CAP_SYS_ADMIN: %s", s.Mounts[0].PassthroughWhy)
		}
		t.Fatalf("no passthrough: %s", s.Mounts[0].PassthroughWhy)
	}
	before := s.Mounts[0]
	m.compare(t, p)
	if s, err = p.Client().Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty := uint64(1) // a file without blocks has nothing to pass through
	if got := s.Mounts[0].OpensDaemon - before.OpensDaemon; got > empty {
		t.Errorf("%d warm opens were served by the agent, want at most %d", got, empty)
	}
	if got := s.Mounts[0].OpensPassthrough - before.OpensPassthrough; got != uint64(len(m.tree.Files))-empty {
		t.Errorf("%d warm opens were passed through, want %d", got, len(m.tree.Files)-1)
	}
}

func TestDeletedAndAddedFilesShowAfterTheAge(t *testing.T) {
	m := newMesh(t, map[string]int{"a": 10, "b": 10})
	p := m.agent(t, "--max-age", "200ms")
	m.compare(t, p)
	writeFiles(t, m.tree.Root, map[string]int{"c": 20})
	tree, err := testnet.ReadTree(m.tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	m.tree = tree
	if err := tree.Upload(t.Context(), m.s3, bucket); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the new file shows", func() bool {
		_, err := os.Stat(filepath.Join(p.Mount(), "c"))
		return err == nil
	})
	m.compare(t, p)
}

// eventually polls a condition that another process brings about.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
