package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The bounds of a listener.
const (
	// headerTimeout is how long a client may take over its request line and
	// headers; they fit in one packet.
	headerTimeout = 5 * time.Second
	// maxHeader is room for two 4 KiB names in a URL, escaped threefold.
	maxHeader = 32 << 10
	// idleTimeout outlives the usual scrape interval of a minute by a half.
	idleTimeout = 90 * time.Second
	// writeTimeout is twice requestTimeout, and lets a profile run for almost
	// two minutes.
	writeTimeout = 2 * requestTimeout
	// maxConns is how many connections one listener keeps. Scrapers, probes and
	// people need tens; more would be taken from the descriptors of the cache.
	maxConns = 256
	// shutdownGrace is how long requests under way may take to end. An agent
	// has 5 s for everything, unmounting included.
	shutdownGrace = time.Second
)

// Serve answers requests on l with h until ctx ends, then gives requests under
// way a second, closes everything and returns nil once all of it is gone. It
// closes l in any case. The contexts of requests end with ctx. Log hears of
// broken connections; nil discards.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	requests := &tracked{next: h}
	s := &http.Server{
		Handler:           requests,
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    maxHeader,
		IdleTimeout:       idleTimeout,
		WriteTimeout:      writeTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return withListener(ctx, l) },
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(limitConns(l, maxConns)) }()

	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		if s.Shutdown(grace) != nil {
			log.Debug("requests outlast the shutdown", "addr", l.Addr().String())
		}
		cancel()
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			log.Debug("listener ended", "err", e)
		}
	}
	_ = s.Close()
	requests.join()
	return err
}

// tracked counts the requests under way, so that they can be joined:
// [http.Server.Close] ends their connections but does not wait for them.
type tracked struct {
	next http.Handler

	// mu orders the start of requests against join, and is a leaf lock.
	//
	// INVARIANT: running does not rise from zero once closing is set.
	mu      sync.Mutex
	closing bool
	running sync.WaitGroup
}

func (t *tracked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t.mu.Lock()
	if t.closing {
		t.mu.Unlock()
		return // the connection is closed; nobody hears an answer
	}
	t.running.Add(1)
	t.mu.Unlock()
	defer t.running.Done()
	t.next.ServeHTTP(w, r)
}

func (t *tracked) join() {
	t.mu.Lock()
	t.closing = true
	t.mu.Unlock()
	t.running.Wait()
}

// limitListener accepts while fewer than cap(slots) of its connections are open.
type limitListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func limitConns(l net.Listener, n int) net.Listener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
