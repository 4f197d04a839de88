package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How a mount is left: plainly while it is busy for no longer than a reader
// takes to close its file, then lazily. Together they stay far below the 5 s an
// agent has.
const (
	busyWait  = 500 * time.Millisecond
	busyRetry = 20 * time.Millisecond
	endWait   = 2 * time.Second
)

var errRunTwice = errors.New("mount is running or has run already")

// Run serves until Unmount or until ctx ends, which unmounts (lazily when files
// are open), and joins everything it started. It returns nil for both; an error
// says that the mount never worked or could not be left.
//
// Handles that are still open then fail with ENOTCONN, but for passthrough ones,
// which go on reading.
func (m *Mount) Run(ctx context.Context) error {
	if !m.started.CompareAndSwap(false, true) {
		return errRunTwice
	}
	go m.serve()
	settled := make(chan error, 1)
	go func() { settled <- m.settle() }()
	var failed error
	for waiting := true; waiting; {
		select {
		case err := <-settled:
			settled = nil
			if failed = err; err == nil {
				close(m.ready)
				continue
			}
			waiting = false
		case <-m.served:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	err := m.leave()
	// The probe of the mount ends with it at the latest.
	if settled != nil && err == nil {
		if late := <-settled; late != nil {
			m.log.Debug("mount ended before it was ready", "dir", m.dir, "error", late)
		}
	}
	return errors.Join(failed, err)
}

// serve answers requests until the mount is gone, and gives everything back.
func (m *Mount) serve() {
	m.serveOnce.Do(func() {
		var beside sync.WaitGroup
		beside.Go(func() { m.tree.runPusher(m.tree.ctx) })
		beside.Go(func() { m.tree.runChanges(m.tree.ctx) })
		m.server.Serve()
		m.cancel()
		beside.Wait()
		m.tree.shut()
		m.unkeep()
		close(m.served)
	})
}

// settle waits until the kernel answers from the mount.
func (m *Mount) settle() error {
	if err := m.server.WaitMount(); err != nil {
		return fmt.Errorf("wait for mount on %s: %w", m.dir, err)
	}
	if _, err := os.Stat(m.dir); err != nil {
		return fmt.Errorf("wait for mount on %s: %w", m.dir, err)
	}
	if err := widenReadahead(m.number); err != nil {
		m.log.Debug("widen readahead", "dir", m.dir, "error", err)
	}
	m.tree.passthrough.probe()
	if why := m.tree.passthrough.reason(); why != "" {
		m.log.Info("files are served by the daemon", "dir", m.dir, "why", why)
	}
	return nil
}

// Unmount takes the mount away, and Run ends. When files are open, or a process
// has its working directory there, it is an error that wraps EBUSY and the mount
// stays. Without a Run it joins what New began.
func (m *Mount) Unmount() error {
	select {
	case <-m.served:
		return nil
	default:
	}
	if err := Umount(m.dir, false); err != nil {
		return err
	}
	if m.started.CompareAndSwap(false, true) {
		m.serve()
	}
	return nil
}

// leave unmounts within busyWait and endWait, whatever is open.
func (m *Mount) leave() error {
	if m.unmountPlain() {
		return m.ended()
	}
	m.log.Warn("mount is busy, unmounting it lazily", "dir", m.dir)
	// What still waits for a block now would wait in vain.
	m.cancel()
	if err := detach(m.dir, m.number); err != nil {
		select {
		case <-m.served:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		}
	}
	return m.ended()
}

// unmountPlain reports whether the mount is gone, trying for as long as a short
// read may keep it busy.
func (m *Mount) unmountPlain() bool {
	deadline := time.Now().Add(busyWait)
	for {
		select {
		case <-m.served:
			return true
		default:
		}
		err := Umount(m.dir, false)
		// EINVAL says that somebody else has unmounted it just now.
		if err == nil || errors.Is(err, unix.EINVAL) {
			return true
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return false
		}
		time.Sleep(busyRetry)
	}
}

// ended waits for the last request. A lazily unmounted file system whose
// connection could not be aborted lives on while a file is open; then the end of
// the process ends it.
func (m *Mount) ended() error {
	m.cancel()
	select {
	case <-m.served:
		return nil
	case <-time.After(endWait):
		return fmt.Errorf("unmount %s: files are still open; they end with the process", m.dir)
	}
}
