package blockstore

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const holderEnv = "COVEY_BLOCKSTORE_TEST_HOLD"

// runHolder makes this process, started by a test, hold a cache directory until
// its standard input ends.
func runHolder() {
	dir := os.Getenv(holderEnv)
	if dir == "" {
		return
	}
	s, err := openTier(Options{Dir: dir, Budget: 1 << 20})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := s.Close(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func TestOneProcessOwnsADirectory(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderEnv+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "held\n" {
		t.Fatalf("other process: %q, %v", line, err)
	}
	_, err = openTier(Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d;", cmd.Process.Pid)) || strings.Contains(err.Error(), "\n") {
		t.Errorf("second process: %v, want one line naming %d", err, cmd.Process.Pid)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, Options{Dir: dir})
	if _, err := openTier(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d;", os.Getpid())) {
		t.Errorf("same process again: %v", err)
	}
	mustClose(t, s)
}
