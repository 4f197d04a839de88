package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/covey-cache/covey"
)

// StagedFile is a file that a mount's user wrote and that is not at its origin.
type StagedFile struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Path   string `json:"path"`
	// State is "writing", "closing" (its upload is under way or will be),
	// "failed" (Error says why; who closed it was told), or "interrupted" (its
	// agent ended while it was being written).
	State   string    `json:"state"`
	Error   string    `json:"error,omitempty"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

// Stager is an agent that keeps staged files; package peer's does.
type Stager interface {
	// UploadStaged uploads a file that failed or was interrupted, under its path.
	UploadStaged(ctx context.Context, id string) error
	// DropStaged gives up such a file and its bytes.
	DropStaged(id string) error
}

// StagedRequest is the body of POST /api/v1/staged.
type StagedRequest struct {
	ID     string `json:"id"`
	Action string `json:"action"` // "upload" or "drop"
}

func (h *handler) staged(r *http.Request) (any, error) {
	var req StagedRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	s, ok := h.agent.(Stager)
	if !ok || req.ID == "" {
		return nil, fmt.Errorf("staged file %q: there is none: %w", req.ID, covey.ErrNotFound)
	}
	switch req.Action {
	case "upload":
		return nil, s.UploadStaged(r.Context(), req.ID)
	case "drop":
		return nil, s.DropStaged(req.ID)
	}
	return nil, fmt.Errorf("staged file %s: action %q is neither upload nor drop: %w", req.ID, req.Action, covey.ErrInvalid)
}

// Staged uploads or drops a staged file.
func (c *Client) Staged(ctx context.Context, r StagedRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/staged", r, nil)
}
