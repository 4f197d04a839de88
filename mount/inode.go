package mount

import (
	"os"
	"sync"
	"time"
)

// inode is the arbiter of one node's open handles. The kernel has an inode
// either in cached mode or in passthrough mode: an open that asks for the other
// one fails with EIO, and all passthrough handles must name one registration.
//
// The counts run behind the kernel's own, never ahead: they rise before the
// kernel sees the reply of an open and fall when it has already released the
// handle. So a mode that is free here is free there.
//
// mu comes before registrar.mu, and is not held over I/O (registering a file is
// an ioctl that does none). It guards all fields.
//
// INVARIANT: cached == 0 or passed == 0.
// INVARIANT: passed > 0 means backing != nil.
// INVARIANT: a backing with passed == 0 is parked in the registrar, but for the
// moment in which one goroutine parks or evicts it.
type inode struct {
	mu      sync.Mutex
	cached  int
	passed  int
	backing *backing
	// leaveUntil is before when an open does not try to make a larger file whole.
	leaveUntil time.Time

	streams *streams // while a file of several blocks is served
}

// join returns the backing that passthrough handles share already, with one
// more user, or nil. cached reports whether cached handles are open, which rules
// out passthrough for now.
func (in *inode) join(r *registrar) (b *backing, cached bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.backing == nil || in.cached > 0 {
		return nil, in.cached > 0
	}
	return in.useLocked(r), false
}

// enter counts one more handle and decides its mode: passthrough, with the
// backing, where one exists or the file (nil: the object is not whole) can
// become one; cached, with nil, otherwise. It owns the file.
func (in *inode) enter(r *registrar, f *os.File, size int64) *backing {
	in.mu.Lock()
	defer in.mu.Unlock()
	if f != nil && (in.backing != nil || in.cached > 0) {
		f.Close()
		f = nil
	}
	if f != nil {
		in.backing = r.register(f, size)
	}
	if in.backing == nil || in.cached > 0 {
		in.cached++
		return nil
	}
	return in.useLocked(r)
}

func (in *inode) useLocked(r *registrar) *backing {
	if in.passed == 0 {
		r.unpark(in.backing)
	}
	in.passed++
	return in.backing
}

// leave counts a handle off, and reports whether it was the last that is served.
// The last passthrough handle parks the backing.
func (in *inode) leave(r *registrar, passed bool) (lastServed bool) {
	in.mu.Lock()
	if !passed {
		in.cached--
		if lastServed = in.cached == 0; lastServed {
			in.streams = nil
		}
		in.mu.Unlock()
		return lastServed
	}
	in.passed--
	var out []idleBacking
	if in.passed == 0 {
		out = r.park(in.backing, in)
	}
	in.mu.Unlock()
	for _, e := range out {
		e.in.evict(r, e.b)
	}
	return false
}

// evict drops the backing unless it has a user again.
func (in *inode) evict(r *registrar, b *backing) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.backing != b || in.passed > 0 {
		return
	}
	r.unpark(b)
	in.backing = nil
	r.drop(b)
}

// forget drops the backing when the kernel has forgotten the node.
func (in *inode) forget(r *registrar) {
	in.mu.Lock()
	b := in.backing
	in.mu.Unlock()
	if b != nil {
		in.evict(r, b)
	}
}
