package mux

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
	"github.com/covey-cache/covey/peer/memnet"
)

// stream makes a connection a Stream.
type stream struct{ net.Conn }

func (s stream) Reset() error { return s.Close() }

const stall = time.Second

// pipe is both ends of a stream.
func pipe(t testing.TB, n *memnet.Network) (client, server stream) {
	t.Helper()
	l, err := n.Host("10.0.0.1").Listen(t.Context(), "tcp", "10.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := n.Host("10.0.0.2").DialContext(t.Context(), "tcp", "10.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return stream{c}, stream{s}
}

// both runs a client against a server with the given handler; the results of
// either are returned by stop.
func both(t testing.TB, n *memnet.Network, h Handler) (c *Client, stop func() (clientErr, serverErr error)) {
	t.Helper()
	cs, ss := pipe(t, n)
	c = NewClient(cs, stall, Counters{})
	served, ran := make(chan error, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- Serve(ctx, ss, h, semaphore.NewWeighted(1000), Counters{}) }()
	go func() { ran <- c.Run() }()
	return c, sync.OnceValues(func() (error, error) {
		cancel()
		return <-ran, <-served
	})
}

func answer(b []byte) Answer { return Answer{Size: len(b), Body: bytes.NewReader(b)} }

// get makes a request and returns the answer.
func get(ctx context.Context, c *Client, body string) ([]byte, error) {
	var buf []byte
	err := c.Do(ctx, []byte(body), func(size uint64) ([]byte, error) {
		buf = make([]byte, size)
		return buf, nil
	})
	return buf, err
}

func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := make([]byte, 3*wire.MaxData+17)
		_, _ = rand.Read(big)
		c, stop := both(t, new(memnet.Network), func(_ context.Context, body []byte) (Answer, error) {
			switch string(body) {
			case "big":
				return answer(big), nil
			case "empty":
				return answer(nil), nil
			case "none":
				return Answer{}, fmt.Errorf("look up: %w", covey.ErrNotFound)
			case "stale":
				return Answer{}, covey.ErrStale
			case "broken":
				return Answer{Size: 10, Body: strings.NewReader("short")}, nil
			default:
				return Answer{}, errors.New("secret path")
			}
		})
		defer func() { _, _ = stop() }() // its errors are not the point
		for _, test := range []struct {
			body string
			want []byte
			kind error
		}{
			{"big", big, nil},
			{"empty", []byte{}, nil},
			{"none", nil, covey.ErrNotFound},
			{"stale", nil, covey.ErrStale},
			{"broken", nil, covey.ErrUnavailable},
			{"other", nil, covey.ErrUnavailable},
		} {
			got, err := get(t.Context(), c, test.body)
			if !errors.Is(err, test.kind) || (test.kind == nil && !bytes.Equal(got, test.want)) {
				t.Errorf("%s: %d bytes, %v; want %v", test.body, len(got), err, test.kind)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: the server's own text reached the client: %v", test.body, err)
			}
		}
	})
}

// A long answer does not hold up a short one that was asked for later.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocks = 16
		long := make([]byte, blocks*wire.MaxData)
		c, stop := both(t, &memnet.Network{Latency: time.Millisecond}, func(_ context.Context, body []byte) (Answer, error) {
			if string(body) == "long" {
				return answer(long), nil
			}
			return answer([]byte("short")), nil
		})
		defer func() { _, _ = stop() }() // its errors are not the point
		var order []string
		var mu sync.Mutex
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, what)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := get(t.Context(), c, "long"); err != nil {
				t.Error(err)
			}
			note("long")
		})
		time.Sleep(3 * time.Millisecond) // the long one is under way
		wg.Go(func() {
			if _, err := get(t.Context(), c, "short"); err != nil {
				t.Error(err)
			}
			note("short")
		})
		wg.Wait()
		if order[0] != "short" {
			t.Errorf("order of the ends: %v", order)
		}
	})
}

// A handler that takes its time is no stall, and the server's own limit ends it.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := both(t, new(memnet.Network), func(ctx context.Context, _ []byte) (Answer, error) {
			<-ctx.Done()
			return Answer{}, ctx.Err()
		})
		defer func() { _, _ = stop() }() // its errors are not the point
		started := time.Now()
		_, err := get(context.Background(), c, "wait")
		if !errors.Is(err, covey.ErrUnavailable) || time.Since(started) != maxHold {
			t.Errorf("held for %s: %v", time.Since(started), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		if _, err := get(ctx, c, "wait"); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, covey.ErrUnavailable) {
			t.Errorf("request with a deadline: %v", err)
		}
		if c.Err() != nil {
			t.Errorf("the stream ended: %v", c.Err())
		}
	})
}

