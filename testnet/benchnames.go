package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/covey-cache/covey/peer"
)

// BenchNames measures one directory with that many entries: find over it on tmpfs
// and through a mount of the same directory, the first names of a listing that is
// still arriving, and the agent's memory.
func BenchNames(ctx context.Context, opts BenchOptions, entries int) (err error) {
	dir, remove, err := benchDir("/dev/shm", "covey-names-")
	if err != nil {
		return err
	}
	defer remove(&err)
	native, at := filepath.Join(dir, "native"), filepath.Join(dir, "mount")
	if err := os.Mkdir(native, 0o755); err != nil {
		return err
	}
	for i := range entries {
		if err := os.WriteFile(filepath.Join(native, nameOf(i)), nil, 0o600); err != nil {
			return err
		}
	}
	cluster, err := NewCluster(ClusterOptions{Binary: opts.Binary, Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	p, err := cluster.Start(ctx, AgentSpec{
		Mounts: []peer.MountSpec{{Source: native, Dir: at}}, Args: []string{"--immutable"},
	})
	if err != nil {
		return err
	}
	empty, err := residentBytes(p.PID())
	if err != nil {
		return err
	}
	first, whole, err := firstNames(at)
	if err != nil {
		return err
	}
	listed, err := residentBytes(p.PID())
	if err != nil {
		return err
	}
	fmt.Fprintf(opts.Out, "first 100 names after %v, all %d after %v\n", first.Round(time.Millisecond), entries, whole.Round(time.Millisecond))
	fmt.Fprintf(opts.Out, "agent: %d MiB before, %d MiB after (%d bytes an entry, names and what the kernel remembers)\n",
		empty>>20, listed>>20, (listed-empty)/int64(entries))
	var ratios []float64
	for round := range opts.Rounds {
		n, err := find(ctx, native, entries)
		if err != nil {
			return err
		}
		m, err := find(ctx, at, entries)
		if err != nil {
			return err
		}
		ratios = append(ratios, m.Seconds()/n.Seconds())
		fmt.Fprintf(opts.Out, "round %d: find native %v, mount %v\n", round+1, n.Round(time.Millisecond), m.Round(time.Millisecond))
	}
	fmt.Fprintf(opts.Out, "find over %d entries, warm table: %.2f x native tmpfs (budget 3)\n", entries, median(ratios))
	return nil
}

// find counts what find prints below a directory.
func find(ctx context.Context, dir string, entries int) (time.Duration, error) {
	began := time.Now()
	out, err := exec.CommandContext(ctx, "find", dir).Output()
	took := time.Since(began)
	if n := bytes.Count(out, []byte("\n")); err == nil && n != entries+1 {
		err = fmt.Errorf("find %s printed %d lines for %d entries", dir, n, entries)
	}
	return took, err
}

// firstNames lists a directory that nobody has listed, and returns when the first
// hundred names were there and when the last was.
func firstNames(dir string) (first, whole time.Duration, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	began := time.Now()
	if _, err := f.Readdirnames(100); err != nil {
		return 0, 0, err
	}
	first = time.Since(began)
	for {
		if _, err := f.Readdirnames(10_000); errors.Is(err, io.EOF) {
			return first, time.Since(began), nil
		} else if err != nil {
			return 0, 0, err
		}
	}
}

// residentBytes is the memory of a process.
func residentBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	line, _, _ := strings.Cut(rest, " kB")
	kib, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return kib << 10, err
}
