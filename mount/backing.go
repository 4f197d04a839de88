package mount

import (
	"container/list"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Limits of the registrations that no open handle uses. Opening and registering
// a file costs some 15 us of the 65 an open may take, so files that are opened
// over and over gain; but a registration pins the bytes of a file that the store
// may have unlinked meanwhile, so they are bounded in bytes as well.
//
// Each also costs a file descriptor, of which they take an eighth at most.
const (
	maxIdleBackings     = 16 << 10
	maxIdleBackingBytes = 1 << 30
)

// idleLimit returns how many registrations may be without a user in a process
// that may have so many files open.
func idleLimit() int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 0
	}
	return int(min(files.Cur/8, maxIdleBackings))
}

// maxRefusedDevices bounds what is remembered of file systems that cannot back a
// passthrough: a cache has a handful of tiers.
const maxRefusedDevices = 16

// backing is a whole object's file, registered with the kernel under an ID.
type backing struct {
	id   int32
	file *os.File
	size int64
}

// registrar makes backings and keeps those without a user, least recently used
// first out.
//
// mu is a leaf lock and guards idle, elems and bytes.
//
// INVARIANT: bytes is the sum of the sizes in idle, and within its limits when
// mu is free.
type registrar struct {
	open  func(fd int32) (int32, unix.Errno)
	close func(id int32) unix.Errno

	ledger *ledger

	// why is nil while passthrough works on this mount.
	why atomic.Pointer[string]

	refusedMu sync.Mutex // leaf; guards refused
	refused   map[uint64]string

	limit int // of the registrations in idle

	mu    sync.Mutex
	idle  list.List // of idleBacking, oldest at the front
	elems map[*backing]*list.Element
	bytes int64
}

type idleBacking struct {
	b  *backing
	in *inode
}

// on reports whether passthrough works on this mount at all.
func (r *registrar) on() bool { return r.why.Load() == nil }

// disable turns passthrough off for the mount's life.
func (r *registrar) disable(why string) { r.why.CompareAndSwap(nil, &why) }

// reason returns why files are not passed through, "" when they are. A file
// system that was refused counts: the cache may lie wholly on it.
func (r *registrar) reason() string {
	if why := r.why.Load(); why != nil {
		return *why
	}
	r.refusedMu.Lock()
	defer r.refusedMu.Unlock()
	for _, why := range r.refused {
		return why
	}
	return ""
}

// register makes a backing of the file and owns it from then on; nil when the
// kernel refuses, with the file closed. What the refusal says of other files is
// remembered: EPERM and ENOTTY hold for the whole mount, ELOOP and EOPNOTSUPP
// for the file system that the file is on, anything else for this call.
func (r *registrar) register(f *os.File, size int64) *backing {
	var st unix.Stat_t
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &st); err != nil || !r.backable(st.Dev) {
		f.Close()
		return nil
	}
	id, errno := r.open(int32(fd))
	switch errno {
	case 0:
		r.ledger.backed(id)
		return &backing{id: id, file: f, size: size}
	case unix.ELOOP, unix.EOPNOTSUPP:
		r.refuse(st.Dev, fmt.Sprintf("the cache's file system cannot be passed through (%v)", errno))
	default:
		r.learn(errno)
	}
	f.Close()
	return nil
}

// learn turns passthrough off when the kernel's refusal holds for every file.
func (r *registrar) learn(errno unix.Errno) {
	switch errno {
	case unix.EPERM:
		r.disable("registering a file needs CAP_SYS_ADMIN")
	case unix.ENOTTY, unix.ENOSYS:
		r.disable("the kernel does not know passthrough (Linux 6.9 or later does)")
	}
}

// probe has the kernel refuse a descriptor that is none, so that the status is
// right before the first file is opened: whether this process may register files
// is looked at before the descriptor is.
func (r *registrar) probe() {
	if !r.on() {
		return
	}
	id, errno := r.open(-1)
	if errno == 0 {
		r.close(id)
	}
	r.learn(errno)
}

func (r *registrar) backable(dev uint64) bool {
	r.refusedMu.Lock()
	defer r.refusedMu.Unlock()
	_, refused := r.refused[dev]
	return !refused
}

func (r *registrar) refuse(dev uint64, why string) {
	r.refusedMu.Lock()
	defer r.refusedMu.Unlock()
	if r.refused == nil {
		r.refused = map[uint64]string{}
	}
	if len(r.refused) < maxRefusedDevices {
		r.refused[dev] = why
	}
}

// drop unregisters the backing and closes its file.
func (r *registrar) drop(b *backing) {
	r.close(b.id)
	r.ledger.unbacked(b.id)
	b.file.Close()
}

// park keeps a backing that lost its last user, and returns those that have to
// go for it. The caller holds the inode's lock and must drop each of them with
// [inode.evict] after giving it up.
func (r *registrar) park(b *backing, in *inode) (out []idleBacking) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.elems == nil {
		r.elems = map[*backing]*list.Element{}
	}
	r.elems[b] = r.idle.PushBack(idleBacking{b, in})
	r.bytes += b.size
	for r.idle.Len() > r.limit || r.bytes > maxIdleBackingBytes {
		e := r.idle.Front().Value.(idleBacking)
		r.removeLocked(e.b)
		out = append(out, e)
	}
	return out
}

// unpark takes a backing that has a user again, or goes, off the list.
func (r *registrar) unpark(b *backing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(b)
}

func (r *registrar) removeLocked(b *backing) {
	if e := r.elems[b]; e != nil {
		r.idle.Remove(e)
		delete(r.elems, b)
		r.bytes -= b.size
	}
}

// parked returns everything that has no user.
func (r *registrar) parked() []idleBacking {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []idleBacking
	for e := r.idle.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(idleBacking))
	}
	return all
}
