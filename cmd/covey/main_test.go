package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/covey-cache/covey/gateway"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"covey": main})
}

// TestScripts runs testdata/script with the real command as processes. Each
// script has a home, and XDG directories, of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			// A socket's path may have 107 bytes, so the runtime directory
			// cannot be below the script's.
			run, err := os.MkdirTemp("", "covey")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(run) })
			e.Defer(func() { // one that a failed script left in the background
				_ = endAgent(filepath.Join(run, "covey", "agent.sock"), syscall.SIGTERM)
			})
			e.Setenv("XDG_RUNTIME_DIR", run)
			for name, dir := range map[string]string{"XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache", "HOME": "home"} {
				e.Setenv(name, filepath.Join(e.WorkDir, dir))
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fails": cmdFails,
			"until": cmdUntil,
			"port":  cmdPort,
			"mode":  cmdMode,
			"end":   cmdEnd,
		},
	})
}

// leaveLimit is how long an agent may take to leave after a signal.
const leaveLimit = 5 * time.Second

// endAgent sends a signal to the agent on a socket, if there is one, and waits
// until its process is gone.
func endAgent(socket string, sig syscall.Signal) error {
	c := gateway.NewClient(socket)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(s.PID, sig); err != nil {
		return err
	}
	for start := time.Now(); alive(s.PID); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > leaveLimit {
			return fmt.Errorf("the agent lives %v after signal %v", leaveLimit, sig)
		}
	}
	return nil
}

// alive says whether a process runs; one that only waits for its parent to
// notice its end does not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// cmdEnd ends an agent, by default that on the default socket, and wants it
// gone in time: end TERM|INT|KILL [SOCKET].
func cmdEnd(ts *testscript.TestScript, _ bool, args []string) {
	sig := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}[args[0]]
	socket := filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "covey", "agent.sock")
	if len(args) > 1 {
		socket = args[1]
	}
	ts.Check(endAgent(socket, sig))
}

// cmdFails runs covey and wants an exit code, exactly one line on stderr that
// begins with "covey", and nothing on stdout: fails CODE ARG...
func cmdFails(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: fails CODE ARG...")
	}
	line := append([]string{"sh", "-c", `"$0" "$@" >out 2>err; echo $? >code`, "covey"}, args[1:]...)
	ts.Check(ts.Exec(line[0], line[1:]...))
	code, out, err := ts.ReadFile("code"), ts.ReadFile("out"), ts.ReadFile("err")
	ts.Logf("[code %s] %s", strings.TrimSpace(code), err)
	if strings.TrimSpace(code) != args[0] {
		ts.Fatalf("covey %v: exit code %s, want %s: %s", args[1:], strings.TrimSpace(code), args[0], err)
	}
	if out != "" {
		ts.Fatalf("covey %v: printed %q on stdout", args[1:], out)
	}
	if strings.Count(err, "\n") != 1 || !strings.HasPrefix(err, "covey") {
		ts.Fatalf("covey %v: want one line on stderr, got %q", args[1:], err)
	}
}

// cmdUntil runs a command again and again until it succeeds, for at most 20 s;
// with "!" in front, until it fails.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v: still %v after 20 s", args, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cmdPort sets variables to the numbers of free loopback ports: port NAME...
func cmdPort(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // all at once, so that no two are the same
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ts.Setenv(name, port)
	}
}

// cmdMode checks the permissions of a file: mode 600 FILE.
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// Help must be there for every command, with an example, on stdout.
func TestHelp(t *testing.T) {
	a := &app{}
	for _, c := range a.commands() {
		var out, errs bytes.Buffer
		if code := run([]string{c.Name(), "--help"}, &out, &errs, os.Getenv); code != exitDone || errs.Len() > 0 {
			t.Errorf("%s --help: code %d, stderr %q", c.Name(), code, errs.String())
		}
		if !strings.Contains(out.String(), "Examples:") || !strings.Contains(out.String(), "covey "+c.Name()) {
			t.Errorf("%s --help has no example:\n%s", c.Name(), out.String())
		}
	}
}
