package mount

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// aheadState is what the pusher did with a file.
type aheadState uint8

const (
	notPushed aheadState = iota
	// wasRead files came into the page cache by a read.
	wasRead
	// pushing files are on their way.
	pushing
	// pushed files are in the kernel's page cache, unless it dropped them.
	pushed
	// probed files were left out, to see by their reads whether the others
	// around them are wanted.
	probed
)

// pushRate is the default of Options.PushRate: a push costs the memory bus twice
// its bytes, and this is a tenth of what a training host's has.
const pushRate = 2 << 30

// maxPushed is the largest file that is pushed; larger ones are read in streams,
// which the kernel's own readahead serves.
const maxPushed = covey.DefaultBlockSize

// pusher puts small files into the kernel's page cache before they are read
// (profile small), with NOTIFY_STORE. Only bytes of the cache, which are
// verified, and only into nodes that the kernel has: a node is one version, so
// whatever the kernel does with the pages meanwhile, they are right.
//
// The kernel locks the pages that it stores into, and a page that a reader waits
// for is locked until its READ is answered. So a store must never run in a
// goroutine that answers requests, nor with a lock held that a READ or FORGET
// takes; it runs in the pusher's own goroutine, with none.
//
// INVARIANT: bytes is the sum of the sizes of the nodes that are pushing or pushed.
type pusher struct {
	store func(node uint64, off int64, data []byte) fuse.Status
	drop  func(node uint64, off, length int64) fuse.Status

	budget int64
	pacer  pacer
	buf    []byte // turn guards it

	turn sync.Mutex // serialises pushes; held over I/O, and never by a request

	files, moved, missedPushed atomic.Int64

	mu     sync.Mutex // leaf; guards the fields below and every node's ahead
	bytes  int64
	fifo   []*node // oldest first; those that are not pushed any more are passed over
	held   int     // nodes in the account
	sweeps map[*node]*sweep
	wake   chan struct{} // has a value when a sweep may go on
}

func (t *tree) configurePush(o Options) {
	p := &t.pusher
	p.budget, p.pacer.rate = o.PushBudget, o.PushRate
	if p.budget == 0 {
		p.budget = pushBudget()
	}
	if p.pacer.rate <= 0 {
		p.pacer.rate = pushRate
	}
	p.sweeps = map[*node]*sweep{}
	p.wake = make(chan struct{}, 1)
}

func (p *pusher) status() Pushed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Pushed{Files: p.files.Load(), Bytes: p.moved.Load(), Held: p.bytes, Missed: p.missedPushed.Load()}
}

// pushOne pushes one file of the kernel's. It returns how many bytes went over,
// 0 for files that need no push or cannot be pushed.
func (t *tree) pushOne(ctx context.Context, n *node) (int64, error) {
	p := &t.pusher
	if n.kind != dataset.File || n.size == 0 || n.size > maxPushed || !p.admit(n) {
		return 0, nil
	}
	p.makeRoom()
	p.turn.Lock()
	defer p.turn.Unlock()
	err := t.readWhole(ctx, n, &p.buf)
	if err != nil {
		p.forget(n)
		return 0, err
	}
	p.pacer.wait(ctx, n.size)
	if status := p.store(n.id, 0, p.buf[:n.size]); status != fuse.OK {
		// ENOENT: the kernel forgot the node meanwhile.
		p.forget(n)
		if status == fuse.ENOENT {
			return 0, nil
		}
		return 0, fmt.Errorf("push %s: %w", n.path(), unix.Errno(status))
	}
	p.settle(n)
	p.files.Add(1)
	p.moved.Add(n.size)
	if t.metrics != nil {
		t.metrics.pushedFiles.Inc()
		t.metrics.pushedBytes.Add(float64(n.size))
	}
	return n.size, nil
}

