package gateway

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
)

// Planner is the part of [Agent] that takes the plans of training jobs.
type Planner interface {
	// AddPlan takes a plan and returns it at once; its manifest is resolved in
	// the background. The request has passed [PlanRequest.Validate].
	AddPlan(ctx context.Context, r PlanRequest) (Plan, error)
	Plans() []Plan
	// Plan returns one plan; ErrNotFound when it is unknown, or was cancelled, or
	// its lease has ended.
	Plan(id string) (Plan, error)
	// RenewPlan lets the lease run from now, for another time unless that is 0.
	RenewPlan(id string, lease time.Duration) (Plan, error)
	CancelPlan(id string) error
}

// The bounds of a plan.
const (
	// maxPlanBody has room for half a million names of 60 bytes. A larger data
	// set is named by its listing, which costs nothing to send.
	maxPlanBody = 32 << 20
	// MaxPlanRanks is how many ranks one node may have in one plan: far more
	// than any host has accelerators.
	MaxPlanRanks = 1024
	// MaxPlanNodes bounds the rank-to-node table.
	MaxPlanNodes = 1 << 16
	// MaxPlanEpochs is more epochs than anybody trains.
	MaxPlanEpochs = 1_000_000
	// The lease of a plan: a job that died is forgotten after it.
	defaultPlanLease = time.Minute
	minPlanLease     = 5 * time.Second
	maxPlanLease     = time.Hour
	// maxPlanName bounds the job's name.
	maxPlanName = 256
)

// PlanRequest is the body of POST /api/v1/plans: what a job will read, and in
// which order. The comments are the API's documentation.
type PlanRequest struct {
	// Job names the job for people; at most 256 bytes.
	Job string `json:"job,omitempty"`
	// Source is an absolute path at or below a mount, or a source URL.
	Source   string       `json:"source"`
	Manifest PlanManifest `json:"manifest"`
	// Spec is base64 of the 40 bytes that describe the order of torch's
	// DistributedSampler (fetch/plan.Spec; covey.spec in Python). Either it or
	// orders must be given.
	Spec string `json:"spec,omitempty"`
	// Epochs is for how many epochs the spec holds, its own being the first and
	// base counting in that one only; 0 means 1. A loader that does not know may
	// say more than will be read.
	Epochs int `json:"epochs,omitempty"`
	// Orders has, for each of ranks, the indices of its samples in the order in
	// which they are read, of one epoch.
	Orders [][]uint32 `json:"orders,omitempty"`
	// Ranks are the ranks on this agent's node, 1 to 1024. The cursor file has
	// their counters in this order.
	Ranks []uint32 `json:"ranks"`
	// Nodes has for each rank of the world its agent's peer ID or host name, where
	// the job knows. Without it the agents find each other by their plans.
	Nodes []string `json:"nodes,omitempty"`
	// LeaseSeconds is how long the plan is kept without a renewal and without a
	// counter moving, 5 to 3600; 0 means 60.
	LeaseSeconds int `json:"lease_seconds,omitempty"`
}

// PlanManifest says which samples there are, and where.
type PlanManifest struct {
	// Files are paths below the source, in the order of their samples. None means
	// all files below the source, links to files of the same source included, in
	// ascending order of their paths' bytes.
	Files []string `json:"files,omitempty"`
	// Suffixes keep of the listing the files that end so, in any case.
	Suffixes []string `json:"suffixes,omitempty"`
	// Counts has the number of samples in each file, which are then taken to be of
	// one length; none means one sample a file.
	Counts []uint32 `json:"counts,omitempty"`
	// Ranges is base64 of where each sample lies, in the order of the samples and
	// with them in the order of the files: for each three unsigned LEB128 numbers,
	// how many files to go on (from the first), how many bytes to pass over (from
	// the end of the sample before in the same file, or from the file's start),
	// and the sample's length.
	Ranges string `json:"ranges,omitempty"`
	// Format has the agent find the samples of each file itself: "tfrecord" (a
	// record each), "webdataset" (files of a tar with one key) or "parquet" (a row
	// group each).
	Format string `json:"format,omitempty"`
}

