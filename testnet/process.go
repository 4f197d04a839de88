package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/peer"
)

const (
	// readyPoll is how often a starting agent is asked whether it is ready.
	readyPoll = 10 * time.Millisecond
	// leaveTimeout is how long an agent may take to leave: the 5 s that are
	// promised and as much again for a busy machine.
	leaveTimeout = 10 * time.Second
)

// Process is one agent process.
type Process struct {
	dir    string
	mounts []peer.MountSpec
	cmd    *exec.Cmd
	client *gateway.Client
	// exited is closed when the process is gone; exitErr is set before.
	exited  chan struct{}
	exitErr error
	listen  string
	http    string
}

func startProcess(opts ClusterOptions, keyFile string, spec AgentSpec) (*Process, error) {
	p := &Process{dir: spec.Dir, mounts: spec.Mounts, exited: make(chan struct{})}
	for _, dir := range []string{p.dir, p.stateDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	args := []string{
		"agent", "--state", p.stateDir(), "--cache", p.CacheDir() + ":" + spec.CacheSize,
		"--listen", "127.0.0.1:0", "--cluster-key", keyFile,
		"--api", "unix://" + p.Socket(), "--http", "127.0.0.1:0",
		// Tests count reads of the origin to the last one.
		"--audit", "0",
	}
	if len(spec.Join) > 0 {
		args = append(args, "--join", strings.Join(spec.Join, ","))
	}
	for _, m := range spec.Mounts {
		if err := os.MkdirAll(m.Dir, 0o755); err != nil {
			return nil, err
		}
		args = append(args, "--mount", m.Source+"="+m.Dir)
	}
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(opts.Binary, append(args, spec.Args...)...)
	p.cmd.Env = append(os.Environ(), opts.Env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own keeps Ctrl-C from reaching it before Stop does; the
	// signal on our death keeps it from outliving us, however that comes.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p.client = gateway.NewClient(p.Socket())
	if err := p.start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", opts.Binary, err)
	}
	return p, nil
}

// start runs the process from a thread that lives as long as it does: the signal
// on our death is sent when the thread that forked ends, not the process.
func (p *Process) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.exitErr = p.cmd.Wait()
			close(p.exited)
		}
	}()
	return <-started
}

func (p *Process) stateDir() string { return filepath.Join(p.dir, "state") }

// Dir holds everything of the agent; a later agent can be started in it.
func (p *Process) Dir() string { return p.dir }

// CacheDir is the agent's cache directory.
func (p *Process) CacheDir() string { return filepath.Join(p.dir, "cache") }

// Socket is the agent's control socket.
func (p *Process) Socket() string { return filepath.Join(p.dir, "s") }

// LogFile is where the agent's output goes.
func (p *Process) LogFile() string { return filepath.Join(p.dir, "log") }

// PID is the agent's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Listen is the agent's mesh address, known once it was ready.
func (p *Process) Listen() string { return p.listen }

// HTTP is the agent's HTTP address, known once it was ready.
func (p *Process) HTTP() string { return p.http }

// Mount is the directory of the agent's first mount.
func (p *Process) Mount() string { return p.mounts[0].Dir }

// Mounts are what the agent was told to mount.
func (p *Process) Mounts() []peer.MountSpec { return p.mounts }

// Client talks to the agent.
func (p *Process) Client() *gateway.Client { return p.client }

func (p *Process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *Process) waitReady(ctx context.Context) error {
	for tick := time.NewTicker(readyPoll); ; {
		if s, err := p.client.Status(ctx); err == nil && s.Ready {
			p.listen, p.http = s.Listen[0], s.HTTP
			tick.Stop()
			return nil
		}
		select {
		case <-p.exited:
			tick.Stop()
			return fmt.Errorf("agent %s ended before it was ready: %s", filepath.Base(p.dir), p.lastLine())
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("agent %s is not ready: %w: %s", filepath.Base(p.dir), ctx.Err(), p.lastLine())
		case <-tick.C:
		}
	}
}

func (p *Process) lastLine() string {
	b, err := os.ReadFile(p.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(lines[len(lines)-1])
}

// lastWords is the line that says why the agent ended: its last one, or that of
// a panic, behind which comes a trace.
func (p *Process) lastWords() string {
	b, err := os.ReadFile(p.LogFile())
	if err != nil {
		return err.Error()
	}
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(line, []byte("panic: ")) || bytes.HasPrefix(line, []byte("fatal error: ")) {
			return string(bytes.TrimSpace(line))
		}
	}
	return p.lastLine()
}

// Stop asks the agent to leave and waits until it has; one that does not within
// leaveTimeout is killed, which is an error.
func (p *Process) Stop() error {
	if !p.running() {
		return p.cleanMounts()
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return errors.Join(p.exitErr, p.cleanMounts())
	case <-time.After(leaveTimeout):
		return errors.Join(fmt.Errorf("agent %s did not leave within %v", filepath.Base(p.dir), leaveTimeout), p.Kill())
	}
}

// Kill ends the agent at once, as a crash would, and removes the dead mounts.
func (p *Process) Kill() error {
	p.Crash()
	return p.cleanMounts()
}

// Crash kills the agent and leaves its mounts as a crash leaves them.
func (p *Process) Crash() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.exited
}

// Signal sends a signal to the agent.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

func (p *Process) cleanMounts() error {
	var errs []error
	for _, m := range p.mounts {
		if _, _, mounted := mount.Mounted(m.Dir); mounted {
			errs = append(errs, mount.Umount(m.Dir, true))
		}
	}
	return errors.Join(errs...)
}
