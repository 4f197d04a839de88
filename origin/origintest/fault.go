package origintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is a proxy in front of an S3 server that answers chosen requests wrongly
// and passes on the others unchanged. Its methods may be called concurrently.
type Fault struct {
	target    string // host:port
	server    *http.Server
	addr      string
	transport *http.Transport
	served    chan struct{}
	ctx       context.Context // ends with the proxy, and frees what hangs
	cancel    context.CancelFunc

	// mu guards the script; a leaf lock.
	mu     sync.Mutex
	script map[string][]Act // by op, the next one first
	always map[string]Act
	seen   map[string]int
}

// Act answers one request. Forward sends it on, signed for the proxy's address
// as it is, and returns the real answer, whose body the act closes.
type Act func(w http.ResponseWriter, r *http.Request, forward func() (*http.Response, error))

// StartFault is RunFault for a test.
func StartFault(tb testing.TB, s *S3) *Fault {
	tb.Helper()
	f, err := RunFault(s)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Close(); err != nil {
			tb.Error(err)
		}
	})
	return f
}

// RunFault starts a proxy on a free loopback port. The caller closes it.
func RunFault(s *S3) (*Fault, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start fault proxy: %w", err)
	}
	f := &Fault{
		target: s.addr, addr: l.Addr().String(), served: make(chan struct{}),
		transport: &http.Transport{DisableCompression: true},
		script:    map[string][]Act{}, always: map[string]Act{}, seen: map[string]int{},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(f.served)
		_ = f.server.Serve(l) // ends with ErrServerClosed
	}()
	return f, nil
}

// Close ends the proxy and all its connections.
func (f *Fault) Close() error {
	f.cancel()
	err := f.server.Close()
	<-f.served
	f.transport.CloseIdleConnections()
	return err
}

// Endpoint returns the proxy's base URL.
func (f *Fault) Endpoint() string { return "http://" + f.addr }

// URL returns the source URL of a prefix of a bucket through the proxy.
func (f *Fault) URL(bucket, prefix string) string { return sourceURL(f.Endpoint(), bucket, prefix) }

// Script appends answers to the next requests of an op: "get", "list", "stat",
// "put" or "delete". A nil act passes a request on. After the last, requests
// pass.
func (f *Fault) Script(op string, acts ...Act) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script[op] = append(f.script[op], acts...)
}

// Always answers every request of an op that no script covers; nil ends that.
func (f *Fault) Always(op string, act Act) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.always[op] = act
}

// Seen returns how many requests of an op came.
func (f *Fault) Seen(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[op]
}

func opOf(r *http.Request) string {
	object := strings.Count(strings.Trim(r.URL.Path, "/"), "/") > 0
	switch {
	case r.Method == http.MethodGet && !object:
		return "list"
	case r.Method == http.MethodGet:
		return "get"
	case r.Method == http.MethodHead:
		return "stat"
	case r.Method == http.MethodPut:
		return "put"
	}
	return "delete"
}

func (f *Fault) next(op string) Act {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[op]++
	act := f.always[op]
	if queue := f.script[op]; len(queue) > 0 {
		act, f.script[op] = queue[0], queue[1:]
	}
	if act == nil {
		act = Pass
	}
	return act
}

// ServeHTTP answers one request by its act.
func (f *Fault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)()
	r = r.WithContext(ctx)
	f.next(opOf(r))(w, r, func() (*http.Response, error) { return f.forward(r) })
}

func (f *Fault) forward(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", f.target
	// The signature covers the Host header, so it stays the proxy's.
	out.Host = r.Host
	return f.transport.RoundTrip(out)
}

// Pass is the act that changes nothing.
func Pass(w http.ResponseWriter, _ *http.Request, forward func() (*http.Response, error)) {
	resp, err := forward()
	if err != nil {
		panic(http.ErrAbortHandler) // as the server is: gone
	}
	defer resp.Body.Close()
	sendHeader(w, resp)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

func sendHeader(w http.ResponseWriter, resp *http.Response) {
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
}

// Answer refuses with an S3 error.
func Answer(status int, code string) Act {
	return func(w http.ResponseWriter, r *http.Request, _ func() (*http.Response, error)) {
		_, _ = io.Copy(io.Discard, r.Body) // as a server that reads before it refuses
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>scripted</Message></Error>`, code)
	}
}

// Redirect sends the client elsewhere.
func Redirect(location string) Act {
	return func(w http.ResponseWriter, r *http.Request, _ func() (*http.Response, error)) {
		http.Redirect(w, r, location, http.StatusTemporaryRedirect)
	}
}

// Hang never answers.
func Hang(_ http.ResponseWriter, r *http.Request, _ func() (*http.Response, error)) {
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// EarlyClose closes the connection without an answer.
func EarlyClose(http.ResponseWriter, *http.Request, func() (*http.Response, error)) {
	panic(http.ErrAbortHandler)
}

// ShortBody closes the connection after n bytes of the body.
func ShortBody(n int64) Act { return cutBody(n, func(*http.Request) {}) }

// HangBody stops for ever after n bytes of the body.
func HangBody(n int64) Act { return cutBody(n, func(r *http.Request) { <-r.Context().Done() }) }

func cutBody(n int64, then func(*http.Request)) Act {
	return func(w http.ResponseWriter, r *http.Request, forward func() (*http.Response, error)) {
		resp, err := forward()
		if err == nil {
			defer resp.Body.Close()
			sendHeader(w, resp)
			_, err = io.CopyN(w, resp.Body, n)
		}
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		if err == nil {
			then(r)
		}
		panic(http.ErrAbortHandler)
	}
}

// Edit changes the real answer before it is sent.
func Edit(edit func(resp *http.Response, body []byte) []byte) Act {
	return func(w http.ResponseWriter, r *http.Request, forward func() (*http.Response, error)) {
		Pass(w, r, func() (*http.Response, error) {
			resp, err := forward()
			if err != nil {
				return nil, err
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			body = edit(resp, body)
			resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
			resp.Body = io.NopCloser(bytes.NewReader(body))
			return resp, err
		})
	}
}

// SetHeader replaces a header of the answer; "" removes it.
func SetHeader(name, value string) Act {
	return Edit(func(resp *http.Response, body []byte) []byte {
		resp.Header.Del(name)
		if value != "" {
			resp.Header.Set(name, value)
		}
		return body
	})
}

// WrongRange answers with as many bytes as were asked for, from elsewhere.
var WrongRange = Edit(func(resp *http.Response, body []byte) []byte {
	start, end, total, err := contentRange(resp)
	if err == nil {
		resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start+1, end+1, total+1))
	}
	return body
})

// WholeObject answers 200 and the length of the whole object to a ranged
// request, as servers do that do not know ranges.
var WholeObject = Edit(func(resp *http.Response, body []byte) []byte {
	start, end, total, err := contentRange(resp)
	if err != nil {
		return body
	}
	resp.StatusCode = http.StatusOK
	resp.Header.Del("Content-Range")
	whole := make([]byte, total)
	copy(whole[start:end+1], body)
	return whole
})

// CorruptBody flips one bit in the middle of the body.
var CorruptBody = Edit(func(_ *http.Response, body []byte) []byte {
	if len(body) > 0 {
		body[len(body)/2] ^= 1
	}
	return body
})

func contentRange(resp *http.Response) (start, end, total int64, err error) {
	n, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &start, &end, &total)
	if err == nil && n != 3 {
		err = errors.New("no range")
	}
	return start, end, total, err
}
