package mount

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
)

// heldNames is the data set of the tests: the same in every process.
func heldNames() *fakeNames {
	names := newFakeNames()
	names.file("large", "v1", 400*testBlock)
	names.file("whole", "v1", 3*testBlock)
	for i := range 2000 {
		names.file(fmt.Sprintf("many/f%04d", i), "v1", 10)
	}
	return names
}

// helperServeHeld serves the data set, or a directory to write to, on a mount that
// a holder keeps, until it is killed.
func helperServeHeld(dir, socket, source string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	k, kept, err := OpenKeeper(context.Background(), socket, func() error { return errors.New("no holder listens") }, log)
	if err != nil {
		return err
	}
	opts := Options{Keeper: k, Log: log}
	var names Names = heldNames()
	var blocks Blocks
	if source == "" {
		cache, err := os.MkdirTemp(filepath.Dir(dir), "cache")
		if err != nil {
			return err
		}
		blocks = newFakeBlocksIn(cache, names.(*fakeNames))
	} else {
		src, err := origin.Open(context.Background(), source, origin.Options{})
		if err != nil {
			return err
		}
		ds := dataset.New(src, dataset.Options{})
		store, err := blockstore.Open(blockstore.Options{Dir: dir + ".cache", Budget: 1 << 30})
		if err != nil {
			return err
		}
		staging, err := OpenStaging(dir+".staging", 1<<30, log)
		if err != nil {
			return err
		}
		names, blocks = ds, &storeBlocks{store, ds}
		opts.Write = &WriteOptions{Edits: ds, Staging: staging}
	}
	var m *Mount
	if len(kept) == 0 {
		m, err = New(names, blocks, dir, opts)
	} else {
		m, err = Resume(kept[0], names, blocks, opts)
	}
	if err != nil {
		return err
	}
	go func() {
		<-m.Ready()
		fmt.Println("ready")
	}()
	return m.Run(context.Background())
}

// heldMount is a mount served by a process that can be killed.
type heldMount struct {
	t           *testing.T
	dir, socket string
	source      string
	daemon      *exec.Cmd
}

func startHeld(t *testing.T, source string) *heldMount {
	t.Helper()
	needFuse(t)
	if os.Geteuid() != 0 {
		t.Skip("root is missing, which a holder needs; run the tests as root, as .ci/run does")
	}
	base := t.TempDir()
	h := &heldMount{t: t, dir: filepath.Join(base, "mnt"), socket: filepath.Join(base, "h"), source: source}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- RunHolder(ctx, h.socket, 2*time.Second, slog.New(slog.DiscardHandler)) }()
	waitFor(t, func() bool { _, err := os.Stat(h.socket); return err == nil })
	h.serve()
	t.Cleanup(func() {
		_ = Umount(h.dir, true)
		h.kill()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *heldMount) serve() {
	h.t.Helper()
	h.daemon = command("serveHeld", h.dir, h.socket, h.source)
	h.daemon.Stderr = os.Stderr
	out, err := h.daemon.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.daemon.Start(); err != nil {
		h.t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		h.t.Fatalf("the server is not ready: %v", err)
	}
}

func (h *heldMount) kill() {
	_ = h.daemon.Process.Kill()
	_ = h.daemon.Wait()
}

func (h *heldMount) path(name string) string { return filepath.Join(h.dir, name) }

// TestHolder kills the process that serves a mount three times under readers of
// every kind. None of them sees it.
func TestHolder(t *testing.T) { // fault 2
	h := startHeld(t, "")
	large, err := os.Open(h.path("large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	whole, err := os.Open(h.path("whole"))
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	many, err := os.Open(h.path("many"))
	if err != nil {
		t.Fatal(err)
	}
	defer many.Close()
	listed, err := many.Readdirnames(100)
	if err != nil {
		t.Fatal(err)
	}
	want := wanted("large", "v1", 400*testBlock)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	var longest time.Duration
	for i := range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, 100<<10)
			for {
				select {
				case <-stop:
					return
				default:
				}
				off := rng.Int64N(int64(len(want) - len(p)))
				began := time.Now()
				_, err := large.ReadAt(p, off)
				if took := time.Since(began); i == 0 && took > longest {
					longest = took
				}
				if err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
					t.Errorf("read of %d at %d: %v", len(p), off, err)
					return
				}
				name := fmt.Sprintf("many/f%04d", rng.IntN(2000))
				if got, err := os.ReadFile(h.path(name)); err != nil || !bytes.Equal(got, wanted(name, "v1", 10)) {
					t.Errorf("%s: %q, %v", name, got, err)
					return
				}
				_ = unix.Fadvise(int(large.Fd()), 0, 0, unix.FADV_DONTNEED)
			}
		})
	}
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		h.kill()
		h.serve()
		if _, err := os.Stat(h.path("whole")); err != nil {
			t.Fatal(err)
		}
		if f, err := os.Open(h.path("whole")); err != nil {
			t.Fatal(err)
		} else if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, wanted("whole", "v1", 3*testBlock)) {
			t.Errorf("a second handle: %d bytes, %v", len(got), err)
		} else {
			f.Close()
		}
	}
	close(stop)
	readers.Wait()
	t.Logf("the longest read took %v", longest)
	if got, err := io.ReadAll(whole); err != nil || !bytes.Equal(got, wanted("whole", "v1", 3*testBlock)) {
		t.Errorf("a handle from before: %d bytes, %v", len(got), err)
	}
	rest, err := many.Readdirnames(-1)
	if err != nil || len(listed)+len(rest) != 2000 {
		t.Errorf("a listing that was under way: %d and %d names, %v", len(listed), len(rest), err)
	}
	if err := errors.Join(large.Close(), whole.Close(), many.Close()); err != nil {
		t.Error(err)
	}
	if err := Umount(h.dir, false); err != nil {
		t.Errorf("unmount after all: %v", err)
	}
}