// PlanRenewal is the body of POST /api/v1/plans/{id}/renew.
type PlanRenewal struct {
	// LeaseSeconds is a new time for the lease, 5 to 3600; 0 leaves it.
	LeaseSeconds int `json:"lease_seconds,omitempty"`
}

// Plan is one plan that an agent holds.
type Plan struct {
	ID     string `json:"id"`
	Job    string `json:"job,omitempty"`
	Source string `json:"source"`
	// State is "resolving", "active", "dropped" (the job reads something else) or
	// "failed" (the manifest cannot be resolved); reason says why.
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
	// Cursor is the file whose counters the loader advances.
	Cursor       string    `json:"cursor"`
	LeaseSeconds int       `json:"lease_seconds"`
	Posted       time.Time `json:"posted"`
	Expires      time.Time `json:"expires"`
	// Files, Samples and Bytes are the manifest's, 0 while it is resolved.
	Files   int64  `json:"files"`
	Samples uint64 `json:"samples"`
	Bytes   int64  `json:"bytes"`
	// Epoch is the first one, and epochs how many there are.
	Epoch  uint32 `json:"epoch"`
	Epochs int    `json:"epochs"`
	World  uint32 `json:"world"`
	// Nodes is how many agents are known to read this manifest, this one
	// included.
	Nodes int `json:"nodes"`
	// OwnedBytes is the share of the manifest that this agent brings for all,
	// ResidentBytes the part of it that it has room to keep.
	OwnedBytes    int64      `json:"owned_bytes"`
	ResidentBytes int64      `json:"resident_bytes"`
	Ranks         []PlanRank `json:"ranks"`
	// Fetched is what was read ahead, by source.
	Fetched FetchedBytes `json:"fetched_bytes"`
	// Reads are the blocks of the manifest that were asked for.
	Reads int64 `json:"reads"`
	// Unplanned are those of them that no plan had foreseen.
	Unplanned int64 `json:"unplanned"`
	// Divergence is the share of unplanned reads of late; above 0.01 the plan is
	// dropped.
	Divergence float64 `json:"divergence"`
}

// PlanRank is how far one rank is.
type PlanRank struct {
	Rank uint32 `json:"rank"`
	// Position is the rank's counter.
	Position uint64 `json:"position"`
	// Samples is how many the rank reads in all epochs of the plan.
	Samples uint64 `json:"samples"`
	// AheadSamples are those in front of the position that are ready.
	AheadSamples uint64 `json:"ahead_samples"`
	AheadBytes   int64  `json:"ahead_bytes"`
}

// formats of manifests whose samples the agent finds itself.
var planFormats = map[string]bool{"": true, "tfrecord": true, "webdataset": true, "parquet": true}

// Order returns what the spec's bytes mean; the zero Spec without one.
func (r *PlanRequest) Order() (plan.Spec, error) {
	var s plan.Spec
	if r.Spec == "" {
		return s, nil
	}
	b, err := base64.StdEncoding.DecodeString(r.Spec)
	if err != nil {
		return s, fmt.Errorf("plan: spec is no base64: %w", covey.ErrInvalid)
	}
	return s, s.UnmarshalBinary(b)
}

// Lease is how long the plan is kept without a sign of life.
func (r *PlanRequest) Lease() time.Duration {
	if r.LeaseSeconds == 0 {
		return defaultPlanLease
	}
	return time.Duration(r.LeaseSeconds) * time.Second
}

