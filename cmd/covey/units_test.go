package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/covey-cache/covey/gateway"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	for _, name := range []string{path, "@covey-test-" + filepath.Base(t.TempDir())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := notify(func(string) string { return name }, "READY=1"); err != nil {
			t.Errorf("notify %s: %v", name, err)
		}
		buf := make([]byte, 64)
		if err := l.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := l.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
			t.Errorf("%s heard %q, %v", name, buf[:n], err)
		}
		_ = l.Close()
	}
	if err := notify(func(string) string { return "" }, "READY=1"); err != nil {
		t.Errorf("without a socket: %v", err)
	}
}

func TestProgressLine(t *testing.T) {
	start := time.Unix(1000, 0)
	j := gateway.Job{State: "running", Files: 10, Bytes: 100 << 20, Started: start, FilesDone: 4, BytesDone: 40 << 20}
	listing, failed, ended := j, j, j
	listing.Listing = true
	failed.FilesError = 2
	ended.State, ended.FilesDone, ended.BytesDone, ended.Ended = "done", 10, 100<<20, start.Add(5*time.Second)
	for _, tc := range []struct {
		j    gateway.Job
		at   time.Duration
		want string
	}{
		{j, 4 * time.Second, "running: 40.0 MiB of 100.0 MiB, 4 of 10 files, 10.0 MiB/s, 6s left"},
		{listing, 4 * time.Second, "listing: 40.0 MiB of 100.0 MiB, 4 of 10 files, 10.0 MiB/s"},
		{failed, 4 * time.Second, "running: 40.0 MiB of 100.0 MiB, 4 of 10 files, 2 failed, 10.0 MiB/s, 6s left"},
		{ended, 5 * time.Second, "done: 100.0 MiB of 100.0 MiB, 10 of 10 files, 20.0 MiB/s"},
		{gateway.Job{State: "running", Listing: true, Started: start}, 0, "listing: 0 B of 0 B, 0 of 0 files"},
	} {
		if got := line(tc.j, start.Add(tc.at)); got != tc.want {
			t.Errorf("line = %q, want %q", got, tc.want)
		}
	}
}

func TestOutcome(t *testing.T) {
	for _, tc := range []struct {
		j    gateway.Job
		fail bool
	}{
		{gateway.Job{State: "done"}, false},
		{gateway.Job{State: "done", FilesError: 1}, true},
		{gateway.Job{State: "failed", Error: "list: access denied"}, true},
		{gateway.Job{State: "cancelled"}, true},
	} {
		if err := outcome(tc.j); (err != nil) != tc.fail {
			t.Errorf("outcome(%+v) = %v", tc.j, err)
		}
	}
}

func TestDialTarget(t *testing.T) {
	for address, want := range map[string]string{
		"/ip4/10.0.0.7/tcp/7171":               "10.0.0.7:7171",
		"/ip6/fd00::1/tcp/7171/p2p/12D3KooWAa": "[fd00::1]:7171",
		"/dns4/node1/tcp/7171":                 "node1:7171",
		"node1:7171":                           "node1:7171",
		"/ip4/10.0.0.7/udp/7171/quic":          "",
		"/ip4":                                 "",
		"node1":                                "",
	} {
		if got, ok := dialTarget(address); ok != (want != "") || (ok && got != want) {
			t.Errorf("dialTarget(%q) = %q, %v", address, got, ok)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.18.3": {6, 18}, "6.9-rc1": {6, 9}, "5.15.0-91-generic": {5, 15}, "6.8+": {6, 8}, "odd": {0, 0},
	} {
		if major, minor := kernelVersion(release); [2]int{major, minor} != want {
			t.Errorf("kernelVersion(%q) = %d, %d, want %v", release, major, minor, want)
		}
	}
}
