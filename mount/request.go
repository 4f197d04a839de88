package mount

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// signalPoll is how often an interrupted request looks whether its process is
// to die. The kernel tells of the first signal only; one look costs 20 us.
const signalPoll = 50 * time.Millisecond

// begin returns the context of one request: it ends at the read timeout, when
// the mount is taken down, or when the calling thread has a fatal signal
// pending. The caller must call done.
//
// Only a fatal signal ends a request. The kernel passes on every signal, the
// preemption and profiling signals of language runtimes too; answering those
// with EINTR would make a page fault of a mapped file SIGBUS.
func (t *tree) begin(cancel <-chan struct{}, h *fuse.InHeader) (ctx context.Context, done func()) {
	cause, interrupt := context.WithCancelCause(t.ctx)
	ctx, stop := context.WithTimeout(cause, t.readTimeout)
	pid := h.Pid
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-cancel:
		}
		if waitFatal(ctx, pid) {
			interrupt(errInterrupted)
		}
	}()
	return ctx, func() { stop(); interrupt(nil) }
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