// Validate reports the first fault of a request, as an error that wraps
// covey.ErrInvalid.
func (r *PlanRequest) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("plan: "+format+": %w", append(args, covey.ErrInvalid)...)
	}
	m := &r.Manifest
	switch {
	case r.Source == "":
		return bad("source must be given")
	case len(r.Job) > maxPlanName:
		return bad("job of %d bytes, more than %d", len(r.Job), maxPlanName)
	case len(r.Ranks) == 0 || len(r.Ranks) > MaxPlanRanks:
		return bad("%d ranks, not 1 to %d", len(r.Ranks), MaxPlanRanks)
	case len(r.Nodes) > MaxPlanNodes:
		return bad("%d nodes, more than %d", len(r.Nodes), MaxPlanNodes)
	case (r.Spec == "") == (r.Orders == nil):
		return bad("either spec or orders must be given")
	case r.Epochs < 0 || r.Epochs > MaxPlanEpochs:
		return bad("%d epochs, not 0 to %d", r.Epochs, MaxPlanEpochs)
	case r.Orders != nil && r.Epochs > 1:
		return bad("orders are of one epoch")
	case r.Orders != nil && len(r.Orders) != len(r.Ranks):
		return bad("%d orders for %d ranks", len(r.Orders), len(r.Ranks))
	case len(m.Suffixes) > 0 && len(m.Files) > 0:
		return bad("suffixes are for a listing, and files were given")
	case len(m.Counts) > 0 && len(m.Files) > 0 && len(m.Counts) != len(m.Files):
		return bad("%d counts for %d files", len(m.Counts), len(m.Files))
	case !planFormats[m.Format]:
		return bad("format %q, not tfrecord, webdataset or parquet", m.Format)
	case m.Format != "" && (m.Ranges != "" || len(m.Counts) > 0):
		return bad("format %s has the agent find the samples, and counts or ranges were given", m.Format)
	case m.Ranges != "" && len(m.Counts) > 0:
		return bad("ranges say how many samples a file has, and counts were given too")
	}
	if l := r.Lease(); l < minPlanLease || l > maxPlanLease {
		return bad("lease of %d seconds, not %.0f to %.0f", r.LeaseSeconds, minPlanLease.Seconds(), maxPlanLease.Seconds())
	}
	spec, err := r.Order()
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	for _, rank := range r.Ranks {
		if seen[rank] || r.Spec != "" && rank >= spec.World {
			return bad("rank %d twice, or not in a world of %d", rank, spec.World)
		}
		seen[rank] = true
	}
	if len(r.Nodes) > 0 && r.Spec != "" && uint32(len(r.Nodes)) != spec.World {
		return bad("%d nodes for a world of %d ranks", len(r.Nodes), spec.World)
	}
	return nil
}

// addPlans adds the calls of package Planner.
func (h *handler) addPlans(mux *http.ServeMux) {
	mux.Handle("/api/v1/plans", h.routeUpTo(maxPlanBody, verbs{http.MethodGet: h.plans, http.MethodPost: h.addPlan}))
	mux.Handle("/api/v1/plans/{id}", h.route(verbs{http.MethodGet: h.plan, http.MethodDelete: h.cancelPlan}))
	mux.Handle("/api/v1/plans/{id}/renew", h.route(verbs{http.MethodPost: h.renewPlan}))
}

func (h *handler) plans(*http.Request) (any, error) {
	all := list(h.agent.Plans())
	for i := range all {
		all[i].Ranks = list(all[i].Ranks)
	}
	return all, nil
}

func (h *handler) addPlan(r *http.Request) (any, error) {
	var req PlanRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return h.agent.AddPlan(r.Context(), req)
}

func (h *handler) plan(r *http.Request) (any, error) { return h.agent.Plan(r.PathValue("id")) }

func (h *handler) renewPlan(r *http.Request) (any, error) {
	var req PlanRenewal
	if r.Body != nil && r.ContentLength != 0 {
		if err := decode(r, &req); err != nil {
			return nil, err
		}
	}
	lease := time.Duration(req.LeaseSeconds) * time.Second
	if lease != 0 && (lease < minPlanLease || lease > maxPlanLease) {
		return nil, fmt.Errorf("plan: lease of %d seconds, not %.0f to %.0f: %w",
			req.LeaseSeconds, minPlanLease.Seconds(), maxPlanLease.Seconds(), covey.ErrInvalid)
	}
	return h.agent.RenewPlan(r.PathValue("id"), lease)
}

func (h *handler) cancelPlan(r *http.Request) (any, error) {
	return nil, h.agent.CancelPlan(r.PathValue("id"))
}
