package mux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

// Answer is what a handler found: Size bytes in Body, read from offset 0 on.
// Release, if set, is called once when they have been sent or need not be.
type Answer struct {
	Size    int
	Body    io.ReaderAt
	Release func()
}

// Handler answers one request. It must heed ctx. The body is the handler's.
type Handler func(ctx context.Context, body []byte) (Answer, error)

// server is one stream's answering side.
type server struct {
	s      Stream
	handle Handler
	shared *semaphore.Weighted
	count  Counters
	// turn hands the right to write one frame to whoever has waited longest.
	turn *semaphore.Weighted
	work sync.WaitGroup

	// mu is a leaf lock. It guards what follows.
	mu sync.Mutex
	// open has the cancel function of every request being worked on.
	open  map[uint32]context.CancelFunc
	bytes int
	// alive fires progress while open is not empty. armed says that it is set or
	// that progress is running; either counts once in work.
	alive *time.Timer
	armed bool
	wrote time.Time
}

// Serve answers the requests of one stream until it ends or ctx does, and waits
// for its handlers. shared bounds the requests of all streams together. An error
// that wraps covey.ErrInvalid means that the peer broke the protocol; the stream
// has been reset.
func Serve(ctx context.Context, s Stream, h Handler, shared *semaphore.Weighted, count Counters) error {
	sv := &server{s: s, handle: h, shared: shared, count: count, turn: semaphore.NewWeighted(1), open: make(map[uint32]context.CancelFunc)}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	r := bufio.NewReaderSize(s, 4096)
	var err error
	for err == nil {
		err = sv.frame(ctx, r)
	}
	// No handler's answer can be delivered any more.
	cancel()
	stop()
	_ = s.Reset()
	sv.work.Wait()
	if !errors.Is(err, covey.ErrInvalid) {
		return nil
	}
	return err
}

// frame reads one frame and acts on it.
func (sv *server) frame(ctx context.Context, r io.Reader) error {
	var raw [wire.HeaderLen]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return err
	}
	h, err := wire.ParseHeader(raw)
	if err != nil {
		return err
	}
	switch h.Type {
	case wire.TypeCancel:
		sv.mu.Lock()
		defer sv.mu.Unlock()
		if cancel := sv.open[h.ID]; cancel != nil {
			cancel()
		}
		return nil
	case wire.TypeRequest:
		return sv.request(ctx, h, r)
	default:
		return fmt.Errorf("frame of type %d from a client: %w", h.Type, covey.ErrInvalid)
	}
}

// request starts the work on one request, or says that there is too much of it.
func (sv *server) request(ctx context.Context, h wire.Header, r io.Reader) error {
	payload, err := sv.payload(h, r)
	if err != nil {
		return err
	}
	var m wire.Request
	if err := wire.Unmarshal(payload, &m); err != nil {
		return err
	}
	if len(m.Body) > wire.MaxBody {
		return fmt.Errorf("request body of %d bytes: %w", len(m.Body), covey.ErrInvalid)
	}
	timeout := maxHold
	if m.TimeoutMs > 0 && m.TimeoutMs < uint64(maxHold.Milliseconds()) {
		timeout = time.Duration(m.TimeoutMs) * time.Millisecond
	}
	rctx, cancel := context.WithTimeout(ctx, timeout)
	accepted, err := sv.admit(h.ID, len(m.Body), cancel)
	if !accepted {
		cancel()
		if err == nil {
			// Said by the reader itself: whoever floods is slowed down by it.
			sv.fail(ctx, h.ID, ErrBusy)
		}
		return err
	}
	sv.work.Go(func() {
		defer cancel()
		defer sv.finished(h.ID, len(m.Body))
		sv.answer(rctx, ctx, h.ID, m.Body)
	})
	return nil
}

// payload reads the rest of a frame. Whoever begins one must end it: a member that
// trickles would keep its memory here, and one that stops in the middle means
// something else than it says.
func (sv *server) payload(h wire.Header, r io.Reader) ([]byte, error) {
	if err := sv.s.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
		return nil, err
	}
	b := make([]byte, h.Len)
	switch _, err := io.ReadFull(r, b); {
	case isTimeout(err):
		return nil, fmt.Errorf("frame of %d bytes not complete after %s: %w", h.Len, frameTimeout, covey.ErrInvalid)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF) && h.Len > 0:
		return nil, fmt.Errorf("frame of %d bytes cut short: %w", h.Len, covey.ErrInvalid)
	case err != nil:
		return nil, err
	}
	return b, sv.s.SetReadDeadline(time.Time{})
}

// admit takes a place for the request. A request that finds none is answered
// with BUSY; one whose ID is in use breaks the protocol.
func (sv *server) admit(id uint32, size int, cancel context.CancelFunc) (bool, error) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if _, taken := sv.open[id]; taken {
		return false, fmt.Errorf("request %d twice: %w", id, covey.ErrInvalid)
	}
	if len(sv.open) >= maxServed || sv.bytes+size > maxServedBytes || !sv.shared.TryAcquire(1) {
		return false, nil
	}
	sv.open[id] = cancel
	sv.bytes += size
	if len(sv.open) == 1 {
		sv.armLocked()
	}
	return true, nil
}

