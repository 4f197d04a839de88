package mount

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// lastClose reports whether a close by the given thread means that its process is
// done with the file. Two closes do not:
//
//   - of a descriptor that was inherited, as every child of a program that writes
//     closes what it does not use; unless the process that opened it is gone;
//   - of one of several descriptors that the process has, as a shell closes the
//     first of two when it redirects a command's output.
//
// The upload then waits for the close that follows. A thread that cannot be
// looked at, in another PID namespace or of another user, counts as done: then a
// half-written file may be uploaded early, and is again at its end.
func (h *handle) lastClose(dir string, tid uint32) bool {
	closer := processOf(tid)
	if closer == 0 {
		return true
	}
	if h.opener != 0 && h.opener != closer && processOf(h.opener) != 0 {
		return false
	}
	return !hasOpen(closer, filepath.Join(dir, h.path))
}

// processOf returns the process that a thread belongs to, 0 when it cannot be
// told.
func processOf(tid uint32) uint32 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(status, []byte("\nTgid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	pid, _ := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 32)
	return uint32(pid)
}

// maxScan bounds the descriptors that are looked at. A program with more uploads
// at the first close of a descriptor that it has twice.
const maxScan = 4096

// hasOpen reports whether the process has a descriptor of the path. It reads the
// links only: following one would ask the mount that is waiting for the answer.
func hasOpen(pid uint32, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(maxScan)
	if err != nil {
		return false
	}
	for _, name := range names {
		if link, err := os.Readlink(filepath.Join(dir, name)); err == nil && link == path {
			return true
		}
	}
	return false
}
