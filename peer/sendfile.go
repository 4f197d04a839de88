package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/peer/internal/mux"
)

// sendFile has the kernel send part of a file, whose own offset it leaves alone:
// the file is shared. A file that ends too early is an error, after bytes have
// been sent.
func sendFile(c *net.TCPConn, f *os.File, off, size int64, count mux.Counters) error {
	to, err := c.SyscallConn()
	if err != nil {
		return err
	}
	from, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for size > 0 {
		if err := c.SetWriteDeadline(time.Now().Add(plainWrite)); err != nil {
			return err
		}
		n, err := sendPiece(to, from, off, int(min(size, plainPiece)))
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("send %s at %d: %w", f.Name(), off, err)
		}
		off, size = off+int64(n), size-int64(n)
		count.Sent(n)
	}
	return nil
}

// rawConn is what the runtime lends a descriptor through.
type rawConn interface {
	Control(func(fd uintptr)) error
	Write(func(fd uintptr) (done bool)) error
}

// sendPiece waits until the socket takes something, and sends what it takes.
func sendPiece(to, from rawConn, off int64, size int) (n int, err error) {
	errTo := to.Write(func(out uintptr) bool {
		errFrom := from.Control(func(in uintptr) {
			for {
				at := off
				n, err = unix.Sendfile(int(out), int(in), &at, size)
				if !errors.Is(err, unix.EINTR) {
					return
				}
			}
		})
		if errFrom != nil {
			n, err = 0, errFrom
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	if errTo != nil {
		return 0, errTo
	}
	return max(n, 0), err
}
