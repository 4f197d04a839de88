package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/covey-cache/covey"
)

// HandlerOptions configure [NewHandler]. The zero value works: it serves
// Prometheus's default registry, read-only, and logs nothing.
type HandlerOptions struct {
	// Gatherer is what /metrics shows; nil means prometheus.DefaultGatherer.
	Gatherer prometheus.Gatherer
	// Log hears of every change asked for, and of failures inside the handler.
	// Nil discards.
	Log *slog.Logger
	// Socket says that the handler is served on the agent's unix socket, whose
	// file mode lets only the agent's own user in. Only then may it change
	// anything: a TCP connection does not say who is asking.
	Socket bool
}

// The bounds of the API.
const (
	// maxBody is the largest request body. A mount request is two names of at
	// most 4 KiB each, escaped at worst sixfold.
	maxBody = 64 << 10
	// bodyTimeout is how long a client may take to send its body.
	bodyTimeout = 10 * time.Second
	// requestTimeout bounds what one request may keep the agent busy with. A
	// mount lists its origin first, with retries; a minute is past all of them.
	requestTimeout = time.Minute
)

// handler serves the API of one agent. It has no state of its own.
type handler struct {
	agent  Agent
	log    *slog.Logger
	socket bool
}

// NewHandler returns the agent's HTTP door:
//
//	/healthz                 200 while the process lives
//	/readyz                  200 when the agent is ready, else 503 and the reason
//	/metrics                 Prometheus
//	/                        the status page
//	/debug/pprof/            on the socket and on loopback listeners only
//	/api/v1/status           GET
//	/api/v1/peers            GET
//	/api/v1/mounts           GET; POST MountRequest; DELETE ?dir=
//	/api/v1/locate?path=     GET
//	/api/v1/prefetch         POST PrefetchRequest
//	/api/v1/stat?path=       GET
//	/api/v1/du?path=         GET; without path: by data set
//	/api/v1/pin, unpin, evict, verify   POST PathRequest
//	/api/v1/tiers            GET
//	/api/v1/tiers/revive     POST TierRequest
//	/api/v1/staged           POST StagedRequest
//	/api/v1/jobs/{id}        GET; DELETE cancels
//	/api/v1/plans            GET; POST PlanRequest
//	/api/v1/plans/{id}       GET; DELETE cancels
//	/api/v1/plans/{id}/renew POST PlanRenewal
//	/api/v1/openapi.yaml     all of these, described
//
// POST and DELETE are refused with 403 unless opts.Socket is set. So is a
// locate, stat or du for anything but a path below a mount, because it would
// make the agent open a place of the caller's choosing.
//
// An answer that is no success is {"error": "one line"}.
func NewHandler(agent Agent, opts HandlerOptions) http.Handler {
	h := &handler{agent: agent, log: opts.Log, socket: opts.Socket}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	gatherer := opts.Gatherer
	if gatherer == nil {
		gatherer = prometheus.DefaultGatherer
	}

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", h.healthz)
	mux.HandleFunc("/readyz", h.readyz)
	mux.Handle("/metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(h.log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: 4, // a scrape is work; two Prometheus servers and a person fit
	}))
	mux.Handle("/api/v1/status", h.route(verbs{http.MethodGet: h.status}))
	mux.Handle("/api/v1/peers", h.route(verbs{http.MethodGet: h.peers}))
	mux.Handle("/api/v1/mounts", h.route(verbs{
		http.MethodGet: h.mounts, http.MethodPost: h.mount, http.MethodDelete: h.unmount,
	}))
	mux.Handle("/api/v1/locate", h.route(verbs{http.MethodGet: h.locate}))
	mux.Handle("/api/v1/prefetch", h.route(verbs{http.MethodPost: h.prefetch}))
	mux.Handle("/api/v1/staged", h.route(verbs{http.MethodPost: h.staged}))
	h.addCache(mux)
	h.addPlans(mux)
	addOpenAPI(mux)
	h.addTiers(mux)
	mux.Handle("/api/v1/jobs/{id}", h.route(verbs{
		http.MethodGet: h.job, http.MethodDelete: h.cancelJob,
	}))
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, fmt.Sprintf("no such call: %s", r.URL.Path))
	})
	h.addProfiles(mux)
	addPage(mux)
	return mux
}

func (h *handler) healthz(w http.ResponseWriter, _ *http.Request) {
	writeText(w, http.StatusOK, "ok")
}

func (h *handler) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := h.agent.Ready(); err != nil {
		writeText(w, http.StatusServiceUnavailable, oneLine(err.Error()))
		return
	}
	writeText(w, http.StatusOK, "ok")
}

// verb answers one method of one path: with a value that becomes the JSON body,
// or with an error that becomes the status. A nil value is an empty 204.
type verb func(r *http.Request) (any, error)

type verbs map[string]verb

// route serves one path of the API.
func (h *handler) route(methods verbs) http.Handler { return h.routeUpTo(maxBody, methods) }

// routeUpTo is route for calls whose body may be larger than others'.
func (h *handler) routeUpTo(most int64, methods verbs) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		call, ok := methods[method]
		if !ok {
			w.Header().Set("Allow", methods.allow())
			writeError(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s %s: method not allowed", r.Method, r.URL.Path))
			return
		}
		if method != http.MethodGet && !h.socket {
			writeError(w, http.StatusForbidden,
				fmt.Sprintf("%s %s: this listener only reads: ask on the agent's socket", r.Method, r.URL.Path))
			return
		}
		if !limitBody(w, r, most) {
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		answer, err := call(r.WithContext(ctx))
		h.logCall(r, err)
		reply(w, answer, err)
	})
}

