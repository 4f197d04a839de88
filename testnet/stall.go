package testnet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/peer"
)

// StallOptions configure the measurement of what a reader notices of a neighbour
// that fails.
type StallOptions struct {
	Binary string // the covey program
	Rounds int
	Out    io.Writer
}

const (
	// stallFile is 48 blocks, one extent.
	stallFile = 192 << 20
	stallRead = 1 << 20
)

// stallFaults are what happens to the neighbour that the reader has most from.
var stallFaults = []struct {
	name   string
	strike func(p *Process) error
}{
	{"nothing", func(*Process) error { return nil }},
	{"kill -9", func(p *Process) error { p.Crash(); return nil }},
	{"SIGSTOP", func(p *Process) error { return p.Signal(syscall.SIGSTOP) }},
}

// stallBench is a mesh of two agents that hold a file, and a third that reads it.
type stallBench struct {
	opts    StallOptions
	cluster *Cluster
	dir     string
	data    []byte
	holders []*Process
	readers int
}

// BenchStall measures the longest read of 1 MiB of a file that two neighbours
// hold, through a mount that has nothing, while the one that most came from is
// killed, or stopped, in the middle. Every byte is compared.
func BenchStall(ctx context.Context, opts StallOptions) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	dir, remove, err := benchDir("", "covey-stall-")
	if err != nil {
		return err
	}
	defer remove(&err)
	b := &stallBench{opts: opts, dir: dir, data: make([]byte, stallFile)}
	random := rand.NewChaCha8([32]byte{benchSeed & 0xff})
	_, _ = random.Read(b.data) // never fails
	if err := os.MkdirAll(b.source(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.source(), "f"), b.data, 0o644); err != nil {
		return err
	}
	if b.cluster, err = NewCluster(ClusterOptions{Binary: opts.Binary, Dir: dir}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cluster.Stop()) }()
	for i := range 2 {
		p, err := b.cluster.Start(ctx, AgentSpec{Mounts: b.mount(fmt.Sprint("h", i))})
		if err != nil {
			return err
		}
		if err := bringAll(ctx, p.Client(), p.Mount()); err != nil {
			return err
		}
		b.holders = append(b.holders, p)
	}
	return b.report(ctx)
}

func (b *stallBench) source() string { return filepath.Join(b.dir, "source") }

func (b *stallBench) mount(name string) []peer.MountSpec {
	return []peer.MountSpec{{Source: b.source(), Dir: filepath.Join(b.dir, "m", name)}}
}

func (b *stallBench) report(ctx context.Context) error {
	w := tabwriter.NewWriter(b.opts.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "in the middle\tlongest read, median\tworst\tMiB/s, median\tfrom the origin\t")
	for _, f := range stallFaults {
		var longest, rates []float64
		var origin int64
		for range b.opts.Rounds {
			took, rate, read, err := b.round(ctx, f.strike)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			longest, rates = append(longest, took.Seconds()*1e3), append(rates, rate)
			origin += read
		}
		fmt.Fprintf(w, "%s\t%.1f ms\t%.1f ms\t%.0f\t%s\t\n", f.name, median(longest), slices.Max(longest), median(rates), mib(origin))
	}
	return w.Flush()
}

// round has a new agent read the file and strikes when half of it is there.
func (b *stallBench) round(ctx context.Context, strike func(*Process) error) (longest time.Duration, rate float64, origin int64, err error) {
	b.readers++
	reader, err := b.cluster.Start(ctx, AgentSpec{Mounts: b.mount(fmt.Sprint("r", b.readers))})
	if err != nil {
		return 0, 0, 0, err
	}
	var victim *Process
	defer func() {
		err = errors.Join(err, reader.Kill(), b.revive(ctx, victim), os.RemoveAll(reader.Dir()))
	}()
	f, err := os.Open(filepath.Join(reader.Mount(), "f"))
	if err != nil {
		return 0, 0, 0, err
	}
	defer f.Close()
	struck := make(chan error, 1)
	buf := make([]byte, stallRead)
	began := time.Now()
	for off := int64(0); off < stallFile; off += stallRead {
		if off == stallFile/2 {
			if victim, err = b.best(ctx, reader); err != nil {
				return 0, 0, 0, err
			}
			go func() { struck <- strike(victim) }()
		}
		at := time.Now()
		if _, err := f.ReadAt(buf, off); err != nil {
			return 0, 0, 0, err
		}
		longest = max(longest, time.Since(at))
		if !bytes.Equal(buf, b.data[off:off+stallRead]) {
			return 0, 0, 0, fmt.Errorf("wrong bytes at %d", off)
		}
	}
	rate = stallFile / time.Since(began).Seconds() / (1 << 20)
	if err := <-struck; err != nil {
		return 0, 0, 0, err
	}
	s, err := reader.Client().Status(ctx)
	return longest, rate, s.Fetched.Origin, err
}

// best is the holder that the reader has received most from.
func (b *stallBench) best(ctx context.Context, reader *Process) (*Process, error) {
	peers, err := reader.Client().Peers(ctx)
	if err != nil || len(peers) == 0 {
		return nil, fmt.Errorf("the reader knows %d peers: %w", len(peers), err)
	}
	most := slices.MaxFunc(peers, func(x, y gateway.Peer) int { return cmp.Compare(x.ReceivedBytes, y.ReceivedBytes) })
	for _, h := range b.holders {
		s, err := h.Client().Status(ctx)
		if err == nil && s.PeerID == most.ID {
			return h, nil
		}
	}
	return nil, fmt.Errorf("no holder is %s", most.ID)
}

// revive starts a holder that was struck again, from its cache.
func (b *stallBench) revive(ctx context.Context, p *Process) error {
	if p == nil {
		return nil
	}
	if err := p.Kill(); err != nil {
		return err
	}
	again, err := b.cluster.Start(ctx, AgentSpec{Dir: p.Dir(), Mounts: p.Mounts()})
	if err != nil {
		return err
	}
	b.holders[slices.Index(b.holders, p)] = again
	return nil
}
