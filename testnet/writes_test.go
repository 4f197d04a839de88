package testnet_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// writers are the specification of an agent that mounts a source to write.
func (m *mesh) writers(source string) testnet.AgentSpec {
	m.mounts++
	dir := filepath.Join(m.dir, "rw", string(rune('a'+m.mounts)))
	return testnet.AgentSpec{
		Mounts: []peer.MountSpec{{Source: source, Dir: dir}},
		Args:   []string{"--mount-options", dir + "=rw", "--max-age", "1s"},
	}
}

// TestWrittenFileIsReadByAll writes a file on one node and reads it on another:
// the origin has it, and is not asked for a byte of it. (A small file is announced
// as its listing groups it a second or two after it was written; a reader that is
// faster reads the origin. Hence the age of the other node's listing.)
func TestWrittenFileIsReadByAll(t *testing.T) {
	m := newMesh(t, map[string]int{"old": 10})
	a := m.agentWith(t, m.writers(m.s3.URL(bucket, "")))
	b := m.agent(t, "--max-age", "4s")
	if _, err := os.ReadDir(b.Mount()); err != nil {
		t.Fatal(err)
	}
	want := content("ckpt", 21<<20+5)
	if err := os.WriteFile(filepath.Join(a.Mount(), "ckpt.tmp"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(a.Mount(), "ckpt.tmp"), filepath.Join(a.Mount(), "ckpt")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(a.Mount(), "ckpt")); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read back: %d bytes, %v", len(got), err)
	}
	if n := m.originBytes(t); n != 0 {
		t.Errorf("%d bytes were read from the origin to read them back", n)
	}
	eventually(t, 20*time.Second, "the other node sees the file", func() bool {
		_, err := os.Stat(filepath.Join(b.Mount(), "ckpt"))
		return err == nil
	})
	if got, err := os.ReadFile(filepath.Join(b.Mount(), "ckpt")); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("on the other node: %d bytes, %v", len(got), err)
	}
	if n := m.originBytes(t); n != 0 {
		t.Errorf("%d bytes were read from the origin", n)
	}
	s, err := a.Client().Status(t.Context())
	if err != nil || len(s.Staged) != 0 || !s.Mounts[0].RW {
		t.Errorf("status: staged %+v, mounts %+v, %v", s.Staged, s.Mounts, err)
	}
}

// TestAgentKilledWhileUploading kills an agent under a close and under a writer.
// The next agent finishes the upload of what was closed, and reports the other.
func TestAgentKilledWhileUploading(t *testing.T) { // fault 2
	m := newMesh(t, map[string]int{"old": 10})
	fault := origintest.StartFault(t, m.s3)
	spec := m.writers(fault.URL(bucket, ""))
	spec.Args = append(spec.Args, "--listen", "127.0.0.1:0")
	a := m.agentWith(t, spec)
	half, err := os.Create(filepath.Join(a.Mount(), "half"))
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.WriteString("half of it"); err != nil {
		t.Fatal(err)
	}
	want := content("whole", 3<<20)
	fault.Always("put", origintest.Hang)
	closed := make(chan error, 1)
	go func() { closed <- os.WriteFile(filepath.Join(a.Mount(), "whole"), want, 0o644) }()
	eventually(t, 20*time.Second, "the upload is under way", func() bool {
		s, err := a.Client().Status(t.Context())
		if err != nil {
			return false
		}
		for _, f := range s.Staged {
			if f.Path == "whole" && f.State == "closing" && fault.Seen("put") > 0 {
				return true
			}
		}
		return false
	})
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-closed:
		if err == nil {
			t.Fatal("close says nothing of an upload that was cut off")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("close hangs after the death of its agent")
	}
	fault.Always("put", nil)
	spec.Dir = a.Dir()
	b := m.agentWith(t, spec)
	eventually(t, 30*time.Second, "the upload is finished", func() bool {
		got, err := os.ReadFile(filepath.Join(b.Mount(), "whole"))
		return err == nil && bytes.Equal(got, want)
	})
	s, err := b.Client().Status(t.Context())
	if err != nil || len(s.Staged) != 1 || s.Staged[0].Path != "half" || s.Staged[0].State != "interrupted" || s.Staged[0].Size != 10 {
		t.Fatalf("staged: %+v, %v", s.Staged, err)
	}
	id := s.Staged[0].ID
	if err := b.Client().Staged(t.Context(), gateway.StagedRequest{ID: id, Action: "upload"}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(b.Mount(), "half")); err != nil || string(got) != "half of it" {
		t.Errorf("what a person let be uploaded: %q, %v", got, err)
	}
	if err := b.Client().Staged(t.Context(), gateway.StagedRequest{ID: id, Action: "drop"}); err == nil {
		t.Error("a staged file that is gone was dropped")
	}
	if err := b.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}
