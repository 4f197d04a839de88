package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/peer"
)

// ExchangeOptions configure the measurement of the data planes.
type ExchangeOptions struct {
	Rounds int
	Out    io.Writer
}

const (
	exchangeBlocks = 64              // of the object that is read again and again: 256 MiB
	exchangeRound  = 4               // times that a round reads it: 1 GiB
	exchangeAtOnce = 4               // reads under way
	exchangeKey    = "exchange"      // the object's
	exchangeOrigin = "bench://local" // nothing is read from it
)

// exchangeBench reads the blocks of one object, whole and raw in a real store, from
// one member of a mesh to another over loopback, in one process, so that its
// processor time is that of both ends.
type exchangeBench struct {
	opts    ExchangeOptions
	dir     string
	object  covey.Object
	store   *blockstore.Store
	digests []covey.Digest
	file    *os.File // the same bytes, for the bare copy
	stop    []func() error
}

// fetchBlock reads one block into buf.
type fetchBlock func(ctx context.Context, l covey.Locator, buf []byte) error

// BenchExchange measures what a GiB between two members costs on each data plane,
// digest included, against a bare TCP copy of the same file with BLAKE3, in turn in
// one run, and prints medians.
func BenchExchange(ctx context.Context, opts ExchangeOptions) (err error) {
	dir, err := os.MkdirTemp("", "covey-exchange-")
	if err != nil {
		return fmt.Errorf("make a working directory: %w", err)
	}
	b := &exchangeBench{opts: opts, dir: dir}
	b.defers(func() error { return os.RemoveAll(dir) })
	defer func() {
		for i := len(b.stop) - 1; i >= 0; i-- {
			err = errors.Join(err, b.stop[i]())
		}
	}()
	if err := b.fill(); err != nil {
		return err
	}
	bare, err := b.bare()
	if err != nil {
		return err
	}
	plain, err := b.mesh(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	tls, err := b.mesh(ctx, "")
	if err != nil {
		return err
	}
	return b.compare(ctx, []string{"bare TCP and BLAKE3", "plain", "tls"}, []fetchBlock{bare, plain, tls})
}

func (b *exchangeBench) defers(f func() error) { b.stop = append(b.stop, f) }

// fill puts the object into a store, and its bytes into a file.
func (b *exchangeBench) fill() (err error) {
	b.store, err = blockstore.Open(blockstore.Options{Dir: filepath.Join(b.dir, "cache"), Budget: 1 << 30})
	if err != nil {
		return err
	}
	b.defers(b.store.Close)
	b.object = covey.Object{Origin: exchangeOrigin, Key: exchangeKey, Version: "1", Size: exchangeBlocks * covey.DefaultBlockSize, BlockSize: covey.DefaultBlockSize}
	name := filepath.Join(b.dir, "file")
	if b.file, err = os.Create(name); err != nil {
		return err
	}
	b.defers(b.file.Close)
	var blocks []covey.Locator
	for i := range exchangeBlocks {
		blocks = append(blocks, b.object.Block(i))
	}
	extent := covey.NewExtent(blocks)
	random := rand.NewChaCha8([32]byte{})
	data := make([]byte, covey.DefaultBlockSize)
	for i, l := range blocks {
		_, _ = random.Read(data) // never fails
		d := covey.Sum(data)
		b.digests = append(b.digests, d)
		if err := b.store.Put(l, covey.Place{Extent: extent.ID, Slot: uint8(i)}, d, data); err != nil {
			return err
		}
		if _, err := b.file.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// bare copies blocks of the file over plain connections, as io.Copy does it, which
// is by sendfile.
func (b *exchangeBench) bare() (fetchBlock, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { b.serveBare(c) })
		}
	})
	conns := make(chan net.Conn, exchangeAtOnce)
	for range exchangeAtOnce {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		conns <- c
	}
	b.defers(func() error {
		for range exchangeAtOnce {
			(<-conns).Close()
		}
		err := l.Close()
		served.Wait()
		return err
	})
	return func(_ context.Context, l covey.Locator, buf []byte) error {
		c := <-conns
		defer func() { conns <- c }()
		if _, err := c.Write([]byte{byte(l.Index)}); err != nil {
			return err
		}
		_, err := io.ReadFull(c, buf)
		return err
	}, nil
}

