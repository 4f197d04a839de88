package gateway

import (
	"context"
	"fmt"
	"net/http"

	"github.com/covey-cache/covey"
)

// Tier is one cache directory.
type Tier struct {
	Dir      string `json:"dir"`
	Budget   int64  `json:"budget_bytes"`
	Used     int64  `json:"used_bytes"`
	Objects  int    `json:"objects"`
	Blocks   int    `json:"blocks"`
	ReadOnly bool   `json:"read_only"`
	// State is "ok"; "read-only" when a fault of its disk stopped admission;
	// "stalled" while its disk does not answer; "off" when it cannot be opened. Why
	// is one line for people.
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	// Reserved is room kept for pinned blocks that are not here yet.
	Reserved int64 `json:"reserved_bytes"`
	Pinned   int   `json:"pinned_objects"`
}

// TierRequest is the body of POST /api/v1/tiers/revive.
type TierRequest struct {
	Dir string `json:"dir"`
}

// addTiers adds the calls about cache directories.
func (h *handler) addTiers(mux *http.ServeMux) {
	mux.Handle("/api/v1/tiers", h.route(verbs{http.MethodGet: h.tiers}))
	mux.Handle("/api/v1/tiers/revive", h.route(verbs{http.MethodPost: h.revive}))
}

func (h *handler) tiers(*http.Request) (any, error) { return list(h.agent.Tiers()), nil }

func (h *handler) revive(r *http.Request) (any, error) {
	var req TierRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if req.Dir == "" {
		return nil, fmt.Errorf("revive a tier: dir must be given: %w", covey.ErrInvalid)
	}
	return nil, h.agent.ReviveTier(r.Context(), req.Dir)
}

// Tiers returns the agent's cache directories, the fastest first.
func (c *Client) Tiers(ctx context.Context) ([]Tier, error) {
	return get[[]Tier](ctx, c, "/api/v1/tiers")
}

// ReviveTier brings a tier back whose disk failed and was mended.
func (c *Client) ReviveTier(ctx context.Context, dir string) error {
	return c.call(ctx, http.MethodPost, "/api/v1/tiers/revive", TierRequest{Dir: dir}, nil)
}
