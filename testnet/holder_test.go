package testnet_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/testnet"
)

// TestAgentKilledUnderReaders kills an agent three times under a program that
// reads, with a holder that keeps its mount: no read fails. The log says how long
// the longest took, from the kill to the next agent's answer.
func TestAgentKilledUnderReaders(t *testing.T) { // fault 2
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which a holder needs; run the tests as root, as .ci/run does")
	}
	const size = 70 << 20
	m := newMesh(t, map[string]int{"large": size, "small": 100 << 10})
	p := m.agent(t, "--holder")
	want := content("large", size)
	f, err := os.Open(filepath.Join(p.Mount(), "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	small, err := os.Open(filepath.Join(p.Mount(), "small"))
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	stop := make(chan struct{})
	var reader sync.WaitGroup
	var longest, thisKill time.Duration
	var mu sync.Mutex
	reader.Go(func() {
		rng := rand.New(rand.NewPCG(1, 1))
		got := make([]byte, 64<<10)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// Past the page cache, so that each read is the agent's.
			_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			off := rng.Int64N(size - int64(len(got)))
			began := time.Now()
			_, err := f.ReadAt(got, off)
			took := time.Since(began)
			mu.Lock()
			longest, thisKill = max(longest, took), max(thisKill, took)
			mu.Unlock()
			if err != nil || !bytes.Equal(got, want[off:off+int64(len(got))]) {
				t.Errorf("read at %d: %v", off, err)
				return
			}
		}
	})
	for i := range 3 {
		time.Sleep(500 * time.Millisecond)
		mu.Lock()
		thisKill = 0
		mu.Unlock()
		began := time.Now()
		p.Crash()
		p = m.agentWith(t, testnet.AgentSpec{Dir: p.Dir(), Mounts: p.Mounts(), Args: []string{"--holder"}})
		ready := time.Since(began)
		time.Sleep(200 * time.Millisecond)
		mu.Lock()
		t.Logf("kill %d: the longest read took %v; the next agent was ready after %v", i+1, thisKill, ready)
		mu.Unlock()
		if got, err := os.ReadFile(filepath.Join(p.Mount(), "small")); err != nil || !bytes.Equal(got, content("small", 100<<10)) {
			t.Errorf("a new open: %d bytes, %v", len(got), err)
		}
	}
	close(stop)
	reader.Wait()
	if _, err := small.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("a handle from before the first kill: %v", err)
	}
	f.Close()
	small.Close()
	dir := p.Mount()
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, mounted := mount.Mounted(dir); mounted {
		t.Error("an agent that left in order has left its mount")
	}
	eventually(t, 5*time.Second, "the holder ends with the agent that left", func() bool {
		_, err := os.Stat(filepath.Join(p.Dir(), "state", "holder.sock"))
		return os.IsNotExist(err)
	})
}