func (sv *server) finished(id uint32, size int) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	delete(sv.open, id)
	sv.bytes -= size
	sv.shared.Release(1)
	if len(sv.open) == 0 && sv.armed && sv.alive.Stop() {
		sv.armed = false
		sv.work.Done()
	}
}

// armLocked makes the keep-alive fire, unless it will anyway. It counts as work,
// so that Serve does not return under one that is running.
func (sv *server) armLocked() {
	if sv.armed {
		return
	}
	sv.armed = true
	sv.work.Add(1)
	if sv.alive == nil {
		sv.alive = time.AfterFunc(progressEvery, sv.progress)
		return
	}
	sv.alive.Reset(progressEvery)
}

// progress tells the client that its requests are being worked on, when nothing
// else has told it lately, and arms the next.
func (sv *server) progress() {
	defer sv.work.Done()
	sv.mu.Lock()
	needed := len(sv.open) > 0 && time.Since(sv.wrote) >= progressEvery/2
	sv.mu.Unlock()
	// Somebody whose turn it is to write shows life as well.
	if needed && sv.turn.TryAcquire(1) {
		err := sv.writeInTurn(wire.AppendFrame(nil, wire.TypeProgress, 0, nil))
		sv.turn.Release(1)
		if err != nil {
			_ = sv.s.Reset() // the reader ends the stream
		}
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.armed = false
	if len(sv.open) > 0 {
		sv.armLocked()
	}
}

// answer runs the handler and sends what it found. Writing goes on under the
// stream's context: the request's own ends when it is cancelled.
func (sv *server) answer(rctx, ctx context.Context, id uint32, body []byte) {
	a, err := sv.handle(rctx, body)
	if a.Release != nil {
		defer a.Release()
	}
	if err == nil {
		err = sv.send(rctx, ctx, id, a)
	}
	if err != nil && !errors.Is(rctx.Err(), context.Canceled) {
		sv.fail(ctx, id, err)
	}
}

// send writes the size and the bytes, piece by piece, a turn for each. A
// cancelled request stops between two pieces.
func (sv *server) send(rctx, ctx context.Context, id uint32, a Answer) error {
	buf := getBuffer()
	defer putBuffer(buf)
	front := wire.AppendFrame(buf[:0], wire.TypeFound, id, wire.Marshal(&wire.Found{Size: uint64(a.Size)}))
	for off := 0; ; {
		n := min(a.Size-off, wire.MaxData)
		at := len(front)
		frame := buf[:at]
		if n > 0 {
			frame = buf[:at+wire.HeaderLen+n]
			wire.Header{Type: wire.TypeData, ID: id, Len: uint32(n)}.Put(frame[at:])
			if k, err := a.Body.ReadAt(frame[at+wire.HeaderLen:], int64(off)); k < n {
				return fmt.Errorf("read answer at %d: %w", off, err)
			}
		}
		if rctx.Err() != nil {
			return rctx.Err()
		}
		if err := sv.write(ctx, frame); err != nil {
			return err
		}
		sv.count.sent(n)
		off += n
		front = buf[:0]
		if off == a.Size {
			return nil
		}
	}
}

// fail ends a request with an error.
func (sv *server) fail(ctx context.Context, id uint32, err error) {
	m := &wire.Failure{Code: FailureCode(err)}
	// The text of other errors may name paths or origins of this node; the peer
	// needs no more than the kind.
	_ = sv.write(ctx, wire.AppendFrame(nil, wire.TypeFail, id, wire.Marshal(m)))
}

// FailureCode is what a peer is told of an error.
func FailureCode(err error) wire.Code {
	switch {
	case errors.Is(err, covey.ErrNotFound):
		return wire.Code_NOT_FOUND
	case errors.Is(err, covey.ErrStale):
		return wire.Code_STALE
	case errors.Is(err, covey.ErrInvalid):
		return wire.Code_INVALID
	case errors.Is(err, ErrBusy):
		return wire.Code_BUSY
	default:
		return wire.Code_UNAVAILABLE
	}
}

// write sends one frame when its turn comes. A write that fails takes the stream
// down, because the peer can no longer tell where a frame begins.
func (sv *server) write(ctx context.Context, frame []byte) error {
	if err := sv.turn.Acquire(ctx, 1); err != nil {
		return err
	}
	defer sv.turn.Release(1)
	if err := sv.writeInTurn(frame); err != nil {
		_ = sv.s.Reset()
		return err
	}
	return nil
}

func (sv *server) writeInTurn(frame []byte) error {
	now := time.Now()
	if err := sv.s.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
		return err
	}
	_, err := sv.s.Write(frame)
	sv.mu.Lock()
	sv.wrote = now
	sv.mu.Unlock()
	return err
}