// TestHolderLetsGo kills the server for good: readers get their error when the
// grace is over, and the next server mounts anew.
func TestHolderLetsGo(t *testing.T) {
	h := startHeld(t, "")
	f, err := os.Open(h.path("large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h.kill()
	began := time.Now()
	if _, err := f.ReadAt(make([]byte, 10), 300*testBlock); !isErrno(err, unix.ENOTCONN) && !isErrno(err, unix.ECONNABORTED) && !isErrno(err, unix.EIO) {
		t.Errorf("read after the grace: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the read hung for %v", took)
	}
	if _, err := os.Stat(h.path("large")); !isErrno(err, unix.ENOTCONN) {
		t.Errorf("stat after the grace: %v", err)
	}
}

// helperWriteInSteps writes a MiB to a file, and to one that it has removed, for
// each line that it reads, says so, and closes them at the end. It is a process of
// its own because a child of one that writes closes what it inherits, which waits
// for the agent, and so could not be the agent.
func helperWriteInSteps(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	gone, err := os.Create(name + ".gone")
	if err != nil {
		return err
	}
	if err := os.Remove(name + ".gone"); err != nil {
		return err
	}
	want := noise(9<<20, 7)
	lines := bufio.NewScanner(os.Stdin)
	for i := 0; lines.Scan(); i++ {
		step := want[i<<20 : (i+1)<<20]
		if _, err := f.Write(step); err != nil {
			return err
		}
		if _, err := gone.Write(step); err != nil {
			return err
		}
		fmt.Println("step")
	}
	return errors.Join(f.Close(), gone.Close())
}

// TestHolderKeepsWriters kills the server under a program that writes, which goes
// on, and whose file is at the origin once it closes it.
func TestHolderKeepsWriters(t *testing.T) {
	source := t.TempDir()
	h := startHeld(t, source)
	writer := command("writeInSteps", h.path("ckpt"))
	writer.Stderr = os.Stderr
	in, err := writer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		if i%3 == 1 {
			h.kill()
			h.serve()
		}
		if _, err := io.WriteString(in, "go\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	want := noise(9<<20, 7)
	if got, err := os.ReadFile(h.path("ckpt")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("while it is being written: %d bytes, %v", len(got), err)
	}
	in.Close()
	if err := writer.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(source, "ckpt")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("at the origin: %d bytes, %v", len(got), err)
	}
	if names, err := os.ReadDir(source); err != nil || len(names) != 1 {
		t.Errorf("at the origin: %v, %v", names, err)
	}
}

// TestLedger replays random operations, shortened now and then, against a model.
func TestLedger(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	l, err := newLedger()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.swap = func(*os.File) error { return nil }
	(&image{}).write(l)
	nodes := newNodes(time.Now())
	nodes.ledger = l
	var known []*node
	for step := range 20_000 {
		switch op := rng.IntN(10); {
		case op < 5 || len(known) == 0:
			dir := nodes.root
			if len(known) > 0 && rng.IntN(3) > 0 {
				if d := known[rng.IntN(len(known))]; d.kind == dataset.Dir {
					dir = d
				}
			}
			e := dataset.Entry{Name: fmt.Sprint("n", rng.IntN(50)), Kind: dataset.Dir}
			if rng.IntN(2) == 0 {
				e.Kind, e.Version, e.Size = dataset.File, fmt.Sprint("v", rng.IntN(3)), rng.Int64N(1000)
			}
			known = append(known, nodes.enter(dir, e, &fuse.Attr{}))
		case op < 9:
			i := rng.IntN(len(known))
			n := known[i]
			// The kernel forgets a directory after what is in it.
			used := false
			for _, k := range known {
				used = used || k.parent == n
			}
			if used {
				continue
			}
			known[i] = known[len(known)-1]
			known = known[:len(known)-1]
			nodes.forget(n.id, 1)
		case step%100 == 0:
			l.mu.Lock()
			log, n := l.log, l.n
			l.short = true
			l.mu.Unlock()
			l.shorten(log, n)
		}
	}
	im, end, err := replay(l.log)
	if err != nil || end != l.n {
		t.Fatalf("replay ends at %d of %d: %v", end, l.n, err)
	}
	again := newNodes(time.Now())
	if err := again.restore(im); err != nil {
		t.Fatal(err)
	}
	if again.len() != nodes.len() {
		t.Errorf("seed %d: %d nodes restored, want %d", seed, again.len(), nodes.len())
	}
	for _, n := range known {
		got := again.get(n.id)
		if got == nil || got.path() != n.path() || got.version != n.version || got.lookups != n.lookups || got.size != n.size || got.ino != n.ino {
			t.Fatalf("seed %d: node %d is %+v, want %+v", seed, n.id, got, n)
		}
		if want := nodes.find(n.parent, n.name); want != nil {
			if found := again.find(again.get(n.parent.id), n.name); found == nil || found.id != want.id {
				t.Fatalf("seed %d: the name of node %d finds %+v, want %d", seed, n.id, found, want.id)
			}
		}
	}
	seen := map[uint64]bool{}
	for _, n := range known {
		seen[n.id] = true
	}
	for i := range 100 {
		n := again.enter(again.root, dataset.Entry{Name: fmt.Sprint("new", i), Kind: dataset.Dir}, &fuse.Attr{})
		if seen[n.id] {
			t.Fatalf("seed %d: ID %d is given out twice", seed, n.id)
		}
	}
}