// fault 3
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(memnet.Network)
		c, stop := both(t, n, func(context.Context, []byte) (Answer, error) { return answer([]byte("x")), nil })
		if _, err := get(t.Context(), c, "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // nothing is asked: no stall
		if c.Err() != nil {
			t.Fatalf("an idle stream ended: %v", c.Err())
		}
		n.Cut(n.Host("10.0.0.1"), n.Host("10.0.0.2"))
		started := time.Now()
		if _, err := get(t.Context(), c, "x"); !errors.Is(err, ErrStalled) || time.Since(started) > stall {
			t.Errorf("stalled: %v after %s", err, time.Since(started))
		}
		if err, _ := stop(); !errors.Is(err, ErrStalled) {
			t.Errorf("Run = %v", err)
		}
	})
}

// A cancelled request reaches the handler, frees its place, and leaves the
// stream to the others.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancelled := make(chan struct{})
		c, stop := both(t, new(memnet.Network), func(ctx context.Context, body []byte) (Answer, error) {
			if string(body) == "wait" {
				<-ctx.Done()
				close(cancelled)
				return Answer{}, ctx.Err()
			}
			return answer(body), nil
		})
		defer func() { _, _ = stop() }() // its errors are not the point
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); cancel() }()
		if _, err := get(ctx, c, "wait"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled request: %v", err)
		}
		<-cancelled
		if got, err := get(t.Context(), c, "next"); string(got) != "next" || err != nil {
			t.Errorf("request after it: %q, %v", got, err)
		}
	})
}

// Requests above the bound wait for their turn and are all answered.
func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		c, stop := both(t, new(memnet.Network), func(_ context.Context, body []byte) (Answer, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
			return answer(body), nil
		})
		defer func() { _, _ = stop() }() // its errors are not the point
		var wg sync.WaitGroup
		for i := range 3 * MaxInFlight {
			wg.Go(func() {
				want := fmt.Sprint(i)
				if got, err := get(t.Context(), c, want); string(got) != want || err != nil {
					t.Errorf("request %d: %q, %v", i, got, err)
				}
			})
		}
		wg.Wait()
		if most > MaxInFlight {
			t.Errorf("%d requests at once", most)
		}
	})
}

