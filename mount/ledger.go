package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ledger is what a mount would have to remember if its process were killed now:
// which node IDs the kernel knows and how often, what it has open and how, and
// what is registered for passthrough. It is a log in memory that a holder process
// has a descriptor of, too: an append is a copy of some 50 bytes, and what was
// appended before a reply was sent survives SIGKILL. It does not survive the host,
// and neither does the mount.
//
// A nil ledger remembers nothing; all methods may be called on it, and
// concurrently.
//
// mu is a leaf lock and guards the fields below it.
//
// INVARIANT: a record is whole before its header is written, and the header
// behind the last record is 0.
type ledger struct {
	swap    func(*os.File) error // gives the holder the file of a shorter log
	working sync.WaitGroup       // a shortening

	mu      sync.Mutex
	file    *os.File
	log     []byte // the mapping
	n       int    // where the next record goes
	base    int    // n after the last shortening
	scratch []byte
	short   bool // a shortening is under way
	lost    bool // the log is full: nothing can be resumed
}

const (
	// ledgerBytes bounds the log, which is sparse: 40 million names.
	ledgerBytes = 4 << 30
	// ledgerHeadroom is how large a record can be: two names of at most 1 KiB.
	ledgerHeadroom = 8 << 10
	// shortenAt is where a log is shortened first. A walk of a million names and
	// the kernel's forgetting them again writes 90 MB, of which nothing is left.
	shortenAt = 32 << 20
	// recordAlign lets a header be written at once.
	recordAlign = 4
)

// The records. What each has is in ledger.go's appends and in recall.go.
const (
	recEnd byte = iota
	recNode
	recLookup
	recForget
	recSize
	recOpen
	recRelease
	recOpenDir
	recReleaseDir
	recBacked
	recUnbacked
	recSmall
	recLast
	recMove
)

func newLedger() (*ledger, error) {
	fd, err := unix.MemfdCreate("covey-mount", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a mount's ledger: %w", err)
	}
	return openLedger(os.NewFile(uintptr(fd), "covey-mount"))
}

// openLedger maps a log and owns the file.
func openLedger(f *os.File) (*ledger, error) {
	if err := f.Truncate(ledgerBytes); err != nil {
		f.Close()
		return nil, fmt.Errorf("size a mount's ledger: %w", err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, ledgerBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map a mount's ledger: %w", err)
	}
	return &ledger{file: f, log: b}, nil
}

func (m *ledger) close() {
	if m == nil {
		return
	}
	m.mu.Lock()
	m.lost = true
	m.mu.Unlock()
	m.working.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.log != nil {
		_ = unix.Munmap(m.log)
		m.log = nil
		m.file.Close()
	}
}

// begin starts a record in scratch; mu is held until end.
func (m *ledger) begin() *ledger {
	m.mu.Lock()
	m.scratch = m.scratch[:0]
	return m
}

func (m *ledger) num(v uint64) *ledger {
	m.scratch = binary.AppendUvarint(m.scratch, v)
	return m
}

func (m *ledger) text(s string) *ledger {
	m.num(uint64(len(s)))
	m.scratch = append(m.scratch, s...)
	return m
}

// end appends the record and gives mu up.
func (m *ledger) end(op byte) {
	defer m.mu.Unlock()
	if m.log == nil || m.lost {
		return
	}
	if m.n+ledgerHeadroom+len(m.scratch) > len(m.log) {
		m.lost = true
		m.setHeader(0, 0) // what is resumed in part would be wrong
		return
	}
	m.n = appendRecord(m.log, m.n, op, m.scratch)
	if !m.short && m.n > shortenAt && m.n > 3*m.base && m.swap != nil {
		m.short = true
		log, n := m.log, m.n
		m.working.Go(func() { m.shorten(log, n) })
	}
}

func (m *ledger) setHeader(at int, v uint32) { setHeader(m.log, at, v) }

func setHeader(log []byte, at int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&log[at])), v)
}

func header(log []byte, at int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&log[at])))
}

