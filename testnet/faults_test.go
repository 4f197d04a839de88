package testnet_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// scrape reads the agent's metrics as Prometheus would.
func scrape(t *testing.T, p *testnet.Process) map[string]float64 {
	t.Helper()
	res, err := http.Get("http://" + p.HTTP() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s, %v", res.Status, err)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if ok {
			name += "}"
		} else {
			name, value, ok = strings.Cut(strings.TrimSpace(line), " ")
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(line, "#") {
			values[name] = v
		}
	}
	return values
}

// fault 1: a holder dies while it is read from; the read still succeeds.
func TestHolderKilledMidRead(t *testing.T) {
	files := map[string]int{}
	for _, name := range []string{"a", "b", "c", "d"} {
		files[name] = 12 * blockSize
	}
	m := newMesh(t, files)
	holder, other, reader := m.agent(t), m.agent(t), m.agent(t)
	m.compare(t, holder)
	read := make(chan error, 1)
	go func() { read <- m.tree.Compare(t.Context(), reader.Mount(), 2) }()
	eventually(t, 20*time.Second, "the reader has bytes from a neighbour", func() bool {
		s, err := reader.Client().Status(t.Context())
		return err == nil && s.Fetched.Neighbour > 0
	})
	if err := holder.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Errorf("reading while the holder died: %v", err)
	}
	m.compare(t, other)
}

// fault 2: an agent is killed under a read; its mount answers ENOTCONN, and a new
// agent mounts over it and is warm.
func TestKilledAgentComesBackWarm(t *testing.T) {
	m := newMesh(t, someFiles())
	p := m.agent(t)
	m.compare(t, p)
	// A crash may lose what was admitted in the last second, and only that.
	time.Sleep(2 * time.Second)
	p.Crash()
	if _, err := os.ReadDir(p.Mount()); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("reading the mount of a dead agent: %v, want ENOTCONN", err)
	}
	before := m.originGets(t)
	again := m.agentWith(t, testnet.AgentSpec{Dir: p.Dir(), Mounts: p.Mounts()})
	m.compare(t, again)
	if got := m.originGets(t) - before; got > 0 {
		t.Errorf("after a crash with a synced cache %d GETs were made", got)
	}
}

// faults 20, 28: the origin goes away. What is cached anywhere in the mesh is
// served; what is not is EIO by the deadline; the mount lives and recovers.
func TestOriginOutage(t *testing.T) {
	m := newMesh(t, map[string]int{"seen": 3 * blockSize, "unseen": 3 * blockSize, "dir/f": 100})
	a, b := m.agent(t, "--read-timeout", "3s"), m.agent(t, "--read-timeout", "3s")
	if _, err := os.ReadDir(b.Mount()); err != nil { // it has listed the root
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(a.Mount(), "seen")); err != nil {
		t.Fatal(err)
	}
	if err := m.s3.Stop(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(b.Mount(), "seen")); err != nil || !bytes.Equal(got, content("seen", 3*blockSize)) {
		t.Errorf("a block that a neighbour holds was not served while the origin was away: %v", err)
	}
	began := time.Now()
	if _, err := os.ReadFile(filepath.Join(b.Mount(), "unseen")); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading what nobody has: %v, want EIO", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("EIO took %v", took)
	}
	if _, err := os.ReadFile(filepath.Join(b.Mount(), "dir", "f")); err == nil || errors.Is(err, syscall.ENOENT) {
		t.Errorf("a file in a directory that was never listed: %v, want an error that is not ENOENT", err)
	}
	if err := m.s3.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "reads succeed when the origin is back", func() bool {
		got, err := os.ReadFile(filepath.Join(b.Mount(), "unseen"))
		return err == nil && bytes.Equal(got, content("unseen", 3*blockSize))
	})
	m.compare(t, b)
}

