package mount

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

// syncBuffer is a buffer that a logger and a test may use at the same time.
type syncBuffer struct {
	mu  sync.Mutex // leaf; guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestComplaints finds in the log why reads fail, once and not once a read, and
// nothing of names that do not exist.
func TestComplaints(t *testing.T) {
	var log syncBuffer
	names := newFakeNames()
	m := start(t, names, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 20 {
		_, _ = os.Stat(m.path(fmt.Sprint("missing", i)))
	}
	if got := log.String(); strings.Contains(got, "missing") {
		t.Errorf("names that do not exist are in the log:\n%s", got)
	}
	names.fail(fmt.Errorf("the key was revoked: %w", covey.ErrDenied))
	for i := range 20 {
		_, _ = os.Stat(m.path(fmt.Sprint("refused", i)))
	}
	got := log.String()
	if strings.Count(got, "level=") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, "the key was revoked") {
		t.Errorf("want one warning that says why, got:\n%s", got)
	}
}

func TestComplaintInterval(t *testing.T) {
	var c complaints
	at := time.Unix(0, 0)
	for _, step := range []struct {
		after  time.Duration
		silent int
		ok     bool
	}{
		{0, 0, true}, {time.Second, 0, false}, {complaintInterval - 1, 0, false},
		{complaintInterval, 2, true}, {2*complaintInterval - 1, 0, false}, {time.Hour, 1, true},
	} {
		if silent, ok := c.take(at.Add(step.after)); silent != step.silent || ok != step.ok {
			t.Errorf("after %v: %d, %v; want %d, %v", step.after, silent, ok, step.silent, step.ok)
		}
	}
}
