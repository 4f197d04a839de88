package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// Client asks over one stream. Do may be called concurrently; Run must be
// running meanwhile, in a goroutine of the owner.
type Client struct {
	s     Stream
	stall time.Duration
	count Counters
	slots *semaphore.Weighted

	// writing is held for one frame.
	writing sync.Mutex

	// mu is a leaf lock, but for the stream's SetReadDeadline.
	//
	// INVARIANT: a read deadline is set exactly while calls is not empty.
	// INVARIANT: once err is set, calls is empty and stays so.
	mu     sync.Mutex
	calls  map[uint32]*call
	lastID uint32
	err    error
	// extended is when the read deadline was last moved.
	extended time.Time
}

// call is one open request.
type call struct {
	dst   func(size uint64) ([]byte, error)
	told  func(got int) // may be nil
	buf   []byte
	got   int
	found bool
	// reading says that Run is filling buf; idle, if set, is closed when it has
	// done so.
	reading bool
	idle    chan struct{}
	done    chan struct{}
	err     error
}

// NewClient returns a client over s. A stream with open requests that carries
// nothing for stall is given up.
func NewClient(s Stream, stall time.Duration, count Counters) *Client {
	return &Client{s: s, stall: stall, count: count, slots: semaphore.NewWeighted(MaxInFlight), calls: make(map[uint32]*call)}
}

// Err returns why the client can no longer be used, or nil.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Do sends a request and reads its answer into the slice that dst returns for
// the answer's size; dst is called at most once, must not block, and its error
// ends the request. The slice is not touched after Do has returned. Errors wrap
// the covey kinds; a frame that breaks the protocol yields covey.ErrInvalid from
// Run and ErrClosed here.
func (c *Client) Do(ctx context.Context, body []byte, dst func(size uint64) ([]byte, error)) error {
	return c.DoTelling(ctx, body, dst, nil)
}

// DoTelling is Do that says how many bytes of the answer are there, whenever some
// arrive, from the goroutine of Run. told must not block.
func (c *Client) DoTelling(ctx context.Context, body []byte, dst func(size uint64) ([]byte, error), told func(got int)) error {
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer c.slots.Release(1)
	cl := &call{dst: dst, told: told, done: make(chan struct{})}
	id, err := c.open(cl)
	if err != nil {
		return err
	}
	req := &wire.Request{Body: body}
	if t, ok := ctx.Deadline(); ok {
		req.TimeoutMs = uint64(max(time.Until(t).Milliseconds(), 1))
	}
	if err := c.write(wire.AppendFrame(nil, wire.TypeRequest, id, wire.Marshal(req))); err != nil {
		c.Fail(fmt.Errorf("send request: %s: %w", err.Error(), ErrClosed))
	}
	select {
	case <-cl.done:
		return cl.err
	case <-ctx.Done():
		select {
		case <-cl.done: // both at once
			return cl.err
		default:
		}
		if c.abandon(id, cl) {
			// Best effort: a server that never hears of it stops at its timeout.
			_ = c.write(wire.AppendFrame(nil, wire.TypeCancel, id, nil))
		}
		return ctx.Err()
	}
}

// open registers a call under a fresh ID.
func (c *Client) open(cl *call) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	for {
		c.lastID++
		if _, taken := c.calls[c.lastID]; !taken && c.lastID != 0 {
			break
		}
	}
	c.calls[c.lastID] = cl
	if len(c.calls) == 1 {
		c.extendLocked(time.Now())
	}
	return c.lastID, nil
}

// abandon forgets a call, once its buffer is no longer being filled. It reports
// whether the call was still open.
func (c *Client) abandon(id uint32, cl *call) bool {
	c.mu.Lock()
	if c.calls[id] != cl {
		reading := cl.reading
		idle := cl.idle
		if reading && idle == nil {
			idle = make(chan struct{})
			cl.idle = idle
		}
		c.mu.Unlock()
		if reading {
			<-idle
		}
		return false
	}
	c.removeLocked(id)
	var idle chan struct{}
	if cl.reading {
		idle = make(chan struct{})
		cl.idle = idle
	}
	c.mu.Unlock()
	if idle == nil {
		return true
	}
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case <-idle:
	case <-grace.C:
		c.Fail(ErrStalled)
		<-idle
	}
	return true
}

// removeLocked takes a call out; the last one takes the read deadline with it.
func (c *Client) removeLocked(id uint32) {
	delete(c.calls, id)
	if len(c.calls) == 0 {
		_ = c.s.SetReadDeadline(time.Time{}) // a closed stream shows in Run
	}
}

func (c *Client) extendLocked(now time.Time) {
	c.extended = now
	_ = c.s.SetReadDeadline(now.Add(c.stall)) // a closed stream shows in Run
}

func (c *Client) write(frame []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.s.Write(frame)
	return err
}

// Fail resets the stream and ends every open call with err, unless that has
// happened before.
func (c *Client) Fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		for id, cl := range c.calls {
			delete(c.calls, id)
			if !cl.reading {
				cl.err = err
				close(cl.done)
			}
		}
	}
	c.mu.Unlock()
	_ = c.s.Reset() // nothing is left that could act on it
}

// Run reads answers until the stream ends, and returns why: covey.ErrInvalid
// for a frame that breaks the protocol, ErrStalled, or ErrClosed.
func (c *Client) Run() error {
	for {
		if err := c.frame(); err != nil {
			c.Fail(streamError(err))
			return c.Err()
		}
	}
}

