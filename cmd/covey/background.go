package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/covey-cache/covey/gateway"
)

const (
	// startTimeout is how long an agent without mounts may take to be ready;
	// it opens its cache's index, which after a crash is checked first.
	startTimeout = time.Minute
	// maxLog is the size at which the log of the last agent is set aside.
	maxLog = 16 << 20
)

// background is an agent that is being started by a client.
type background struct {
	socket  string
	logFile string
	logFrom int64 // where this agent's part of the log begins
	cmd     *exec.Cmd
	ended   chan struct{} // closed when the process is gone
}

// startAgent starts an agent with defaults in a session of its own and returns
// a client of it once it is ready. Of clients that find no agent at the same
// time one starts it, and the others wait for theirs to be that.
func (a *app) startAgent(ctx context.Context, socket string) (*gateway.Client, error) {
	c, err := parseSettings(envLayer(a.getenv), a.getenv)
	if err != nil {
		return nil, err
	}
	lock, err := lockStart(ctx, c.state)
	if err != nil {
		return nil, fmt.Errorf("start an agent: %w", err)
	}
	defer lock.Close()
	if client, err := gateway.Dial(ctx, socket); !errors.Is(err, gateway.ErrNoAgent) {
		return client, err
	}
	b := &background{socket: socket, logFile: filepath.Join(c.state, "agent.log"), ended: make(chan struct{})}
	if err := b.start(a.backgroundArgs(c, socket)); err != nil {
		return nil, err
	}
	client, err := b.waitReady(ctx)
	if err != nil {
		return nil, err
	}
	if s, err := client.Status(ctx); err == nil && s.PID == b.cmd.Process.Pid {
		fmt.Fprintf(a.stderr, "covey mount: no agent was running: started one in the background, pid %d, log %s\n", s.PID, b.logFile)
	}
	return client, nil
}

// backgroundArgs are the arguments of an agent that nobody configured: ports
// that are taken are replaced by free ones. What the environment says stays.
func (a *app) backgroundArgs(c *agentConfig, socket string) []string {
	args := []string{"agent", "--api", "unix://" + socket, "--state", c.state}
	if c.standalone() && a.getenv("COVEY_LISTEN") == "" && taken(defaultLoopbackListen) {
		args = append(args, "--listen", "127.0.0.1:0")
	}
	if a.getenv("COVEY_HTTP") == "" && taken(defaultHTTP) {
		args = append(args, "--http", "127.0.0.1:0")
	}
	return args
}

func taken(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return true
	}
	l.Close()
	return false
}

func (b *background) start(args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start an agent: find this program: %w", err)
	}
	log, err := b.openLog()
	if err != nil {
		return fmt.Errorf("start an agent: %w", err)
	}
	defer log.Close()
	b.cmd = exec.Command(exe, args...)
	b.cmd.Args[0] = "covey"
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NOTIFY_SOCKET=") { // it is the client's
			b.cmd.Env = append(b.cmd.Env, v)
		}
	}
	if err := b.cmd.Start(); err != nil {
		return fmt.Errorf("start an agent: %w", err)
	}
	go func() {
		_ = b.cmd.Wait() // its log says why
		close(b.ended)
	}()
	return nil
}

// openLog opens the agent's log for appending, after setting a large one aside.
func (b *background) openLog() (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(b.logFile), 0o700); err != nil {
		return nil, err
	}
	if info, err := os.Stat(b.logFile); err == nil && info.Size() > maxLog {
		if err := os.Rename(b.logFile, b.logFile+".1"); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(b.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if b.logFrom, err = f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// waitReady waits until the agent is ready. One that does not get there is
// ended.
func (b *background) waitReady(ctx context.Context) (*gateway.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := gateway.NewClient(b.socket)
	ended := b.ended
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := client.Ready(ctx)
		if err == nil {
			return client, nil
		}
		select {
		case <-tick.C:
		case <-ended:
			// Somebody else's agent may be the reason, and then it will do.
			if !b.answered() {
				client.Close()
				return nil, fmt.Errorf("start an agent: %s", b.reason())
			}
			ended = nil
		case <-ctx.Done():
			client.Close()
			_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, errors.New("start an agent: interrupted")
			}
			return nil, fmt.Errorf("start an agent: not ready after %v: see %s", startTimeout, b.logFile)
		}
	}
}

// answered says whether anybody answers on the socket.
func (b *background) answered() bool {
	conn, err := net.DialTimeout("unix", b.socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// reason is the error line of an agent that ended, from its log.
func (b *background) reason() string {
	unknown := "it ended at once: see " + b.logFile
	f, err := os.Open(b.logFile)
	if err != nil {
		return unknown
	}
	defer f.Close()
	if _, err := f.Seek(b.logFrom, io.SeekStart); err != nil {
		return unknown
	}
	last := unknown
	lines := bufio.NewScanner(io.LimitReader(f, maxLog))
	for lines.Scan() {
		if line, ok := strings.CutPrefix(lines.Text(), "covey agent: "); ok {
			last = line
		}
	}
	return last
}
