package dht

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// cluster is directories that reach each other through memory, on the clock of
// the synctest bubble they live in. Faults are set per link or per peer.
type cluster struct {
	t  *testing.T
	mu sync.Mutex
	// rng decides about delays and losses.
	rng   *rand.Rand
	nodes map[covey.PeerID]*node
	// delay is the longest one-way delay; loss the share of calls that are lost,
	// half of them on the way back.
	delay time.Duration
	loss  float64
	// silent peers take calls and never answer: stopped, or behind a bad link.
	silent map[covey.PeerID]bool
	calls  int
	bytes  int // of all requests and replies
	// own has directories look into their own stores.
	own bool
	// side, if set, cuts the links between peers of different sides.
	side map[covey.PeerID]int
}

// node is one peer: a directory, what its store holds, and its member table.
type node struct {
	c   *cluster
	id  covey.PeerID
	d   *Directory
	reg *prometheus.Registry
	up  bool
	// ctx ends when the peer is killed; stop does that and waits for Run.
	ctx  context.Context
	stop func()

	mu    sync.Mutex
	live  []covey.PeerID
	epoch uint64
	store map[covey.ExtentID]map[int]covey.Digest
}

func newCluster(t *testing.T, seed uint64) *cluster {
	c := &cluster{t: t, rng: rand.New(rand.NewPCG(seed, 1)), nodes: map[covey.PeerID]*node{}, silent: map[covey.PeerID]bool{}}
	t.Cleanup(c.close)
	return c
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		if n.up {
			n.kill()
		}
	}
}

// start begins a peer, or begins it again with the store it had.
func (c *cluster) start(id covey.PeerID, members ...covey.PeerID) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[id]
	if n == nil {
		n = &node{c: c, id: id, store: map[covey.ExtentID]map[int]covey.Digest{}}
		c.nodes[id] = n
	}
	n.setLive(members)
	n.reg = prometheus.NewRegistry()
	o := DirectoryOptions{Members: n, Caller: n, Source: n.all, Registry: n.reg}
	if c.own {
		o.Own = n.ownHave
	}
	n.d = NewDirectory(o)
	n.up = true
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := n.d.Run(ctx); err != nil {
			c.t.Errorf("Run: %v", err)
		}
	}()
	n.ctx, n.stop = ctx, func() { cancel(); <-ended }
	return n
}

// dir returns the peer's directory, which a restart replaces.
func (n *node) dir() *Directory {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.d
}

// silence makes a peer take calls without answering, or ends that.
func (c *cluster) silence(id covey.PeerID, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent[id] = on
}

// kill ends a peer: nobody reaches it and its memory is gone.
func (n *node) kill() {
	n.c.mu.Lock()
	n.up = false
	n.c.mu.Unlock()
	n.stop()
}

func (c *cluster) running() []*node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var up []*node
	for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
		if c.nodes[id].up {
			up = append(up, c.nodes[id])
		}
	}
	return up
}

// see gives every running peer the same member table.
func (c *cluster) see(members ...covey.PeerID) {
	for _, n := range c.running() {
		n.setLive(members)
	}
}

func (n *node) setLive(members []covey.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live, n.epoch = slices.Clone(members), n.epoch+1
}

func (n *node) Self() covey.PeerID { return n.id }

func (n *node) Live() ([]covey.PeerID, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.live, n.epoch
}

var errLost = errors.New("lost")

// Call carries a message to another directory of the cluster.
func (n *node) Call(ctx context.Context, to covey.PeerID, request []byte) ([]byte, error) {
	there, back, lostThere, lostBack := n.c.fate()
	if err := sleep(ctx, there); err != nil {
		return nil, err
	}
	d, silent, err := n.c.reach(n.id, to)
	if err != nil {
		return nil, err
	}
	if silent || lostThere {
		<-ctx.Done()
		return nil, errLost
	}
	reply := d.Serve(context.WithoutCancel(ctx), n.id, request)
	n.c.mu.Lock()
	n.c.bytes += len(request) + len(reply)
	n.c.mu.Unlock()
	if lostBack {
		<-ctx.Done()
		return nil, errLost
	}
	if err := sleep(ctx, back); err != nil {
		return nil, err
	}
	return reply, nil
}

func (c *cluster) fate() (there, back time.Duration, lostThere, lostBack bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.delay > 0 {
		there, back = time.Duration(c.rng.Int64N(int64(c.delay))), time.Duration(c.rng.Int64N(int64(c.delay)))
	}
	lost := c.rng.Float64()
	return there, back, lost < c.loss/2, lost >= c.loss/2 && lost < c.loss
}

func (c *cluster) reach(from, to covey.PeerID) (*Directory, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[to]
	if n == nil || !n.up || !c.nodes[from].up || c.side[from] != c.side[to] {
		return nil, false, fmt.Errorf("dial %s: refused", to)
	}
	return n.d, c.silent[to], nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// put stores blocks and announces them, as a node that fetched them does.
func (n *node) put(e covey.ExtentID, d covey.Digest, slots covey.Bitmap) {
	n.mu.Lock()
	m := n.store[e]
	if m == nil {
		m = map[int]covey.Digest{}
		n.store[e] = m
	}
	h := Have{Extent: e, Have: slots}
	for slot := range slots.Slots() {
		m[slot] = d
		h.Digests = append(h.Digests, d)
	}
	n.mu.Unlock()
	n.dir().Announce(h)
}

// drop takes blocks out of the store; quietly, nobody is told.
func (n *node) drop(e covey.ExtentID, slots covey.Bitmap, quietly bool) {
	n.mu.Lock()
	for slot := range slots.Slots() {
		delete(n.store[e], slot)
	}
	n.mu.Unlock()
	if !quietly {
		n.dir().Announce(Have{Extent: e, Gone: slots})
	}
}

func (n *node) has(e covey.ExtentID, slot int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.store[e][slot]
	return ok
}

// all is the directory's Source.
func (n *node) all() iter.Seq[Have] {
	n.mu.Lock()
	defer n.mu.Unlock()
	var haves []Have
	for e, m := range n.store {
		h := Have{Extent: e}
		for _, slot := range slices.Sorted(maps.Keys(m)) {
			h.Have = h.Have.With(slot)
			h.Digests = append(h.Digests, m[slot])
		}
		haves = append(haves, h)
	}
	return slices.Values(haves)
}

// ownHave is the directory's Own.
func (n *node) ownHave(e covey.ExtentID) (Have, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.store[e]
	h := Have{Extent: e}
	for _, slot := range slices.Sorted(maps.Keys(m)) {
		h.Have = h.Have.With(slot)
		h.Digests = append(h.Digests, m[slot])
	}
	return h, len(m) > 0
}

// testDigest returns a digest named by a short word.
func testDigest(name string) covey.Digest { return covey.Sum([]byte(name)) }
