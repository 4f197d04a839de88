package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dht"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The oracle: what the origin holds for a block follows from its locator.
func content(l covey.Locator) []byte {
	var seed [32]byte
	id := l.ID()
	copy(seed[:], id[:])
	data := make([]byte, l.Range().Len)
	_, _ = rand.NewChaCha8(seed).Read(data) // never fails
	return data
}

const blockSize = covey.MinBlockSize

// extentOf makes an extent of n blocks of one object, the last one short.
func extentOf(key string, n int) *covey.Extent {
	o := covey.Object{Origin: "mem://origin", Key: key, Version: "v1", Size: int64(n)*blockSize - 100, BlockSize: blockSize}
	blocks := make([]covey.Locator, n)
	for i := range blocks {
		blocks[i] = o.Block(i)
	}
	return covey.NewExtent(blocks)
}

// memStore is a store in memory. limit is the most blocks, 0 for no limit.
type memStore struct {
	mu     sync.Mutex
	blocks map[covey.Locator]*memory
	places map[covey.Locator]covey.Place
	limit  int
	puts   int
	slow   time.Duration
	open   int  // handles
	misses int  // calls of Get that find nothing, although it is there
	blind  bool // Present says that nothing is there
	// replicas are the blocks that came from a neighbour, with its holders' number.
	replicas map[covey.Locator]int
}

type memHandle struct {
	*memory
	s    *memStore
	once sync.Once
}

func (h *memHandle) Release() {
	h.once.Do(func() {
		h.s.mu.Lock()
		h.s.open--
		h.s.mu.Unlock()
	})
}

func newMemStore() *memStore {
	return &memStore{blocks: make(map[covey.Locator]*memory), places: make(map[covey.Locator]covey.Place)}
}

func (s *memStore) Get(l covey.Locator) (blockstore.Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.blocks[l]
	if m == nil || s.misses > 0 {
		s.misses--
		return nil, fmt.Errorf("get %s: %w", l, covey.ErrNotFound)
	}
	s.open++
	return &memHandle{memory: m, s: s}, nil
}

func (s *memStore) Present(e *covey.Extent) covey.Bitmap {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b covey.Bitmap
	for i, l := range e.Blocks {
		if s.blocks[l] != nil && !s.blind {
			b = b.With(i)
		}
	}
	return b
}

func (s *memStore) Put(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error {
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	if s.limit > 0 && len(s.blocks) >= s.limit {
		return fmt.Errorf("put %s: %w", l, covey.ErrFull)
	}
	if covey.Sum(data) != d {
		panic("put with a digest that is not the data's")
	}
	s.blocks[l] = &memory{buf: &buffer{data: bytes.Clone(data)}, digest: d}
	s.places[l] = p
	return nil
}

func (s *memStore) PutReplica(l covey.Locator, p covey.Place, d covey.Digest, data []byte, holders int) error {
	err := s.Put(l, p, d, data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		if s.replicas == nil {
			s.replicas = make(map[covey.Locator]int)
		}
		s.replicas[l] = holders
	}
	return err
}

func (s *memStore) Drop(l covey.Locator) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blocks, l)
	return nil
}

func (s *memStore) fill(e *covey.Extent, slots ...int) {
	for _, i := range slots {
		data := content(e.Blocks[i])
		if err := s.Put(e.Blocks[i], covey.Place{Extent: e.ID, Slot: uint8(i)}, covey.Sum(data), data); err != nil {
			panic(err)
		}
	}
}

// memOrigin serves content(l), and counts reads by block.
type memOrigin struct {
	mu     sync.Mutex
	reads  map[covey.Locator]int
	bytes  int64
	active int
	peak   int
	took   time.Duration
	// open, if set, replaces the read.
	open func(ctx context.Context, l covey.Locator) (io.ReadCloser, error)
}

func newMemOrigin() *memOrigin { return &memOrigin{reads: make(map[covey.Locator]int)} }

func (o *memOrigin) Open(ctx context.Context, obj covey.Object, r covey.Range) (io.ReadCloser, error) {
	l := obj.Block(int(r.Off / obj.BlockSize))
	o.mu.Lock()
	o.reads[l]++
	o.active++
	o.peak = max(o.peak, o.active)
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.active--
		o.mu.Unlock()
	}()
	if err := sleep(ctx, o.took); err != nil {
		return nil, err
	}
	if o.open != nil {
		return o.open(ctx, l)
	}
	within := r.Off - l.Range().Off
	if r.Len <= 0 || within+r.Len > l.Range().Len {
		return nil, fmt.Errorf("range %v: %w", r, covey.ErrInvalid)
	}
	o.mu.Lock()
	o.bytes += r.Len
	o.mu.Unlock()
	return io.NopCloser(bytes.NewReader(content(l)[within : within+r.Len])), nil
}