func (v verbs) allow() string {
	var names []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		if v[m] != nil {
			names = append(names, m)
		}
	}
	return strings.Join(names, ", ")
}

// limitBody bounds the request body in bytes and in time, by reading all of it.
// Reading ahead of the handler also lets the server notice when the client
// leaves, and the deadline must be gone by then or it would end the request.
func limitBody(w http.ResponseWriter, r *http.Request, most int64) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return true
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported by recorders, which have no connection
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err != nil {
		w.Header().Set("Connection", "close")
		status := statusOf(err)
		if status == http.StatusInternalServerError {
			status = http.StatusBadRequest
		}
		writeError(w, status, "read the request body: "+err.Error())
		return false
	}
	_ = rc.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(body))
	return true
}

func (h *handler) logCall(r *http.Request, err error) {
	level := slog.LevelDebug
	if r.Method == http.MethodPost || r.Method == http.MethodDelete {
		level = slog.LevelInfo
	}
	attrs := []slog.Attr{slog.String("method", r.Method), slog.String("path", r.URL.Path)}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	h.log.LogAttrs(r.Context(), level, "api call", attrs...)
}

func (h *handler) status(*http.Request) (any, error) {
	s := h.agent.Status()
	if err := h.agent.Ready(); err != nil {
		s.Ready, s.NotReady = false, oneLine(err.Error())
	}
	s.Staged = list(s.Staged)
	s.Listen, s.Tiers, s.Mounts, s.Plans = list(s.Listen), list(s.Tiers), list(s.Mounts), list(s.Plans)
	if s.OriginRequests == nil {
		s.OriginRequests = map[string]int64{}
	}
	if s.CorruptBlocks == nil {
		s.CorruptBlocks = map[string]int64{}
	}
	return s, nil
}

func (h *handler) peers(*http.Request) (any, error) {
	peers := list(h.agent.Peers())
	for i := range peers {
		peers[i].Addresses = list(peers[i].Addresses)
	}
	return peers, nil
}

func (h *handler) mounts(*http.Request) (any, error) { return list(h.agent.Mounts()), nil }

func (h *handler) mount(r *http.Request) (any, error) {
	var req MountRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if req.Source == "" || req.Dir == "" {
		return nil, fmt.Errorf("mount: source and dir must both be given: %w", covey.ErrInvalid)
	}
	if !filepath.IsAbs(req.Dir) {
		return nil, fmt.Errorf("mount on %s: the directory must be an absolute path: %w", req.Dir, covey.ErrInvalid)
	}
	return h.agent.Mount(r.Context(), req)
}

func (h *handler) unmount(r *http.Request) (any, error) {
	dir, err := query(r, "dir")
	if err != nil {
		return nil, err
	}
	return nil, h.agent.Unmount(r.Context(), dir)
}

func (h *handler) locate(r *http.Request) (any, error) {
	path, err := query(r, "path")
	if err != nil {
		return nil, err
	}
	if err := h.mayOpen("locate", path); err != nil {
		return nil, err
	}
	loc, err := h.agent.Locate(r.Context(), path)
	loc.Blocks = list(loc.Blocks)
	for i := range loc.Blocks {
		b := &loc.Blocks[i]
		b.Homes, b.Holders = list(b.Homes), list(b.Holders)
	}
	return loc, err
}

// mayOpen refuses a path that this listener must not make the agent open.
func (h *handler) mayOpen(op, path string) error {
	if h.socket || h.mounted(path) {
		return nil
	}
	return fmt.Errorf("%s %s: not below a mount, and this listener answers for no other place: %w", op, path, covey.ErrDenied)
}

// mounted says whether path is at or below a mount.
func (h *handler) mounted(path string) bool {
	if !filepath.IsAbs(path) {
		return false
	}
	for _, m := range h.agent.Mounts() {
		rel, err := filepath.Rel(m.Dir, path)
		if err == nil && filepath.IsLocal(rel) {
			return true
		}
	}
	return false
}

func (h *handler) prefetch(r *http.Request) (any, error) {
	var req PrefetchRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	switch {
	case req.Path == "":
		return nil, fmt.Errorf("prefetch: path must be given: %w", covey.ErrInvalid)
	case req.Replicas < 0 || req.Rate < 0:
		return nil, fmt.Errorf("prefetch %s: replicas and rate_bytes cannot be negative: %w", req.Path, covey.ErrInvalid)
	}
	return h.agent.Prefetch(r.Context(), req)
}

func (h *handler) job(r *http.Request) (any, error) { return h.agent.Job(r.PathValue("id")) }

func (h *handler) cancelJob(r *http.Request) (any, error) {
	return nil, h.agent.CancelJob(r.PathValue("id"))
}

// decode reads one JSON value. Unknown fields are refused: an option that the
// agent is too old to know must not be dropped in silence.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("read the request body: %w: %w", err, covey.ErrInvalid)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the request body: more than one JSON value: %w", covey.ErrInvalid)
	}
	return nil
}

func query(r *http.Request, name string) (string, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return "", fmt.Errorf("%s: the parameter %s must be given: %w", r.URL.Path, name, covey.ErrInvalid)
	}
	return v, nil
}

// list turns nil into an empty list, so that the JSON has [] and never null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
