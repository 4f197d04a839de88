package gateway

import (
	"context"
	"net/http"
	"net/url"
)

// AddPlan posts a plan.
func (c *Client) AddPlan(ctx context.Context, r PlanRequest) (Plan, error) {
	var p Plan
	err := c.call(ctx, http.MethodPost, "/api/v1/plans", r, &p)
	return p, err
}

// Plans asks for the agent's plans.
func (c *Client) Plans(ctx context.Context) ([]Plan, error) {
	return get[[]Plan](ctx, c, "/api/v1/plans")
}

// Plan asks for one plan.
func (c *Client) Plan(ctx context.Context, id string) (Plan, error) {
	return get[Plan](ctx, c, "/api/v1/plans/"+url.PathEscape(id))
}

// RenewPlan lets the plan's lease run from now on.
func (c *Client) RenewPlan(ctx context.Context, id string, r PlanRenewal) (Plan, error) {
	var p Plan
	err := c.call(ctx, http.MethodPost, "/api/v1/plans/"+url.PathEscape(id)+"/renew", r, &p)
	return p, err
}

// CancelPlan ends a plan.
func (c *Client) CancelPlan(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/api/v1/plans/"+url.PathEscape(id), nil, nil)
}
