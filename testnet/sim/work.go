package sim

import (
	"sync"

	"github.com/covey-cache/covey"
)

// work is what a node reads in one epoch.
type work struct {
	mu    sync.Mutex
	order []int
	next  int
	again []int // taken by a life that ended
	left  int
	done  func() // called once, when nothing is left
}

// take returns the next block, and those ahead of it.
func (k *work) take(ahead int) (b int, coming []int, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.again); n > 0 {
		b = k.again[n-1]
		k.again = k.again[:n-1]
		return b, nil, true
	}
	if k.next == len(k.order) {
		return 0, nil, false
	}
	b = k.order[k.next]
	k.next++
	// One more comes into sight with each block; all of them at first.
	from := k.next + ahead - 1
	if k.next == 1 {
		from = k.next
	}
	to := min(k.next+ahead, len(k.order))
	return b, k.order[min(from, to):to], true
}

// putBack returns a block that was not read.
func (k *work) putBack(b int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again = append(k.again, b)
}

// read counts a block as read.
func (k *work) read() {
	k.mu.Lock()
	k.left--
	last := k.left == 0 // of what is abandoned nothing is left, and never 0
	k.mu.Unlock()
	if last {
		k.done()
	}
}

// abandon ends the work of a node that does not come back, and returns how many
// blocks it had left.
func (k *work) abandon() int64 {
	k.mu.Lock()
	left := k.left
	k.left = -1 << 40
	k.mu.Unlock()
	if left <= 0 {
		return 0
	}
	k.done()
	return int64(left)
}

// resume sets the life's readers to what is to be read.
func (n *node) resume(l *life) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.work
	if k == nil || l.reading == k || l.ctx.Err() != nil {
		return
	}
	l.reading = k
	for range n.w.c.Readers {
		l.wg.Go(func() { l.readAll(k) })
	}
}

// readAll reads until nothing is left or the life ends.
func (l *life) readAll(k *work) {
	w := l.node.w
	for l.ctx.Err() == nil {
		b, coming, ok := k.take(w.c.Ahead)
		if !ok {
			return
		}
		for _, c := range coming {
			x := &w.data.blocks[c]
			l.fetcher.Prefetch(w.data.extents[x.extent], covey.Bitmap(0).With(int(x.slot)))
		}
		if !l.read(b) {
			k.putBack(b)
			return
		}
		k.read()
		if c := w.c.Compute.D(); c > 0 && !w.sleep(l.ctx, c, nil) {
			return
		}
	}
}
