package fetch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

// mesh joins fetchers by an exchange in memory, and by one home or, where the
// test says so, by a real directory at every peer.
type mesh struct {
	home   *home
	origin *memOrigin
	peers  []*room
	rtt    time.Duration

	mu    sync.Mutex
	dead  map[covey.PeerID]bool
	liars map[covey.PeerID]bool
	lies  int
}

func meshPeer(i int) covey.PeerID { return covey.PeerID(fmt.Sprintf("p%02d", i)) }

func newMesh(t *testing.T, n int, directories ...*dht.Directory) *mesh {
	m := &mesh{
		home: newHome(), origin: newMemOrigin(), rtt: 500 * time.Microsecond,
		dead: make(map[covey.PeerID]bool), liars: make(map[covey.PeerID]bool),
	}
	m.home.ttl = 10 * time.Second
	for i := range n {
		m.peers = append(m.peers, newRoom(t, m, func(o *Options) {
			o.Self, o.Origins = meshPeer(i), m.origin
			o.Directory = asker{m.home, o.Self}
			if directories != nil {
				o.Directory = directories[i]
			}
		}))
	}
	return m
}

func (m *mesh) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error {
	if err := sleep(ctx, m.rtt); err != nil {
		return err
	}
	m.mu.Lock()
	dead, lies := m.dead[from], m.liars[from]
	m.mu.Unlock()
	if dead {
		return fmt.Errorf("dial %s: %w", from, covey.ErrUnavailable)
	}
	for i, p := range m.peers {
		if meshPeer(i) != from {
			continue
		}
		h, err := p.Serve(ctx, l, wait)
		if err != nil {
			return err
		}
		defer h.Release()
		if _, err := h.ReadAt(buf, 0); err != nil {
			return err
		}
		if lies {
			buf[0] ^= 0x80
			m.mu.Lock()
			m.lies++
			m.mu.Unlock()
		}
		return sleep(ctx, m.rtt)
	}
	return covey.ErrUnavailable
}

// fault 39: however reads interleave on however many peers, without faults each
// block is read from the origin once, and every byte is right.
func TestMeshReadsTheOriginOnce(t *testing.T) {
	for _, n := range []int{1, 2, 4, 32} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("peers=%d/seed=%d", n, seed), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					m := newMesh(t, n)
					m.origin.took = 20 * time.Millisecond
					extents := []*covey.Extent{extentOf("a", 12), extentOf("b", 5), extentOf("c", 1)}
					m.readAll(t, extents, seed)
					m.checkOnce(t, extents)
				})
			})
		}
	}
}

// members is the member table of peer i of n, and how it calls the others.
type members struct {
	self        covey.PeerID
	all         []covey.PeerID
	directories []*dht.Directory
}

func (m *members) Self() covey.PeerID             { return m.self }
func (m *members) Live() ([]covey.PeerID, uint64) { return m.all, 1 }

func (m *members) Call(ctx context.Context, to covey.PeerID, request []byte) ([]byte, error) {
	if err := sleep(ctx, time.Millisecond); err != nil {
		return nil, err
	}
	return m.directories[slices.Index(m.all, to)].Serve(ctx, m.self, request), nil
}

