package testnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/peer/memnet"
)

// simulated is a mesh of whole agents, FUSE aside, in one process: real libp2p,
// DHT, directory, store and fetcher over an in-memory network and in-memory
// disks, in virtual time.
type simulated struct {
	agents []*peer.Agent
	logs   syncBuffer
	stop   context.CancelFunc
	all    sync.WaitGroup
	errs   []error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func simulate(t *testing.T, n int) *simulated {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	s := &simulated{stop: stop, errs: make([]error, n)}
	key := peer.NewClusterKey()
	network := &memnet.Network{Latency: 200 * time.Microsecond} // a rack's
	for i := range n {
		ip := fmt.Sprintf("10.0.0.%d", i+1)
		opts := peer.AgentOptions{
			Cache: []peer.CacheDir{{Dir: "cache", Size: 1 << 30}}, StoreFS: blockstore.MemFS(),
			Listen: ip + ":7171", ClusterKey: &key, Sockets: network.Host(ip),
			Log: slog.New(slog.NewTextHandler(&s.logs, nil)).With("agent", i),
		}
		if i > 0 {
			opts.Join = []string{"10.0.0.1:7171"}
		}
		a, err := peer.NewAgent(opts)
		if err != nil {
			t.Fatal(err)
		}
		s.agents = append(s.agents, a)
		s.all.Go(func() { s.errs[i] = a.Run(ctx) })
	}
	return s
}

// await lets virtual time pass until every agent knows every other.
func (s *simulated) await(t *testing.T) {
	t.Helper()
	for range 1000 {
		ready := 0
		for _, a := range s.agents {
			if st := a.Status(); st.Ready && st.Peers == len(s.agents)-1 {
				ready++
			}
		}
		if ready == len(s.agents) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the mesh did not form within 10 s of virtual time")
}

func (s *simulated) end(t *testing.T) {
	t.Helper()
	s.stop()
	s.all.Wait()
	if err := errors.Join(s.errs...); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("%s", tail(s.logs.b.Bytes(), 8000))
	}
}

// readAll reads a whole data set through one agent and compares it.
func readAll(ctx context.Context, a *peer.Agent, source string, files map[string]int) error {
	ds, release, err := a.OpenDataset(ctx, source)
	if err != nil {
		return err
	}
	defer release()
	seen := 0
	for file, err := range ds.Walk(ctx, "") {
		if err != nil {
			return err
		}
		if file.Entry.Kind != dataset.File {
			continue
		}
		seen++
		got, err := readFile(ctx, a, ds, file)
		if err != nil {
			return fmt.Errorf("read %s: %w", file.Path, err)
		}
		if !bytes.Equal(got, content(file.Path, files[file.Path])) {
			return fmt.Errorf("%s: wrong bytes", file.Path)
		}
	}
	if seen != len(files) {
		return fmt.Errorf("%d files seen of %d", seen, len(files))
	}
	return nil
}

func readFile(ctx context.Context, a *peer.Agent, ds *dataset.Dataset, file dataset.FileAt) ([]byte, error) {
	var got bytes.Buffer
	for i := range ds.Object(file.Path, file.Entry).Blocks() {
		extent, slot, err := ds.Extent(ctx, file.Path, file.Entry, i)
		if err != nil {
			return nil, err
		}
		h, err := a.Fetcher().Get(ctx, extent, slot)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(&got, io.NewSectionReader(h, 0, int64(h.Len())))
		h.Release()
		if err != nil {
			return nil, err
		}
	}
	return got.Bytes(), nil
}

// Twenty whole agents read one data set at once in virtual time: every byte is
// right and the origin is read once.
func TestTwentyAgentsInVirtualTime(t *testing.T) {
	files := map[string]int{"large": 5 << 20, "empty": 0}
	var size int64 = 5 << 20
	for i := range 60 {
		files[fmt.Sprintf("d%d/f%02d", i%3, i)] = 1000 + i
		size += int64(1000 + i)
	}
	dir := filepath.Join(t.TempDir(), "data")
	writeFiles(t, dir, files)
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, 20)
		defer s.end(t)
		s.await(t)
		began := time.Now()
		errs := make([]error, len(s.agents))
		var all sync.WaitGroup
		for i, a := range s.agents {
			all.Go(func() { errs[i] = readAll(t.Context(), a, dir, files) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		var origin int64
		for _, a := range s.agents {
			origin += a.Status().OriginBytes
		}
		if origin != size {
			t.Errorf("the origin was asked for %d bytes of a data set of %d", origin, size)
		}
		t.Logf("%d agents, %v of virtual time, %d bytes from the origin", len(s.agents), time.Since(began), origin)
	})
}
