package gateway

import (
	"context"
	"fmt"
	"net/http"

	"github.com/covey-cache/covey"
)

// addCache adds the calls about what the agent has on its disk.
func (h *handler) addCache(mux *http.ServeMux) {
	mux.Handle("/api/v1/stat", h.route(verbs{http.MethodGet: h.stat}))
	mux.Handle("/api/v1/du", h.route(verbs{http.MethodGet: h.du}))
	mux.Handle("/api/v1/pin", h.route(verbs{http.MethodPost: onPath("pin", h.agent.Pin)}))
	mux.Handle("/api/v1/unpin", h.route(verbs{http.MethodPost: onPath("unpin", h.agent.Unpin)}))
	mux.Handle("/api/v1/evict", h.route(verbs{http.MethodPost: onPath("evict", h.agent.Evict)}))
	mux.Handle("/api/v1/verify", h.route(verbs{http.MethodPost: h.verify}))
}

func (h *handler) stat(r *http.Request) (any, error) {
	path, err := query(r, "path")
	if err != nil {
		return nil, err
	}
	if err := h.mayOpen("stat", path); err != nil {
		return nil, err
	}
	return h.agent.Stat(r.Context(), path)
}

func (h *handler) du(r *http.Request) (any, error) {
	path := r.URL.Query().Get("path")
	if path != "" {
		if err := h.mayOpen("du", path); err != nil {
			return nil, err
		}
	}
	du, err := h.agent.Du(r.Context(), path)
	du.Sources = list(du.Sources)
	return du, err
}

func (h *handler) verify(r *http.Request) (any, error) {
	var req PathRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return h.agent.Verify(r.Context(), req.Path)
}

// onPath answers a call that changes what is at or below one path. An empty path
// is refused: what a script left out must not mean everything.
func onPath[T any](op string, do func(context.Context, string) (T, error)) verb {
	return func(r *http.Request) (any, error) {
		var req PathRequest
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		if req.Path == "" {
			return nil, fmt.Errorf("%s: path must be given: %w", op, covey.ErrInvalid)
		}
		return do(r.Context(), req.Path)
	}
}