// newRealMesh is a mesh with the directories that agents run. end ends them.
func newRealMesh(t *testing.T, n int) (m *mesh, end func()) {
	all := make([]covey.PeerID, n)
	for i := range all {
		all[i] = meshPeer(i)
	}
	directories := make([]*dht.Directory, n)
	ctx, cancel := context.WithCancel(t.Context())
	var runs sync.WaitGroup
	for i := range directories {
		m := &members{self: all[i], all: all, directories: directories}
		directories[i] = dht.NewDirectory(dht.DirectoryOptions{Members: m, Caller: m})
	}
	for _, d := range directories {
		runs.Go(func() {
			if err := d.Run(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	return newMesh(t, n, directories...), func() { cancel(); runs.Wait() }
}

// fault 39, with the directory that an agent runs.
func TestMeshWithRealDirectories(t *testing.T) {
	for _, n := range []int{1, 4, 8} {
		t.Run(fmt.Sprintf("peers=%d", n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m, end := newRealMesh(t, n)
				m.origin.took = 20 * time.Millisecond
				extents := []*covey.Extent{extentOf("a", 12), extentOf("b", 5), extentOf("c", 1)}
				m.readAll(t, extents, uint64(n))
				end()
				m.checkOnce(t, extents)
			})
		})
	}
}

// checkOnce fails for each block that was not read from the origin once.
func (m *mesh) checkOnce(t *testing.T, extents []*covey.Extent) {
	t.Helper()
	for _, e := range extents {
		for _, l := range e.Blocks {
			if got := m.origin.count(l); got != 1 {
				t.Errorf("%s: %d reads of the origin", l, got)
			}
		}
	}
	for _, p := range m.peers {
		if p.Totals().Overrides != 0 {
			t.Errorf("overrides: %+v", p.Totals())
		}
	}
}

// readAll has every peer read everything with three readers in an order of
// their own, some with prefetch, some giving up.
func (m *mesh) readAll(t *testing.T, extents []*covey.Extent, seed uint64) {
	ctx, cancel := context.WithCancel(t.Context())
	var runs, readers sync.WaitGroup
	for i, p := range m.peers {
		runs.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		for r := range 3 {
			rng := rand.New(rand.NewPCG(seed, uint64(i*3+r)))
			readers.Go(func() { m.read(t, p, extents, rng) })
		}
	}
	readers.Wait()
	time.Sleep(time.Minute) // what was left behind by callers that gave up
	cancel()
	runs.Wait()
}

func (m *mesh) read(t *testing.T, p *room, extents []*covey.Extent, rng *rand.Rand) {
	type at struct {
		e    *covey.Extent
		slot int
	}
	var todo []at
	for _, e := range extents {
		for slot := range e.Blocks {
			todo = append(todo, at{e, slot})
		}
	}
	rng.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for _, b := range todo {
		time.Sleep(upTo(rng, 3*time.Millisecond))
		if rng.IntN(3) == 0 {
			p.Prefetch(b.e, covey.Bitmap(rng.Uint64())&b.e.All())
		}
		if rng.IntN(4) == 0 {
			hasty, cancel := context.WithTimeout(t.Context(), upTo(rng, 25*time.Millisecond))
			h, err := p.Get(hasty, b.e, b.slot)
			cancel()
			if err == nil {
				checkBytes(t, h, b.e.Blocks[b.slot])
				h.Release()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a hasty reader got %v", err)
			}
		}
		began := time.Now()
		mustGet(t.Context(), t, p.Fetcher, b.e, b.slot)
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s took %v", b.e.Blocks[b.slot], took)
		}
	}
}

// Peers die, lie, lose their home, and have no room; reads go on.
func TestMeshUnderFaults(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMesh(t, 6)
				m.origin.took = 20 * time.Millisecond
				m.home.ttl = time.Second
				m.peers[5].store.limit = 3
				m.liars[meshPeer(1)] = true
				extents := []*covey.Extent{extentOf("a", 12), extentOf("b", 5), extentOf("c", 1)}
				chaos, stop := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { m.chaos(chaos, rand.New(rand.NewPCG(seed, 1<<40))) })
				m.readAll(t, extents, seed)
				stop()
				wg.Wait()
				if m.lies == 0 {
					t.Error("nobody lied: the test shows nothing")
				}
			})
		})
	}
}

// chaos kills and revives peers' serving sides, and the home.
func (m *mesh) chaos(ctx context.Context, rng *rand.Rand) {
	for sleep(ctx, upTo(rng, 40*time.Millisecond)) == nil {
		m.mu.Lock()
		m.dead[meshPeer(2+rng.IntN(3))] = rng.IntN(2) == 0
		m.mu.Unlock()
		m.home.setDown(rng.IntN(4) == 0)
	}
	m.home.setDown(false)

}

func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