func (o *memOrigin) count(l covey.Locator) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.reads[l]
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", covey.ErrUnavailable, ctx.Err())
	}
}

// exchangeFunc is an Exchange.
type exchangeFunc func(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error

func (f exchangeFunc) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error {
	return f(ctx, from, l, buf, wait)
}

// noPeers is an exchange that must not be used.
func noPeers(t *testing.T) exchangeFunc {
	return func(context.Context, covey.PeerID, covey.Locator, []byte, bool) error {
		t.Error("asked a neighbour")
		return covey.ErrNotFound
	}
}

// peerBytes is an exchange where each peer does what its function says.
type peerBytes map[covey.PeerID]func(ctx context.Context, l covey.Locator, buf []byte, wait bool) error

func (p peerBytes) Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error {
	if f := p[from]; f != nil {
		return f(ctx, l, buf, wait)
	}
	return fmt.Errorf("dial %s: %w", from, covey.ErrUnavailable)
}

func honest(_ context.Context, l covey.Locator, buf []byte, _ bool) error {
	copy(buf, content(l))
	return nil
}

func liar(_ context.Context, l covey.Locator, buf []byte, _ bool) error {
	copy(buf, content(l))
	buf[len(buf)/2] ^= 1
	return nil
}

// stopped is a peer that keeps its connections and says nothing.
func stopped(ctx context.Context, _ covey.Locator, _ []byte, _ bool) error {
	<-ctx.Done()
	return fmt.Errorf("read: %w: %w", covey.ErrUnavailable, ctx.Err())
}

// home is one peer's directory, the home of every extent: it pins the first
// digest, and has one block read by one peer at a time.
type home struct {
	id  covey.PeerID
	rtt time.Duration
	ttl time.Duration

	mu      sync.Mutex
	down    bool
	entries map[covey.ExtentID]map[int]*entry
	lease   uint64
	asked   []dht.Want
	done    []dht.Outcome
	haves   []dht.Have
	reads   []dht.Reading
}

type entry struct {
	holders []covey.PeerID
	digest  covey.Digest
	reader  covey.PeerID
	lease   uint64
	expires time.Time
}

func newHome() *home {
	return &home{id: "home", ttl: 2 * time.Second, rtt: time.Millisecond, entries: make(map[covey.ExtentID]map[int]*entry)}
}

func (h *home) entry(e covey.ExtentID, slot int) *entry {
	if h.entries[e] == nil {
		h.entries[e] = make(map[int]*entry)
	}
	if h.entries[e][slot] == nil {
		h.entries[e][slot] = &entry{}
	}
	return h.entries[e][slot]
}

// holds says that the peers have the slots of e, with the right digests.
func (h *home) holds(e *covey.Extent, slots []int, peers ...covey.PeerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range slots {
		en := h.entry(e.ID, i)
		en.holders, en.digest = append(en.holders, peers...), covey.Sum(content(e.Blocks[i]))
	}
}

func (h *home) setDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
}

func (h *home) unreachable(ctx context.Context) error {
	if err := sleep(ctx, h.rtt); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return fmt.Errorf("no home: %w", covey.ErrUnavailable)
	}
	return nil
}

// asker is the home as one peer sees it.
type asker struct {
	*home
	self covey.PeerID
}

func (a asker) Resolve(ctx context.Context, w dht.Want) (dht.Plan, error) {
	if err := a.unreachable(ctx); err != nil {
		return dht.Plan{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, w)
	p := dht.Plan{Home: a.id}
	for slot := range covey.FirstBits(w.Count).Slots() {
		en := a.entry(w.Extent, slot)
		peers := slices.DeleteFunc(slices.Clone(en.holders), func(p covey.PeerID) bool {
			return p == a.self || slices.Contains(w.Failed, p)
		})
		switch {
		case len(peers) > 0:
			p.Blocks = append(p.Blocks, dht.BlockPlan{Slot: slot, State: dht.Held, Peers: peers[:min(4, len(peers))], Digest: en.digest})
		case !w.Need.Has(slot):
		case en.lease != 0 && time.Now().Before(en.expires) && en.reader != a.self && !slices.Contains(w.Failed, en.reader):
			p.Blocks = append(p.Blocks, dht.BlockPlan{Slot: slot, State: dht.Fetching, Peers: []covey.PeerID{en.reader}})
		default:
			a.lease++
			en.lease, en.reader, en.expires = a.lease, a.self, time.Now().Add(a.ttl)
			p.Blocks = append(p.Blocks, dht.BlockPlan{Slot: slot, State: dht.Granted, Lease: en.lease, TTL: a.ttl})
		}
	}
	return p, nil
}

func (a asker) Done(ctx context.Context, _ covey.PeerID, o dht.Outcome) error {
	if err := a.unreachable(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = append(a.done, o)
	en := a.entry(o.Extent, o.Slot)
	if o.Err == nil {
		if en.digest.IsZero() {
			en.digest = o.Digest
		}
		if !slices.Contains(en.holders, a.self) {
			en.holders = append(en.holders, a.self)
		}
	}
	if en.lease == o.Lease {
		en.lease = 0
	}
	return nil
}

func (a asker) Progress(_ context.Context, reads []dht.Reading) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads = append(a.reads, reads...)
	return nil
}

func (a asker) Announce(v dht.Have) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.haves = append(a.haves, v)
	for slot := range v.Have.Slots() {
		en := a.entry(v.Extent, slot)
		if en.digest.IsZero() {
			en.digest = v.Digests[0]
		}
		if !slices.Contains(en.holders, a.self) {
			en.holders = append(en.holders, a.self)
		}
	}
	for slot := range v.Gone.Slots() {
		en := a.entry(v.Extent, slot)
		en.holders = slices.DeleteFunc(en.holders, func(p covey.PeerID) bool { return p == a.self })
	}
}

