package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// HolderGrace is how long a holder keeps the mounts of an agent that died: longer
// than an agent takes to start over a cache of millions of objects, and a third of
// the 120 s after which the kernel calls a waiting reader hung. Then it lets them
// go, and readers get ENOTCONN as they would have without a holder.
const HolderGrace = 40 * time.Second

const (
	// maxHeld bounds what one agent may have held, two descriptors each.
	maxHeld = 256
	// maxPacket bounds one message: names of 4 KiB, escaped, and numbers.
	maxPacket = 64 << 10
	// holderIdle is how long a holder with nothing to hold waits for its agent.
	holderIdle = 10 * time.Second
)

// packet is one message between an agent and its holder, with the descriptors
// that go along.
type packet struct {
	Op   string `json:"op"` // hello, kept, end, keep, ledger, drop, ok
	Name string `json:"name,omitempty"`
	Meta []byte `json:"meta,omitempty"`

	files []*os.File
}

// held is one mount in the holder's hands.
type held struct {
	meta           []byte
	device, ledger *os.File
}

func (h *held) close() {
	h.device.Close()
	h.ledger.Close()
}

// holder keeps descriptors for one agent at a time.
//
// mu guards the fields below it and is not held over I/O.
type holder struct {
	log   *slog.Logger
	grace time.Duration

	mu   sync.Mutex
	held map[string]*held
	// agent is closed when the agent that is served has gone; nil without one.
	agent chan struct{}
	// idle ends the holder, unless an agent is there.
	idle *time.Timer
}

// RunHolder is a holder process: it listens on the socket, which it makes for its
// user alone, and keeps what its agent gives it, until ctx ends, or until the
// agent is gone and has left nothing. What an agent that died has left is let go
// after the grace.
func RunHolder(ctx context.Context, socket string, grace time.Duration, log *slog.Logger) error {
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	unix.Umask(old)
	if err != nil {
		return fmt.Errorf("hold mounts at %s: %w", socket, err)
	}
	h := &holder{log: log, grace: grace, held: map[string]*held{}}
	defer h.letGo("the holder ends")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	h.idle = time.AfterFunc(holderIdle, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.agent == nil {
			cancel()
		}
	})
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("hold mounts at %s: %w", socket, err)
		}
		if !h.admit(c) {
			_ = c.Close()
			continue
		}
		conns.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			h.serve(c)
			_ = c.Close()
			if !h.left() {
				cancel() // an agent that left in order needs no holder
			}
		})
	}
}

// admit lets one agent in, of the holder's own user.
func (h *holder) admit(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil || cred.Uid != uint32(os.Geteuid()) && cred.Uid != 0 {
		h.log.Warn("somebody else's process asked for the mounts")
		return false
	}
	for {
		h.mu.Lock()
		before := h.agent
		if before == nil {
			h.agent = make(chan struct{})
			h.idle.Stop()
		}
		h.mu.Unlock()
		if before == nil {
			return true
		}
		// One that was killed a moment ago may not have been missed yet.
		select {
		case <-before:
		case <-time.After(holderPatience / 2):
			h.log.Warn("a second agent asked for the mounts")
			return false
		}
	}
}

// left ends the agent's time and reports whether it left anything.
func (h *holder) left() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.agent)
	h.agent = nil
	h.idle.Reset(h.grace)
	return len(h.held) > 0
}

// letGo closes all descriptors, which ends the mounts' connections.
func (h *holder) letGo(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, m := range h.held {
		h.log.Warn("a mount is let go", "dir", name, "why", why)
		m.close()
	}
	h.held = map[string]*held{}
}

// serve answers the agent until it is gone.
func (h *holder) serve(c *net.UnixConn) {
	for {
		p, err := receive(c)
		if err != nil {
			return
		}
		if err := h.answer(c, p); err != nil {
			h.log.Warn("a message of the agent is refused", "op", p.Op, "error", err)
			for _, f := range p.files {
				f.Close()
			}
			return
		}
	}
}

func (h *holder) answer(c *net.UnixConn, p *packet) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.held[p.Name]
	switch {
	case p.Op == "hello" && len(p.files) == 0:
		for name, m := range h.held {
			if err := send(c, &packet{Op: "kept", Name: name, Meta: m.meta, files: []*os.File{m.device, m.ledger}}); err != nil {
				return err
			}
		}
		return send(c, &packet{Op: "end"})
	case p.Op == "keep" && len(p.files) == 2 && (m != nil || len(h.held) < maxHeld):
		if m != nil {
			m.close()
		}
		h.held[p.Name] = &held{meta: p.Meta, device: p.files[0], ledger: p.files[1]}
	case p.Op == "ledger" && len(p.files) == 1 && m != nil:
		m.ledger.Close()
		m.ledger = p.files[0]
	case p.Op == "drop" && len(p.files) == 0:
		if m != nil {
			m.close()
			delete(h.held, p.Name)
		}
	default:
		return fmt.Errorf("operation %q with %d descriptors", p.Op, len(p.files))
	}
	return send(c, &packet{Op: "ok"})
}

// send writes one packet with its descriptors, which stay the caller's.
func send(c *net.UnixConn, p *packet) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(text) > maxPacket {
		return fmt.Errorf("a message of %d bytes", len(text))
	}
	var rights []byte
	if len(p.files) > 0 {
		fds := make([]int, len(p.files))
		for i, f := range p.files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(text, rights, nil)
	return err
}

var errHolderGone = errors.New("the other side is gone")

// receive reads one packet and owns its descriptors.
func receive(c *net.UnixConn) (*packet, error) {
	text := make([]byte, maxPacket+1)
	rights := make([]byte, unix.CmsgSpace(4*2)) // two descriptors of 4 bytes
	n, rn, flags, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	p := &packet{}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	for _, m := range messages {
		fds, rightsErr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			p.files = append(p.files, os.NewFile(uintptr(fd), "held"))
		}
	}
	switch {
	case err == nil && n == 0:
		err = errHolderGone
	case err == nil && (n > maxPacket || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0):
		err = errors.New("a message that is too large")
	}
	if err == nil {
		err = json.Unmarshal(text[:n], p)
	}
	if err != nil {
		for _, f := range p.files {
			f.Close()
		}
		return nil, err
	}
	return p, nil
}
