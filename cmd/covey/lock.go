package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked says that another process has the lock.
var errLocked = errors.New("locked by another process")

// lockState takes the state directory for one agent: two with one identity would
// be one member that answers from two places. The kernel drops the lock with the
// process.
func lockState(state string) (*os.File, error) {
	lock, err := lockIn(state, "agent.lock")
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("state directory %s: another agent uses it: stop that one or give another --state", state)
	}
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w: give a --state that can be written", state, err)
	}
	return lock, nil
}

// lockStart waits for the right to start an agent in the background with this
// state directory.
func lockStart(ctx context.Context, state string) (*os.File, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		lock, err := lockIn(state, "start.lock")
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.New("interrupted")
		}
	}
}

// lockIn makes the directory and takes the lock with this name in it; closing
// the file gives it back.
func lockIn(dir, name string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
}