// appendRecord writes a record at an offset, its header last, and returns the
// offset behind it.
func appendRecord(log []byte, at int, op byte, body []byte) int {
	copy(log[at+4:], body)
	next := at + 4 + (len(body)+recordAlign-1)/recordAlign*recordAlign
	setHeader(log, at, uint32(len(body))<<8|uint32(op))
	return next
}

// shorten writes a log of what the first n bytes amount to, copies what has been
// appended since, and has the holder take the new file in the old one's place.
// Only the copying and the hand-over hold up appends.
func (m *ledger) shorten(log []byte, n int) {
	im, _, err := replay(log[:n])
	var next *ledger
	if err == nil {
		next, err = newLedger()
	}
	if err != nil {
		m.giveUp()
		return
	}
	im.write(next)
	m.mu.Lock()
	defer m.mu.Unlock()
	tail := m.n - n
	if m.lost || next.n+tail+ledgerHeadroom > len(next.log) {
		next.close()
		return
	}
	copy(next.log[next.n:], m.log[n:m.n])
	next.n += tail
	if m.swap(next.file) != nil {
		// The holder has the old log still: it goes on.
		next.close()
		m.base, m.short = m.n, false
		return
	}
	_ = unix.Munmap(m.log)
	m.file.Close()
	m.file, m.log, m.n, m.base, m.short = next.file, next.log, next.n, next.n, false
}

// giveUp leaves a log that cannot be read to its holder as an empty one.
func (m *ledger) giveUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = true
	if m.log != nil {
		m.setHeader(0, 0)
	}
}

// node notes a node that the kernel is about to hear of.
func (m *ledger) node(n *node) {
	if m == nil {
		return
	}
	m.begin().num(n.id).num(n.parent.id).num(uint64(n.kind)).num(uint64(n.mode)).
		num(uint64(n.size)).num(uint64(n.mtime)).text(n.name).text(n.version).end(recNode)
}

// lookup notes further references of the kernel.
func (m *ledger) lookup(id, count uint64) {
	if m != nil {
		m.begin().num(id).num(count).end(recLookup)
	}
}

func (m *ledger) forget(id, lookups uint64) {
	if m != nil {
		m.begin().num(id).num(lookups).end(recForget)
	}
}

// move notes a directory's new place.
func (m *ledger) move(n *node) {
	if m != nil {
		m.begin().num(n.id).num(n.parent.id).text(n.name).end(recMove)
	}
}

func (m *ledger) size(id uint64, size, mtime int64) {
	if m != nil {
		m.begin().num(id).num(uint64(size)).num(uint64(mtime)).end(recSize)
	}
}

// open notes a handle that the kernel is about to hear of.
func (m *ledger) open(fh uint64, h *handle) {
	if m == nil {
		return
	}
	var flags, backing uint64
	var size int64
	if h.backing != nil {
		flags, backing, size = flags|1, uint64(h.backing.id), h.backing.size
	}
	if h.writes {
		flags |= 2
	}
	m.begin().num(fh).num(h.node.id).num(flags).num(backing).num(uint64(size)).num(uint64(h.opener)).end(recOpen)
}

func (m *ledger) release(fh uint64) {
	if m != nil {
		m.begin().num(fh).end(recRelease)
	}
}

func (m *ledger) openDir(fh, id uint64) {
	if m != nil {
		m.begin().num(fh).num(id).end(recOpenDir)
	}
}

func (m *ledger) releaseDir(fh uint64) {
	if m != nil {
		m.begin().num(fh).end(recReleaseDir)
	}
}

// backed and unbacked note the registrations, which the kernel keeps until they
// are taken back, whoever made them.
func (m *ledger) backed(id int32) {
	if m != nil {
		m.begin().num(uint64(id)).end(recBacked)
	}
}

func (m *ledger) unbacked(id int32) {
	if m != nil {
		m.begin().num(uint64(id)).end(recUnbacked)
	}
}

// small notes that the kernel opens files by itself from now on.
func (m *ledger) small() {
	if m != nil {
		m.begin().end(recSmall)
	}
}

var errLedger = errors.New("a mount's ledger cannot be read")
