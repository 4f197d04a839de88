package sim

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/covey-cache/covey/testnet/scenario"
)

// pass is one epoch while it is read.
//
// mu is a leaf lock and guards pending and over.
type pass struct {
	epoch    int
	finished chan struct{}

	mu      sync.Mutex
	pending int // nodes that have something left to read
	over    bool
}

// add counts one more node, unless all have finished.
func (p *pass) add() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return false
	}
	p.pending++
	return true
}

// done counts one node less.
func (p *pass) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending--; p.pending == 0 && !p.over {
		p.over = true
		close(p.finished)
	}
}

// readEpoch has every node read its share, and returns when all have or the run
// is over.
func (w *world) readEpoch(epoch int) {
	began := time.Now()
	before := w.totals()
	p := &pass{epoch: epoch, finished: make(chan struct{}), pending: 1}
	w.pass.Store(p)
	for n, order := range w.orders(epoch) {
		n.begin(p, order)
	}
	p.done()
	select {
	case <-p.finished:
	case <-w.ctx.Done():
		for _, n := range w.nodes {
			n.abandon()
		}
		<-p.finished
	}
	w.taken = append(w.taken, EpochResult{
		Epoch: epoch, Seconds: time.Since(began).Seconds(), Bytes: w.totals().minus(before),
	})
	w.log(event{Kind: "epoch", Block: epoch})
}

// begin gives a node its work.
func (n *node) begin(p *pass, order []int) {
	if len(order) == 0 || !p.add() {
		return
	}
	n.mu.Lock()
	n.work = &work{order: order, left: len(order), done: p.done}
	n.mu.Unlock()
	if n.gone.Load() {
		n.abandon() // killed for good just now
	}
	if l := n.life.Load(); l != nil {
		n.resume(l)
	}
}

// catchUp gives a node that joined during an epoch the whole of it to read,
// where that is what everybody reads.
func (n *node) catchUp() {
	p := n.w.pass.Load()
	if p == nil || n.w.c.Share != scenario.All {
		return
	}
	if n.w.c.Order == scenario.Shuffled {
		n.begin(p, n.w.own(n, p.epoch))
	} else {
		n.begin(p, n.w.shuffled(uint64(p.epoch)<<32))
	}
}

// abandon gives up what the node was to read.
func (n *node) abandon() {
	n.gone.Store(true)
	n.mu.Lock()
	k := n.work
	n.mu.Unlock()
	if k != nil {
		n.w.unread.Add(k.abandon())
	}
}

// againAfter is the pause of a reader whose read failed.
const againAfter = time.Second

// read reads one block until it succeeds; false when the life ended.
func (l *life) read(b int) bool {
	w := l.node.w
	for began := time.Now(); l.ctx.Err() == nil; {
		tried := time.Now()
		err := l.readOnce(b)
		switch {
		case l.ctx.Err() != nil:
			return false
		case err == nil:
			w.reads.done(began, w.healed)
			if w.events != nil {
				w.log(event{Kind: "read", Node: l.node.num, Block: b + 1, Took: time.Since(began).Seconds()})
			}
			if w.origin.refuses.Load() > 0 {
				w.marks.hit(markOutageHidden)
			}
			return true
		}
		w.reads.failed(tried, w.healed)
		w.marks.hit(markReadFailed)
		w.log(event{Kind: "read", Node: l.node.num, Block: b + 1, Error: err.Error()})
		w.sleep(l.ctx, againAfter, nil)
	}
	return false
}

func (l *life) readOnce(b int) error {
	w, n := l.node.w, l.node
	x := &w.data.blocks[b]
	local := n.store.holds(b)
	h, err := l.fetcher.Get(l.ctx, w.data.extents[x.extent], int(x.slot))
	if err != nil {
		return err
	}
	defer h.Release()
	var buf [payload]byte
	got, err := h.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !w.bytesEqual(b, buf[:got]) {
		w.wrong.Add(1)
		w.log(event{Kind: "wrong", Node: n.num, Block: b + 1})
	}
	if local {
		n.got[sourceLocal].Add(w.data.size(b))
	}
	return nil
}