// script is a directory that answers what its function says for the one slot.
type script struct {
	asker
	say func(n int, w dht.Want) (dht.BlockPlan, error)
	n   *int
}

func (s script) Resolve(ctx context.Context, w dht.Want) (dht.Plan, error) {
	if err := sleep(ctx, s.rtt); err != nil {
		return dht.Plan{}, err
	}
	s.mu.Lock()
	*s.n++
	n := *s.n
	s.asked = append(s.asked, w)
	s.mu.Unlock()
	b, err := s.say(n, w)
	for slot := range w.Need.Slots() {
		b.Slot = slot
	}
	return dht.Plan{Home: s.id, Blocks: []dht.BlockPlan{b}}, err
}

// room is one fetcher and what it stands on.
type room struct {
	*Fetcher
	store   *memStore
	origin  *memOrigin
	home    *home
	corrupt []string
}

func newRoom(t *testing.T, x Exchange, change ...func(*Options)) *room {
	r := &room{store: newMemStore(), origin: newMemOrigin(), home: newHome()}
	var mu sync.Mutex
	o := Options{
		Self: "self", Store: r.store, Origins: r.origin, Exchange: x,
		Directory: asker{r.home, "self"},
		OnCorrupt: func(source string, _ covey.Locator, from covey.PeerID) {
			mu.Lock()
			defer mu.Unlock()
			r.corrupt = append(r.corrupt, source+":"+string(from))
		},
	}
	for _, c := range change {
		c(&o)
	}
	r.Fetcher = New(o)
	// Of equals, the first that the home names.
	r.neighbours.random = func(int) int { return 0 }
	t.Cleanup(func() {
		r.settle()
		checkEmpty(t, r.Fetcher, r.store)
	})
	return r
}

// settle waits for every goroutine of the fetcher.
func (r *room) settle() { r.table.wg.Wait() }

// says makes the directory follow a script.
func says(say func(n int, w dht.Want) (dht.BlockPlan, error)) func(*Options) {
	return func(o *Options) {
		a := o.Directory.(asker)
		o.Directory = script{asker: a, say: say, n: new(int)}

	}
}

// checkEmpty fails when a buffer, a handle or a flight is left.
func checkEmpty(t *testing.T, f *Fetcher, s *memStore) {
	t.Helper()
	if got := f.Totals(); got.StagingBytes != 0 || got.Handles != 0 || got.Flights != 0 {
		t.Errorf("left behind: %+v", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != 0 {
		t.Errorf("%d handles of the store left open", s.open)
	}
}

// mustGet reads one block and holds it against the oracle.
func mustGet(ctx context.Context, t *testing.T, f *Fetcher, e *covey.Extent, slot int) {
	t.Helper()
	h, err := f.Get(ctx, e, slot)
	if err != nil {
		t.Errorf("get slot %d: %v", slot, err)
		return
	}
	defer h.Release()
	checkBytes(t, h, e.Blocks[slot])
}

func checkBytes(t *testing.T, h blockstore.Handle, l covey.Locator) {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(h, 0, int64(h.Len())+1))
	if err != nil {
		t.Errorf("read %s: %v", l, err)
	}
	if want := content(l); sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("%s: wrong bytes (%d of %d)", l, len(got), len(want))
	} else if h.Digest() != covey.Sum(want) {
		t.Errorf("%s: wrong digest", l)
	}
}

// running starts Run for the test's body and joins it.
func running(t *testing.T, f *Fetcher, body func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	body()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want kind %v", err, kind)
	}
}
