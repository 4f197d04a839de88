package mount

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// storeBlocks is a cache over a real store, which fetches from a real origin.
type storeBlocks struct {
	store *blockstore.Store
	ds    *dataset.Dataset
}

func (b *storeBlocks) Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error) {
	l := e.Blocks[slot]
	if h, err := b.store.Get(l); err == nil {
		return h, nil
	}
	rc, err := b.ds.Bucket().Get(ctx, l.Key, l.Version, l.Range())
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	if err != nil {
		return nil, err
	}
	if err := b.store.Put(l, covey.Place{Extent: e.ID, Slot: uint8(slot)}, covey.Sum(data), data); err != nil {
		return nil, err
	}
	return b.store.Get(l)
}

func (b *storeBlocks) ReadRange(context.Context, *covey.Extent, int, int64, []byte) (bool, error) {
	return false, nil
}
func (b *storeBlocks) Forgo(*covey.Extent, covey.Bitmap) int { return 0 }

func (b *storeBlocks) Prefetch(*covey.Extent, covey.Bitmap) int { return 0 }
func (b *storeBlocks) OpenWhole(o covey.Object) (*os.File, error) {
	return b.store.OpenWhole(o)
}
func (b *storeBlocks) CountLocal(int64) {}

// written is a mount that may write, over a real origin and a real cache.
type written struct {
	*Mount
	t       testing.TB
	dir     string
	src     *origin.Source
	ds      *dataset.Dataset
	staging *Staging
	metrics *origin.Metrics
	log     *bytes.Buffer
	ended   bool
	end     func()
}

func (w *written) path(name string) string { return filepath.Join(w.dir, name) }

// startWritable mounts a source to write. served keeps files from being passed
// through.
func startWritable(t testing.TB, url string, opts origin.Options, served bool, change ...func(*Options)) *written {
	t.Helper()
	needFuse(t)
	w := &written{t: t, dir: t.TempDir(), metrics: origin.NewMetrics(nil), log: &bytes.Buffer{}}
	opts.Metrics = w.metrics
	var err error
	if w.src, err = origin.Open(t.Context(), url, opts); err != nil {
		t.Fatal(err)
	}
	w.ds = dataset.New(w.src, dataset.Options{})
	cache := t.TempDir()
	store, err := blockstore.Open(blockstore.Options{Dir: filepath.Join(cache, "cache"), Budget: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if w.staging, err = OpenStaging(filepath.Join(cache, "staging"), 1<<30, nil); err != nil {
		t.Fatal(err)
	}
	blocks := &storeBlocks{store, w.ds}
	o := Options{Log: slog.New(slog.NewTextHandler(w.log, nil)), Write: &WriteOptions{
		Edits: w.ds, Staging: w.staging,
		Admit: func(ctx context.Context, path string, e dataset.Entry, f *os.File) error {
			return AdmitFile(ctx, w.ds, path, e, f, store.Put)
		},
	}}
	for _, f := range change {
		f(&o)
	}
	if w.Mount, err = New(w.ds, blocks, w.dir, o); err != nil {
		t.Fatal(err)
	}
	if served {
		w.tree.passthrough.disable("the test wants it served")
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- w.Run(ctx) }()
	w.end = func() {
		if w.ended {
			return
		}
		w.ended = true
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
		w.ds.Close()
		_ = w.src.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		w.end()
		if t.Failed() {
			t.Logf("the mount's log:\n%s", w.log)
		}
	})
	select {
	case <-w.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	if fstype, _, ok := Mounted(w.dir); !ok || fstype != fsType {
		t.Fatalf("not mounted: %q", fstype)
	}
	return w
}

// writable runs a test on each kind of origin, passed through and served.
func writable(t *testing.T, test func(t *testing.T, w *written)) {
	for _, kind := range []string{"posix", "s3"} {
		for _, served := range []bool{false, true} {
			name := kind + map[bool]string{false: "/passthrough", true: "/served"}[served]
			t.Run(name, func(t *testing.T) {
				if kind == "posix" {
					test(t, startWritable(t, t.TempDir(), origin.Options{}, served))
					return
				}
				s := origintest.StartS3(t)
				if err := s.CreateBucket("rw-set"); err != nil {
					t.Fatal(err)
				}
				test(t, startWritable(t, s.URL("rw-set", "set"), s.Options(), served))
			})
		}
	}
}

// atOrigin returns what the origin has of a path.
func (w *written) atOrigin(name string) ([]byte, error) {
	key := w.ds.Prefix() + name
	info, err := w.ds.Bucket().Stat(w.t.Context(), key)
	if err != nil || info.Size == 0 {
		return nil, err
	}
	rc, err := w.ds.Bucket().Get(w.t.Context(), key, info.Version, covey.Range{Len: info.Size})
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// quiet waits until no draft is left.
func (w *written) quiet() {
	w.t.Helper()
	waitFor(w.t, func() bool { return len(w.staging.List()) == 0 })
}

func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rng.Read(p)
	return p
}