func (b *exchangeBench) serveBare(c net.Conn) {
	defer c.Close()
	f, err := os.Open(b.file.Name())
	if err != nil {
		return
	}
	defer f.Close()
	var index [1]byte
	for {
		if _, err := io.ReadFull(c, index[:]); err != nil {
			return
		}
		if _, err := f.Seek(int64(index[0])*covey.DefaultBlockSize, io.SeekStart); err != nil {
			return
		}
		if _, err := io.CopyN(c, f, covey.DefaultBlockSize); err != nil {
			return
		}
	}
}

// storeServer answers members from the store.
type storeServer struct{ store *blockstore.Store }

func (storeServer) ServeDirectory(context.Context, covey.PeerID, []byte) []byte { return nil }

func (s storeServer) ServeBlock(_ context.Context, l covey.Locator, _ bool) (blockstore.Handle, error) {
	return s.store.Get(l)
}

// mesh starts two members, with the plain data plane if an address is given, and
// returns how one reads from the other.
func (b *exchangeBench) mesh(ctx context.Context, plain string) (fetchBlock, error) {
	key := peer.NewClusterKey()
	var nodes []*peer.Network
	for i := range 2 {
		o := peer.NetworkOptions{Key: &key, Plain: plain}
		if i > 0 {
			o.Join = nodes[0].ListenAddrs()
		}
		n, err := peer.NewNetwork(o)
		if err != nil {
			return nil, err
		}
		b.defers(n.Close)
		nodes = append(nodes, n)
		rctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- n.Run(rctx) }()
		b.defers(func() error {
			cancel()
			return <-done
		})
	}
	nodes[0].SetServer(storeServer{b.store})
	if err := nodes[1].Join(ctx); err != nil {
		return nil, err
	}
	return func(ctx context.Context, l covey.Locator, buf []byte) error {
		return nodes[1].FetchFrom(ctx, nodes[0].Self(), l, buf, 0, nil)
	}, nil
}

// round reads the object several times and returns the wall and processor seconds
// for one GiB.
func (b *exchangeBench) round(ctx context.Context, fetch fetchBlock) (wall, cpu float64, err error) {
	var next atomic.Int64
	errs := make([]error, exchangeAtOnce)
	var all sync.WaitGroup
	began, before := time.Now(), processorTime()
	for i := range exchangeAtOnce {
		all.Go(func() {
			buf := make([]byte, covey.DefaultBlockSize)
			for errs[i] == nil && ctx.Err() == nil {
				k := int(next.Add(1) - 1)
				if k >= exchangeBlocks*exchangeRound {
					return
				}
				k %= exchangeBlocks
				if errs[i] = fetch(ctx, b.object.Block(k), buf); errs[i] == nil && covey.Sum(buf) != b.digests[k] {
					errs[i] = fmt.Errorf("block %d: %w", k, covey.ErrCorrupt)
				}
			}
		})
	}
	all.Wait()
	gib := float64(exchangeBlocks*exchangeRound*covey.DefaultBlockSize) / (1 << 30)
	return time.Since(began).Seconds() / gib, (processorTime() - before).Seconds() / gib, errors.Join(append(errs, ctx.Err())...)
}

// processorTime is what this process has used, in user and kernel mode.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *exchangeBench) compare(ctx context.Context, names []string, fetches []fetchBlock) error {
	walls, cpus, ratios := make([][]float64, len(names)), make([][]float64, len(names)), make([][]float64, len(names))
	for round := range b.opts.Rounds + 1 {
		var first float64
		for i, f := range fetches {
			wall, cpu, err := b.round(ctx, f)
			if err != nil {
				return fmt.Errorf("%s: %w", names[i], err)
			}
			if i == 0 {
				first = wall
			}
			if round > 0 { // the first fills caches and opens connections
				walls[i], cpus[i], ratios[i] = append(walls[i], wall), append(cpus[i], cpu), append(ratios[i], first/wall)
			}
		}
	}
	w := tabwriter.NewWriter(b.opts.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "4 MiB blocks, both ends, digest included\tMiB/s\tof bare\tcore-s/GiB\t")
	for i, name := range names {
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f\t\n", name, 1024/median(walls[i]), median(ratios[i]), median(cpus[i]))
	}
	return w.Flush()
}