// streamError turns what ended a stream into one of this package's errors.
func streamError(err error) error {
	switch {
	case errors.Is(err, covey.ErrInvalid), errors.Is(err, covey.ErrUnavailable):
		return err
	case isTimeout(err):
		return ErrStalled
	default:
		return fmt.Errorf("%w (%s)", ErrClosed, err.Error())
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// frame reads and handles one frame.
func (c *Client) frame() error {
	var raw [wire.HeaderLen]byte
	if err := c.readFull(raw[:], nil); err != nil {
		return err
	}
	h, err := wire.ParseHeader(raw)
	if err != nil {
		return err
	}
	if h.Type == wire.TypeData {
		return c.data(h)
	}
	var payload []byte
	if h.Len > 0 {
		payload = make([]byte, h.Len)
		if err := c.readFull(payload, nil); err != nil {
			return err
		}
	}
	switch h.Type {
	case wire.TypeProgress:
		return nil
	case wire.TypeFound:
		return c.found(h.ID, payload)
	case wire.TypeFail:
		return c.failed(h.ID, payload)
	default:
		return fmt.Errorf("frame of type %d from a server: %w", h.Type, covey.ErrInvalid)
	}
}

// readFull fills p and tells how much of it is there. Whatever arrives moves the
// deadline; a timeout with nothing open and nothing read is not one.
func (c *Client) readFull(p []byte, told func(n int)) error {
	for n := 0; n < len(p); {
		k, err := c.s.Read(p[n:])
		n += k
		if k > 0 && told != nil {
			told(n)
		}
		now := time.Now()
		c.mu.Lock()
		open := len(c.calls)
		if k > 0 && open > 0 && now.Sub(c.extended) > c.stall/4 {
			c.extendLocked(now)
		}
		// A deadline of a call that has just ended may still fire.
		late := err != nil && c.err == nil && isTimeout(err) && (open == 0 || now.Sub(c.extended) < c.stall)
		c.mu.Unlock()
		switch {
		case n == len(p) || late:
		case errors.Is(err, io.EOF) && n > 0:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}

// lookup returns the open call, nil when it was abandoned; an ID that was never
// given out breaks the protocol.
func (c *Client) lookupLocked(id uint32) (*call, error) {
	if cl := c.calls[id]; cl != nil {
		return cl, nil
	}
	if int32(id-c.lastID) > 0 { // IDs wrap
		return nil, fmt.Errorf("answer to request %d, which was never sent: %w", id, covey.ErrInvalid)
	}
	return nil, nil
}

func (c *Client) found(id uint32, payload []byte) error {
	var m wire.Found
	if err := wire.Unmarshal(payload, &m); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	cl, err := c.lookupLocked(id)
	if cl == nil {
		return err
	}
	if cl.found {
		return fmt.Errorf("second size for request %d: %w", id, covey.ErrInvalid)
	}
	cl.found = true
	if cl.buf, err = cl.dst(m.Size); err == nil && uint64(len(cl.buf)) != m.Size {
		err = fmt.Errorf("answer of %d bytes: %w", m.Size, covey.ErrInvalid)
	}
	if err != nil || m.Size == 0 {
		c.finishLocked(id, cl, err)
	}
	return err
}

func (c *Client) failed(id uint32, payload []byte) error {
	var m wire.Failure
	if err := wire.Unmarshal(payload, &m); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	cl, err := c.lookupLocked(id)
	if cl != nil {
		c.finishLocked(id, cl, failure(&m))
	}
	return err
}

func (c *Client) finishLocked(id uint32, cl *call, err error) {
	cl.err = err
	close(cl.done)
	c.removeLocked(id)
}

// data reads a piece straight into the caller's buffer.
func (c *Client) data(h wire.Header) error {
	c.mu.Lock()
	cl, err := c.lookupLocked(h.ID)
	if err == nil && cl != nil && (!cl.found || len(cl.buf)-cl.got < int(h.Len)) {
		err = fmt.Errorf("%d bytes too many for request %d: %w", h.Len, h.ID, covey.ErrInvalid)
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	if cl == nil {
		c.mu.Unlock()
		return c.discard(int(h.Len))
	}
	cl.reading = true
	got := cl.got
	piece := cl.buf[got : got+int(h.Len)]
	c.mu.Unlock()

	var told func(int)
	if cl.told != nil {
		told = func(n int) { cl.told(got + n) }
	}
	err = c.readFull(piece, told)
	c.count.received(len(piece))

	c.mu.Lock()
	defer c.mu.Unlock()
	cl.reading = false
	cl.got += len(piece)
	if cl.idle != nil {
		close(cl.idle)
	}
	switch {
	case c.calls[h.ID] != cl:
		// Abandoned, or the stream failed and left the end to us.
		if c.err != nil && cl.idle == nil {
			cl.err = c.err
			close(cl.done)
		}
	case err == nil && cl.got == len(cl.buf):
		c.finishLocked(h.ID, cl, nil)
	}
	return err
}

// discard reads the rest of an answer that nobody waits for.
func (c *Client) discard(n int) error {
	buf := getBuffer()
	defer putBuffer(buf)
	return c.readFull(buf[:n], nil)
}

func failure(m *wire.Failure) error { return CodeError(m.Code) }

// CodeError turns a peer's refusal into an error of ours.
func CodeError(code wire.Code) error {
	switch code {
	case wire.Code_NOT_FOUND:
		return covey.ErrNotFound
	case wire.Code_STALE:
		return covey.ErrStale
	case wire.Code_BUSY:
		return ErrBusy
	case wire.Code_INVALID:
		return fmt.Errorf("peer refused the request: %w", covey.ErrInvalid)
	default:
		return fmt.Errorf("peer could not answer: %w", covey.ErrUnavailable)
	}
}
