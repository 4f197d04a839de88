package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/covey-cache/covey"
)

// maxAnswer bounds what a client reads: 10,000 peers at half a KiB are 5 MiB.
const maxAnswer = 64 << 20

// dialTimeout is for a connection on this host: only a stopped agent takes
// longer.
const dialTimeout = 2 * time.Second

// callTimeout bounds one call, so that an agent that is stopped or hangs is told
// from one that works: what it takes longest over ends by itself before.
const callTimeout = requestTimeout + 10*time.Second

// ErrNoAgent says that nobody listens on the socket. It wraps
// covey.ErrUnavailable.
var ErrNoAgent = fmt.Errorf("no agent answers: %w", covey.ErrUnavailable)

// noAgentError reads as one line that says what to do, and is ErrNoAgent.
type noAgentError struct{ socket string }

func (e *noAgentError) Error() string {
	return fmt.Sprintf("no agent answers on %s; start one with `covey agent`", e.socket)
}

func (e *noAgentError) Unwrap() error { return ErrNoAgent }

// Client speaks to an agent over its socket. Its methods may be called
// concurrently. Errors that the agent answered are a *ResponseError and wrap
// the covey kind the agent meant; when nobody listens they wrap [ErrNoAgent]. A
// call that gets no answer ends after 70 s at the latest.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the agent on the socket without connecting.
func NewClient(socket string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		MaxIdleConns:    2,
		IdleConnTimeout: idleTimeout / 2, // before the agent closes it under a request
	}}}
}

// Dial returns a client after one connection shows that somebody listens.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c := NewClient(socket)
	dialer := &net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, c.explain(err)
	}
	conn.Close()
	return c, nil
}

// Socket is where the agent is.
func (c *Client) Socket() string { return c.socket }

// Close closes connections that are kept for reuse.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Ready is nil when the agent is ready. While it starts, the error says what it
// waits for and wraps covey.ErrUnavailable.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/readyz", nil, nil)
}

// Status asks for the agent's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/api/v1/status")
}

// Peers asks for the members that the agent knows.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return get[[]Peer](ctx, c, "/api/v1/peers")
}

// Mounts asks for the mounted data sets.
func (c *Client) Mounts(ctx context.Context) ([]Mount, error) {
	return get[[]Mount](ctx, c, "/api/v1/mounts")
}

// Mount asks for a mount and returns when the kernel answers from it.
func (c *Client) Mount(ctx context.Context, r MountRequest) (Mount, error) {
	var m Mount
	err := c.call(ctx, http.MethodPost, "/api/v1/mounts", r, &m)
	return m, err
}

// Unmount ends the mount on a directory, named by its absolute path.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	return c.call(ctx, http.MethodDelete, "/api/v1/mounts?dir="+url.QueryEscape(dir), nil, nil)
}

// Locate asks where the blocks of a path or of a source's object are.
func (c *Client) Locate(ctx context.Context, path string) (Location, error) {
	return get[Location](ctx, c, "/api/v1/locate?path="+url.QueryEscape(path))
}

// Prefetch begins a prefetch and returns its job.
func (c *Client) Prefetch(ctx context.Context, r PrefetchRequest) (Job, error) {
	var j Job
	err := c.call(ctx, http.MethodPost, "/api/v1/prefetch", r, &j)
	return j, err
}

// Job asks how far a job is.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return get[Job](ctx, c, "/api/v1/jobs/"+url.PathEscape(id))
}

// CancelJob ends a job.
func (c *Client) CancelJob(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/api/v1/jobs/"+url.PathEscape(id), nil, nil)
}

// Stat asks how much of a path or source URL is cached by the agent.
func (c *Client) Stat(ctx context.Context, path string) (Stat, error) {
	return get[Stat](ctx, c, "/api/v1/stat?path="+url.QueryEscape(path))
}

// Du asks what is cached below a path or source URL, or with an empty path by
// data set.
func (c *Client) Du(ctx context.Context, path string) (Du, error) {
	if path == "" {
		return get[Du](ctx, c, "/api/v1/du")
	}
	return get[Du](ctx, c, "/api/v1/du?path="+url.QueryEscape(path))
}

// Pin keeps the files at or below a path from eviction: all of them or none.
func (c *Client) Pin(ctx context.Context, path string) (Pinned, error) {
	return post[Pinned](ctx, c, "/api/v1/pin", path)
}

// Unpin ends the pins of the files at or below a path.
func (c *Client) Unpin(ctx context.Context, path string) (Pinned, error) {
	return post[Pinned](ctx, c, "/api/v1/unpin", path)
}

// Evict frees what is cached at or below a path.
func (c *Client) Evict(ctx context.Context, path string) (Evicted, error) {
	return post[Evicted](ctx, c, "/api/v1/evict", path)
}

// Verify begins to check what is cached at or below a path, or with an empty one
// everything, and returns the job.
func (c *Client) Verify(ctx context.Context, path string) (Job, error) {
	return post[Job](ctx, c, "/api/v1/verify", path)
}

func post[T any](ctx context.Context, c *Client, call, path string) (T, error) {
	var v T
	err := c.call(ctx, http.MethodPost, call, PathRequest{Path: path}, &v)
	return v, err
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var v T
	err := c.call(ctx, http.MethodGet, path, nil, &v)
	return v, err
}

// call makes one request. The answer is decoded into answer unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var send io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		send = bytes.NewReader(text)
	}
	// The host is never looked up; it is what the agent sees in Host.
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, send)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.explain(err)
	}
	if resp.StatusCode/100 != 2 {
		return responseError(resp.StatusCode, text)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("read the answer of the agent on %s: %w: %w", c.socket, err, covey.ErrCorrupt)
	}
	return nil
}

func responseError(status int, body []byte) error {
	var e errorBody
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		e.Error = string(body) // /readyz answers in plain text
	}
	line := oneLine(e.Error)
	if line == "" {
		line = fmt.Sprintf("the agent answered %d %s", status, strings.ToLower(http.StatusText(status)))
	}
	return &ResponseError{Status: status, Message: line}
}

// explain turns an error of the connection into one that says what to do.
func (c *Client) explain(err error) error {
	var urlErr *url.Error
	if errors.As(err, &urlErr) { // its text repeats the request line
		err = urlErr.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTSOCK):
		return &noAgentError{socket: c.socket}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the socket %s belongs to another user; ask as the user that runs the agent: %w", c.socket, covey.ErrDenied)
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("ask the agent on %s: %w: %w", c.socket, err, covey.ErrUnavailable)
}
