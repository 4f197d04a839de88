package testnet_test

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey/testnet"
)

// lines is an output that tells when a line with some text was written.
type lines struct {
	mu    sync.Mutex // leaf; guards text
	text  bytes.Buffer
	want  string
	found func()
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.want != "" && bytes.Contains(p, []byte(l.want)) {
		l.found()
	}
	return l.text.Write(p)
}

// demo runs the demo over a small tree, interrupts it once it prints a line with
// this text, and wants nothing to be left of it.
func demo(t *testing.T, interruptAt string) (string, error) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing; load the module (modprobe fuse), as .ci/run does")
	}
	work, err := os.MkdirTemp("", "cv") // short, as socket paths have to be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	tree := t.TempDir()
	writeFiles(t, tree, someFiles())
	t.Setenv("TMPDIR", work)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out := &lines{want: interruptAt, found: cancel}
	err = testnet.Demo(ctx, testnet.DemoOptions{Binary: coveyBinary, Tree: tree, Agents: 4, Readers: 4, Out: out})
	left, readErr := os.ReadDir(work)
	if readErr != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, readErr)
	}
	mounts, readErr := os.ReadFile("/proc/self/mountinfo")
	if readErr != nil || strings.Contains(string(mounts), work) {
		t.Errorf("a mount is left behind: %v", readErr)
	}
	return out.text.String(), err
}

func TestDemo(t *testing.T) {
	out, err := demo(t, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"read and compared on all 4 mounts", "origin bytes / data set bytes  1.0", "passthrough share"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in what it printed:\n%s", want, out)
		}
	}
}

func TestInterruptedDemo(t *testing.T) {
	for _, at := range []string{"data set:", "uploaded", "joined"} {
		out, err := demo(t, at)
		if err == nil || err.Error() != "interrupted" {
			t.Errorf("interrupted at %q: %v", at, err)
		}
		if strings.Contains(out, "passthrough share") {
			t.Errorf("interrupted at %q, it reports:\n%s", at, out)
		}
	}
}
