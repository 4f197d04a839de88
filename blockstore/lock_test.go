package blockstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
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

// A directory that a later covey wrote, by its own version or by its index's, is
// refused in one line, and left as it is.
func TestFutureVersion(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"format": func(dir string) error {
			return os.WriteFile(dir+"/"+nameFormat, []byte(formatPrefix+"99\n"), 0o600)
		},
		"index": func(dir string) error {
			names, err := filepath.Glob(dir + "/index/" + indexFormatPrefix + "*")
			if err != nil || len(names) != 1 {
				return fmt.Errorf("markers %q: %w", names, err)
			}
			return os.Rename(names[0], strings.TrimSuffix(names[0], "024")+"099")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := object("o", 2*testBlock)
			s := mustOpen(t, Options{Dir: dir, Budget: 1 << 20})
			putAll(t, s, o)
			mustClose(t, s)
			if err := change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(Options{Dir: dir, Budget: 1 << 20})
			if !errors.Is(err, covey.ErrInvalid) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "99") {
				t.Errorf("open: %v, want one line that names the version", err)
			}
			t.Log(err)
			if _, err := os.Stat(dataPath(dir, o)); err != nil {
				t.Errorf("the data is gone: %v", err)
			}
			if _, err := os.Stat(dir + "/" + nameBad); err == nil {
				t.Error("the index was moved aside")
			}
		})
	}
}