// readWhole reads a small file into the buffer, grown as needed.
func (t *tree) readWhole(ctx context.Context, n *node, buf *[]byte) error {
	if int64(len(*buf)) < n.size {
		*buf = make([]byte, (n.size+maxRequest-1)/maxRequest*maxRequest)
	}
	p := (*buf)[:n.size]
	path := n.path()
	e := dataset.Entry{Name: n.name, Kind: dataset.File, Size: n.size, Version: n.version}
	h := &handle{node: n, path: path, entry: e, object: t.names.Object(path, e)}
	if f, err := t.blocks.OpenWhole(h.object); err == nil {
		defer f.Close()
		if _, err := io.ReadFull(f, p); err == nil {
			return nil
		}
	}
	defer h.dropBlocks(true)
	return t.fill(ctx, h, p, 0)
}

// admit charges for the node, unless it is pushed.
func (p *pusher) admit(n *node) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.ahead.held() {
		return false
	}
	n.ahead = pushing
	p.bytes += n.size
	p.held++
	if len(p.fifo) >= 2*p.held+minFifo {
		p.fifo = slices.DeleteFunc(p.fifo, func(n *node) bool { return !n.ahead.held() })
	}
	p.fifo = append(p.fifo, n)
	return true
}

// minFifo is a length below which compacting the queue is not worth the while.
const minFifo = 1024

// held reports whether the node is in the account.
func (a aheadState) held() bool { return a == pushing || a == pushed }

// settle says that the kernel has the file, unless it was read meanwhile.
func (p *pusher) settle(n *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.ahead == pushing {
		n.ahead = pushed
	}
}

// makeRoom takes the oldest pushed files out of the kernel's page cache until
// the budget holds.
func (p *pusher) makeRoom() {
	for n := p.excess(); n != nil; n = p.excess() {
		// Errors say that the kernel forgot it.
		p.drop(n.id, 0, 0)
	}
}

// excess takes the oldest pushed file out of the account when that is over its
// budget.
func (p *pusher) excess() *node {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.bytes > p.budget && len(p.fifo) > 0 {
		n := p.fifo[0]
		p.fifo = p.fifo[1:]
		if n.ahead == pushed {
			p.takeOff(n, notPushed)
			return n
		}
	}
	return nil
}

// takeOff gives the node another state; p.mu is held.
func (p *pusher) takeOff(n *node, to aheadState) {
	if n.ahead.held() {
		p.bytes -= n.size
		p.held--
	}
	n.ahead = to
}

// forget takes the node out of the account.
func (p *pusher) forget(n *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeOff(n, notPushed)
}

// pacer spreads bytes evenly at a rate. One goroutine at a time uses it.
type pacer struct {
	rate int64 // bytes per second
	next time.Time
}

// slack is how far ahead of its rate a pacer lets its user run: sleeps are not
// worth less.
const slack = 5 * time.Millisecond

func (p *pacer) wait(ctx context.Context, n int64) {
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	if d := p.next.Sub(now); d > slack {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

// Pushed says what was pushed into the kernel's page cache.
type Pushed struct {
	Files, Bytes int64
	// Held is what was pushed and not taken back, dropped or forgotten since.
	Held int64
	// Missed files were read although they had been pushed: the kernel dropped
	// them first, so the budget is more than it has room for.
	Missed int64
}

// Push pushes the small files below a directory that the kernel knows, in the
// order of the listing, and returns what it did. It is an error where the mount
// is not of profile small.
func (m *Mount) Push(ctx context.Context, dir string) (Pushed, error) {
	t := m.tree
	var done Pushed
	if !t.profile.small.Load() {
		return done, fmt.Errorf("push %s: the mount on %s is not of profile small: %w", dir, m.dir, covey.ErrInvalid)
	}
	n := t.nodes.walk(dir)
	if n == nil || n.kind != dataset.Dir {
		return done, fmt.Errorf("push %s: no such directory is known to the kernel: %w", dir, covey.ErrNotFound)
	}
	err := t.pushDir(ctx, n, &done)
	return done, err
}

func (t *tree) pushDir(ctx context.Context, dir *node, done *Pushed) error {
	for e, err := range t.names.ReadDir(ctx, dir.path()) {
		if err != nil {
			return err
		}
		n := t.nodes.find(dir, e.Name)
		switch {
		case n == nil:
		case n.kind == dataset.Dir:
			err = t.pushDir(ctx, n, done)
		default:
			var size int64
			if size, err = t.pushOne(ctx, n); size > 0 {
				done.Files++
				done.Bytes += size
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