// fault 24: an object is overwritten between open and read.
func TestObjectReplacedUnderAnOpenFile(t *testing.T) {
	const size = 16 * blockSize
	m := newMesh(t, map[string]int{"f": size})
	p := m.agent(t, "--max-age", "200ms")
	f, err := os.Open(filepath.Join(p.Mount(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first := make([]byte, 4096)
	if _, err := f.ReadAt(first, 0); err != nil || !bytes.Equal(first, content("f", size)[:4096]) {
		t.Fatalf("first read: %v", err)
	}
	replaced := content("another", size)
	if err := os.WriteFile(filepath.Join(m.tree.Root, "f"), replaced, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.tree.Upload(t.Context(), m.s3, bucket); err != nil {
		t.Fatal(err)
	}
	// What was fetched already is the old version; the rest is refused. No read
	// may return a byte of the new one.
	old, stale := content("f", size), 0
	for off := int64(0); off < size; off += blockSize {
		got := make([]byte, blockSize)
		n, err := f.ReadAt(got, off)
		if !bytes.Equal(got[:n], old[off:off+int64(n)]) {
			t.Fatalf("mixed bytes at %d", off)
		}
		if errors.Is(err, syscall.ESTALE) {
			stale++
		} else if err != nil {
			t.Errorf("read at %d: %v, want bytes of the old version or ESTALE", off, err)
		}
	}
	if stale == 0 {
		t.Error("no read was ESTALE: the object was not replaced under the reader")
	}
	eventually(t, 10*time.Second, "a new open sees the new version", func() bool {
		got, err := os.ReadFile(filepath.Join(p.Mount(), "f"))
		return err == nil && bytes.Equal(got, replaced)
	})
}

// flipBit changes one bit of the only cached file of the size, in its second
// block.
func flipBit(t *testing.T, cache string, size int64) {
	t.Helper()
	var err error
	flipped := 0
	// A reader has its bytes before the disk does.
	for deadline := time.Now().Add(5 * time.Second); flipped == 0 && err == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		flipped, err = flipIn(cache, size)
	}
	if err != nil || flipped != 1 {
		t.Fatalf("flipped a bit in %d files: %v", flipped, err)
	}
}

func flipIn(cache string, size int64) (flipped int, err error) {
	err = filepath.Walk(cache, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.Size() != size {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		var b [1]byte
		const at = blockSize + 1234
		if _, err := f.ReadAt(b[:], at); err != nil {
			return err
		}
		b[0] ^= 0x40
		flipped++
		_, err = f.WriteAt(b[:], at)
		return err
	})
	return flipped, err
}

// fault 7: a bit of the cache file flips on disk while no agent runs.
func TestBitFlipOnDisk(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 3 * blockSize})
	p := m.agent(t)
	m.compare(t, p)
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	flipBit(t, p.CacheDir(), 3*blockSize)
	again := m.agentWith(t, testnet.AgentSpec{Dir: p.Dir()})
	m.compare(t, again)
	if got := scrape(t, again)[`covey_corrupt_blocks_total{source="disk"}`]; got != 1 {
		t.Errorf("covey_corrupt_blocks_total{disk} = %v, want 1", got)
	}
}

// fault 33: a neighbour sends a wrong byte. Its disk lost a bit after it had
// checked the block, so that it believes what it sends.
func TestNeighbourSendsAWrongByte(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 3 * blockSize})
	holder, reader := m.agent(t), m.agent(t)
	m.compare(t, holder)
	flipBit(t, holder.CacheDir(), 3*blockSize)
	m.compare(t, reader)
	if got := scrape(t, reader)[`covey_corrupt_blocks_total{source="neighbour"}`]; got != 1 {
		t.Errorf("covey_corrupt_blocks_total{neighbour} = %v, want 1", got)
	}
}

// An agent leaves within 5 s of SIGTERM, with files open on its mount, and
// leaves neither mount nor process.
func TestSIGTERMWithOpenFiles(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 3 * blockSize, "g": 20 * blockSize})
	p := m.agent(t)
	for _, name := range []string{"f", "g"} {
		f, err := os.Open(filepath.Join(p.Mount(), name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("leaving took %v", took)
	}
	requireNotMounted(t, p.Mount())
}

// fault 3: a holder stops answering without closing its connections.
func TestHolderStopped(t *testing.T) {
	m := newMesh(t, map[string]int{"f": 8 * blockSize})
	holder, _, reader := m.agent(t), m.agent(t), m.agent(t)
	m.compare(t, holder)
	if err := holder.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := holder.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	m.compare(t, reader)
}

// fault 26: the origin refuses the credentials under a running agent. What is
// cached is served, the rest is EACCES, the log says why in one line, and all is
// well once they count again.
func TestCredentialsRefused(t *testing.T) {
	m := newMesh(t, map[string]int{"seen": 100, "unseen": 3 * blockSize, "dir/f": 10})
	proxy := origintest.StartFault(t, m.s3)
	p := m.agentWith(t, testnet.AgentSpec{Mounts: []peer.MountSpec{{Source: proxy.URL(bucket, ""), Dir: filepath.Join(m.dir, "m")}}})
	if _, err := os.ReadFile(filepath.Join(p.Mount(), "seen")); err != nil {
		t.Fatal(err)
	}
	ops := []string{"get", "list", "stat"}
	for _, op := range ops {
		proxy.Always(op, origintest.Answer(http.StatusForbidden, "InvalidAccessKeyId"))
	}
	if got, err := os.ReadFile(filepath.Join(p.Mount(), "seen")); err != nil || !bytes.Equal(got, content("seen", 100)) {
		t.Errorf("a cached file: %v", err)
	}
	for range 3 {
		for _, name := range []string{"unseen", "dir/f"} {
			if _, err := os.ReadFile(filepath.Join(p.Mount(), name)); !errors.Is(err, syscall.EACCES) {
				t.Errorf("%s: %v, want EACCES", name, err)
			}
		}
	}
	log, err := os.ReadFile(p.LogFile())
	if err != nil || bytes.Count(log, []byte("level=WARN")) != 1 || !bytes.Contains(log, []byte("AWS_ACCESS_KEY_ID")) {
		t.Errorf("want one warning with what to do: %v\n%s", err, log)
	}
	for _, op := range ops {
		proxy.Always(op, nil)
	}
	m.compare(t, p)
}

// fault 39: many readers on many nodes want one block at once.
func TestThunderingHerd(t *testing.T) {
	m := newMesh(t, map[string]int{"f": blockSize})
	var agents []*testnet.Process
	for range 4 {
		agents = append(agents, m.agent(t))
	}
	const readers = 8
	errs := make(chan error)
	for _, p := range agents {
		for range readers {
			go func() {
				got, err := os.ReadFile(filepath.Join(p.Mount(), "f"))
				if err == nil && !bytes.Equal(got, content("f", blockSize)) {
					err = errors.New("wrong bytes")
				}
				errs <- err
			}()
		}
	}
	for range len(agents) * readers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := m.originGets(t); got != 1 {
		t.Errorf("%d GETs for one block, want 1", got)
	}
}