// A client that does not keep to its bound is told BUSY.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cs, ss := pipe(t, new(memnet.Network))
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() {
			served <- Serve(ctx, ss, func(ctx context.Context, _ []byte) (Answer, error) {
				<-ctx.Done()
				return Answer{}, ctx.Err()
			}, semaphore.NewWeighted(1000), Counters{})
		}()
		for i := range maxServed + 1 {
			if _, err := cs.Write(wire.AppendFrame(nil, wire.TypeRequest, uint32(i+1), nil)); err != nil {
				t.Fatal(err)
			}
		}
		var raw [wire.HeaderLen]byte
		if _, err := io.ReadFull(cs, raw[:]); err != nil {
			t.Fatal(err)
		}
		h, err := wire.ParseHeader(raw)
		if err != nil || h.Type != wire.TypeFail || h.ID != maxServed+1 {
			t.Errorf("frame %+v, %v", h, err)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// Whatever a server sends that it must not, the client gives up the stream with
// ErrInvalid and its callers see ErrUnavailable or ErrInvalid.
func TestServerViolations(t *testing.T) {
	found := func(id uint32, size uint64) []byte {
		return wire.AppendFrame(nil, wire.TypeFound, id, wire.Marshal(&wire.Found{Size: size}))
	}
	for name, frames := range map[string][]byte{
		"unknown type":       {42, 0, 0, 0, 1, 0, 0, 0, 0},
		"a client's frame":   wire.AppendFrame(nil, wire.TypeCancel, 1, nil),
		"data before size":   wire.AppendFrame(nil, wire.TypeData, 1, []byte("x")),
		"too much data":      append(found(1, 1), wire.AppendFrame(nil, wire.TypeData, 1, []byte("xy"))...),
		"two sizes":          append(found(1, 1), found(1, 1)...),
		"request never sent": found(2, 1),
		"malformed size":     wire.AppendFrame(nil, wire.TypeFound, 1, []byte{0xff}),
		"refused size":       found(1, 1<<40),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cs, ss := pipe(t, new(memnet.Network))
				defer ss.Close()
				c := NewClient(cs, stall, Counters{})
				ran := make(chan error, 1)
				go func() { ran <- c.Run() }()
				go func() {
					_, _ = io.ReadFull(ss, make([]byte, wire.HeaderLen)) // the request is out
					_, _ = ss.Write(frames)
				}()
				err := c.Do(t.Context(), nil, func(size uint64) ([]byte, error) {
					if size > 100 {
						return nil, fmt.Errorf("%d bytes: %w", size, covey.ErrInvalid)
					}
					return make([]byte, size), nil
				})
				if err == nil {
					t.Error("the request succeeded")
				}
				if err := <-ran; !errors.Is(err, covey.ErrInvalid) {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

// FuzzServe: no bytes of a client make the server panic, hang or remember.
func FuzzServe(f *testing.F) {
	req := wire.AppendFrame(nil, wire.TypeRequest, 1, wire.Marshal(&wire.Request{Body: []byte("b"), TimeoutMs: 5}))
	f.Add(req)
	f.Add(append(bytes.Clone(req), req...)) // one ID twice
	f.Add(append(bytes.Clone(req), wire.AppendFrame(nil, wire.TypeCancel, 1, nil)...))
	f.Add(wire.AppendFrame(nil, wire.TypeRequest, 1, []byte{0xff, 0xff}))
	f.Add([]byte{1, 0, 0, 0, 1, 255, 255, 255, 255})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cs, ss := net.Pipe()
		done := make(chan error, 1)
		shared := semaphore.NewWeighted(10)
		go func() {
			done <- Serve(t.Context(), stream{ss}, func(context.Context, []byte) (Answer, error) { return answer([]byte("a")), nil }, shared, Counters{})
		}()
		go func() { _, _ = io.Copy(io.Discard, cs) }()
		_, _ = cs.Write(b) // it may hang up at any byte
		cs.Close()
		if err := <-done; err != nil && !errors.Is(err, covey.ErrInvalid) {
			t.Fatalf("Serve = %v", err)
		}
		if !shared.TryAcquire(10) {
			t.Fatal("requests not given back")
		}
	})
}

// FuzzClient: whatever a server says, the client's calls end, with an error of a
// kind that callers act upon, and their buffers are not overrun.
func FuzzClient(f *testing.F) {
	found := wire.AppendFrame(nil, wire.TypeFound, 1, wire.Marshal(&wire.Found{Size: 5}))
	f.Add(wire.AppendFrame(found, wire.TypeData, 1, []byte("hello")))
	f.Add(append(bytes.Clone(found), found...)) // twice
	f.Add(wire.AppendFrame(nil, wire.TypeData, 1, []byte("before the size")))
	f.Add(wire.AppendFrame(bytes.Clone(found), wire.TypeData, 1, []byte("more than was said")))
	f.Add(wire.AppendFrame(nil, wire.TypeFail, 1, wire.Marshal(&wire.Failure{Code: wire.Code_BUSY})))
	f.Add(wire.AppendFrame(nil, wire.TypeFail, 77, nil)) // never asked
	f.Add(wire.AppendFrame(nil, wire.TypeFound, 1, wire.Marshal(&wire.Found{Size: 1 << 60})))
	f.Add(found[:4]) // cut short
	f.Fuzz(func(t *testing.T, b []byte) {
		cs, ss := net.Pipe()
		c := NewClient(stream{cs}, stall, Counters{})
		ran := make(chan error, 1)
		go func() { ran <- c.Run() }()
		said := make(chan struct{})
		go func() {
			defer close(said)
			defer ss.Close()
			var request [256]byte
			if _, err := ss.Read(request[:]); err == nil {
				_, _ = ss.Write(b) // the client may have had enough
			}
		}()
		err := c.Do(context.Background(), []byte("x"), func(size uint64) ([]byte, error) {
			if size > 16 {
				return nil, covey.ErrInvalid
			}
			return make([]byte, size), nil
		})
		for _, kind := range []error{nil, covey.ErrUnavailable, covey.ErrInvalid, covey.ErrNotFound, covey.ErrStale} {
			if errors.Is(err, kind) {
				err = nil
			}
		}
		if err != nil {
			t.Fatalf("error of kind %v", err)
		}
		c.Fail(ErrClosed)
		if err := <-ran; err != nil { // the call has told
			t.Log(err)
		}
		<-said
	})
}

// A frame that is begun must be ended, in time and whole.
func TestUnfinishedFrames(t *testing.T) {
	header := wire.AppendFrame(nil, wire.TypeRequest, 1, make([]byte, 1000))[:wire.HeaderLen+10]
	for name, end := range map[string]func(c stream){
		"cut short":  func(c stream) { c.Close() },
		"never ends": func(stream) { time.Sleep(frameTimeout) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := pipe(t, &memnet.Network{})
				served := make(chan error, 1)
				go func() {
					served <- Serve(t.Context(), s, func(context.Context, []byte) (Answer, error) { return Answer{}, nil }, semaphore.NewWeighted(1), Counters{})
				}()
				if _, err := c.Write(header); err != nil {
					t.Fatal(err)
				}
				end(c)
				if err := <-served; !errors.Is(err, covey.ErrInvalid) {
					t.Errorf("Serve = %v", err)
				}
				c.Close()
			})
		})
	}
}
