// Package mux carries many requests at once over one stream between two members.
//
// One side asks ([Client]), the other answers ([Serve]). Answers are sent in
// pieces that take turns, so that a long one does not hold up a short one. A
// silent stream is told from a slow answer by keep-alives: the server sends one
// whenever a request is open and nothing else was sent.
//
// The package knows nothing of libp2p; a Stream is anything with two directions
// and deadlines.
package mux

import (
	"fmt"
	"io"
	"time"

	"github.com/covey-cache/covey"
)

// Stream is a reliable byte stream. Deadlines may be set while a read or write
// is blocked and take effect on it.
type Stream interface {
	io.ReadWriter
	// Reset ends both directions at once; blocked calls return.
	Reset() error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Bounds of both sides.
const (
	// MaxInFlight is how many requests a client has open on one stream; further
	// ones wait. 64 blocks of 4 MiB are 80 ms of 25 GbE.
	MaxInFlight = 64
	// maxServed is how many a server works on for one stream. It is above
	// MaxInFlight because a cancelled request counts here until its handler has
	// noticed.
	maxServed = MaxInFlight + 32
	// maxServedBytes bounds the request bodies in memory for one stream.
	maxServedBytes = 8 << 20
	// maxHold is the longest a server works on a request, whatever timeout it
	// named: longer than any origin read of one block that is worth waiting for.
	maxHold = time.Minute
	// progressEvery is how often a server shows that it is alive. It must be a
	// small part of the client's stall time.
	progressEvery = 200 * time.Millisecond
	// writeTimeout is how long a peer may leave its side unread before the
	// stream is given up; the receiver of blocks reads all the time.
	writeTimeout = 10 * time.Second
	// frameTimeout is how long a request frame may take from its header to its end:
	// 1 MiB at 1 Mb/s.
	frameTimeout = 10 * time.Second
	// cancelGrace is how long a cancelled request waits for a piece that is just
	// being read into its buffer, before it takes the stream down to get the
	// buffer back. A piece takes well under a millisecond unless the sender
	// stopped in the middle of it.
	cancelGrace = 100 * time.Millisecond
)

// The ways a stream ends. All wrap covey.ErrUnavailable.
var (
	// ErrStalled says that nothing arrived in time, not even a keep-alive.
	ErrStalled = fmt.Errorf("stream stalled: %w", covey.ErrUnavailable)
	// ErrClosed says that the stream ended with the request open.
	ErrClosed = fmt.Errorf("stream ended: %w", covey.ErrUnavailable)
	// ErrBusy says that the peer has too much to do; it is alive.
	ErrBusy = fmt.Errorf("peer is busy: %w", covey.ErrUnavailable)
)

// Counters are told of payload bytes. Nil functions are not called.
type Counters struct {
	Sent, Received func(bytes int)
}

func (c Counters) sent(n int) {
	if c.Sent != nil {
		c.Sent(n)
	}
}

func (c Counters) received(n int) {
	if c.Received != nil {
		c.Received(n)
	}
}
