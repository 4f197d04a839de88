package mount

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// signalPoll is how often an interrupted request looks whether its process is
// to die. The kernel tells of the first signal only; one look costs some 35 us.
const signalPoll = 50 * time.Millisecond

// request is the context of one request: it ends at the read timeout, when the
// mount is taken down, or when the calling thread has a fatal signal pending.
//
// Nearly every request is answered from memory and never waits, so the timer and
// the goroutine that watches for signals start only when somebody asks for Done.
//
// Only a fatal signal ends a request. The kernel passes on every signal, the
// preemption and profiling signals of language runtimes too; answering those
// with EINTR would make a page fault of a mapped file SIGBUS.
type request struct {
	parent   context.Context
	cancel   <-chan struct{}
	tid      uint32
	deadline time.Time

	mu    sync.Mutex // leaf; guards the fields below
	ended bool
	ctx   context.Context // nil until Done is first asked for
	stop  func()
}

var _ context.Context = (*request)(nil)

// requests are used again when nobody can have kept them.
var requests = sync.Pool{New: func() any { return new(request) }}

// begin returns the context of one request. The caller must call end.
func (t *tree) begin(cancel <-chan struct{}, h *fuse.InHeader) *request {
	r := requests.Get().(*request)
	r.parent, r.cancel, r.tid, r.deadline = t.ctx, cancel, h.Pid, time.Now().Add(t.readTimeout)
	return r
}

// end gives back what the request started. A request that nobody waited with has
// no other user, so that it can serve again: whatever keeps a context, a derived
// one or a goroutine, asks it for Done first.
func (r *request) end() {
	r.mu.Lock()
	r.ended = true
	if r.stop != nil {
		r.stop()
	}
	unused := r.ctx == nil
	r.mu.Unlock()
	if unused {
		*r = request{}
		requests.Put(r)
	}
}

// started returns the context behind the request, made when first asked for, or
// nil if that was never and make is false.
func (r *request) started(make bool) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx != nil || !make {
		return r.ctx
	}
	cause, interrupt := context.WithCancelCause(r.parent)
	ctx, stop := context.WithDeadline(cause, r.deadline)
	r.ctx, r.stop = ctx, func() { stop(); interrupt(nil) }
	if r.ended {
		r.stop()
		return ctx
	}
	cancel, tid := r.cancel, r.tid
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-cancel:
		}
		if waitFatal(ctx, tid) {
			interrupt(errInterrupted)
		}
	}()
	return ctx
}

// Deadline implements context.Context.
func (r *request) Deadline() (time.Time, bool) { return r.deadline, true }

// Done implements context.Context.
func (r *request) Done() <-chan struct{} { return r.started(true).Done() }

// Err implements context.Context.
func (r *request) Err() error {
	if ctx := r.started(false); ctx != nil {
		return ctx.Err()
	}
	if err := r.parent.Err(); err != nil {
		return err
	}
	if !time.Now().Before(r.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context; it is how context.Cause finds the cause.
func (r *request) Value(key any) any {
	if ctx := r.started(false); ctx != nil {
		return ctx.Value(key)
	}
	return r.parent.Value(key)
}

// waitFatal waits until the thread has a fatal signal pending; false when ctx
// ends first. A thread of another PID namespace (tid 0) cannot be looked at, so
// its requests end at the deadline.
func waitFatal(ctx context.Context, tid uint32) bool {
	tick := time.NewTicker(signalPoll)
	defer tick.Stop()
	for {
		if tid != 0 && fatalPending(tid) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// harmless are the signals whose default action does not end a process.
const harmless = 1<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGURG-1) |
	1<<(unix.SIGWINCH-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) |
	1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1)

// fatalPending reports whether a signal is pending that will end the thread: not
// blocked, ignored or caught, and not harmless by default. A process that was
// sent SIGTERM without handling it has SIGKILL pending in each thread.
func fatalPending(tid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return os.IsNotExist(err)
	}
	pending := signalMask(status, "SigPnd:") | signalMask(status, "ShdPnd:")
	handled := signalMask(status, "SigBlk:") | signalMask(status, "SigIgn:") | signalMask(status, "SigCgt:")
	return pending&^handled&^harmless != 0
}

func signalMask(status []byte, field string) uint64 {
	_, rest, _ := bytes.Cut(status, []byte("\n"+field))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	mask, _ := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
	return mask
}
