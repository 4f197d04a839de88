package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// maxSocketPath is what sockaddr_un holds, less the final NUL.
const maxSocketPath = 107

// ListenUnix listens on the agent's socket: mode 0600 from its first moment, in
// a directory that is made with mode 0700 when missing. The socket file of an
// agent that died is replaced; that of one that lives is refused with an error
// that wraps covey.ErrUnavailable. Closing the listener removes the socket.
//
// Who lives is told by a lock on PATH.lock, which the kernel drops with the
// process, so two agents that start at once cannot both take a stale socket.
func ListenUnix(path string) (net.Listener, error) {
	if !filepath.IsAbs(path) || len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on socket %s: it must be an absolute path of at most %d bytes: %w",
			path, maxSocketPath, covey.ErrInvalid)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, notWritable("make the directory of socket", path, err)
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	l, err := listenLocked(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &socketListener{Listener: l, lock: lock}, nil
}

func lockSocket(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, notWritable("lock socket", path, err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errInUse(path)
	}
	return nil, fmt.Errorf("lock socket %s: %w", path, err)
}

// notWritable says what a user can do who may not write at the default place,
// as without a login session.
func notWritable(what, path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s %s: %w; set XDG_RUNTIME_DIR or give another --api", what, path, err)
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}

func errInUse(path string) error {
	return fmt.Errorf("listen on socket %s: another agent answers there; stop it or give another --api: %w",
		path, covey.ErrUnavailable)
}

// listenLocked replaces a stale socket and listens. The caller has the lock.
func listenLocked(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen on socket %s: a file that is no socket is in the way; remove it or give another --api: %w",
			path, covey.ErrInvalid)
	default:
		// The lock says that no agent is here, but the socket may be another
		// program's.
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, errInUse(path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale socket %s: %w", path, err)
		}
	}
	// bind gives the file the mode of the descriptor, so setting it there
	// leaves no moment in which others may connect.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	return l, nil
}

// socketListener keeps the lock for as long as the socket is there.
type socketListener struct {
	net.Listener
	lock *os.File
}

func (l *socketListener) Close() error {
	err := l.Listener.Close() // removes the socket
	l.lock.Close()
	return err
}
