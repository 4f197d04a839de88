package peer

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/gateway"
)

// Status returns what the agent says of itself.
func (a *Agent) Status() gateway.Status {
	totals := a.fetcher.Totals()
	return gateway.Status{
		PeerID: peerName(a.network.Self()), Version: a.opts.Version, PID: os.Getpid(), Started: a.started,
		Ready: a.Ready() == nil, Listen: a.network.ListenAddrs(), HTTP: a.http, DataPlane: cmp.Or(a.opts.DataPlane, "tls"),
		Standalone: a.opts.Standalone(), Peers: len(a.liveOthers()),
		Fetched:     gateway.FetchedBytes{Local: totals.Local, Neighbour: totals.Neighbour, Origin: totals.Origin},
		OriginBytes: a.originMetrics.Bytes(), OriginRequests: a.originMetrics.Requests(),
		OriginOverrides: totals.Overrides, CorruptBlocks: a.corrupt.snapshot(),
		Tiers: a.Tiers(), Mounts: a.Mounts(), Staged: a.staged(), Plans: a.Plans(),
	}
}

// Tiers returns the cache directories, the fastest first.
func (a *Agent) Tiers() []gateway.Tier {
	list := []gateway.Tier{}
	for _, u := range a.store.Tiers() {
		list = append(list, gateway.Tier{
			Dir: u.Dir, Budget: u.Budget, Used: u.Used, Reserved: u.Reserved, Pinned: u.Pinned,
			Objects: u.Objects, Blocks: u.Blocks, ReadOnly: u.ReadOnly, State: string(u.State), Why: u.Why,
		})
	}
	return list
}

// ReviveTier brings a tier back whose disk failed and was mended.
func (a *Agent) ReviveTier(_ context.Context, dir string) error { return a.store.Revive(dir) }

func (a *Agent) liveOthers() []covey.PeerID {
	live, _ := a.network.Live()
	return slices.DeleteFunc(slices.Clone(live), func(id covey.PeerID) bool { return id == a.network.Self() })
}

// Peers returns the other members.
func (a *Agent) Peers() []gateway.Peer {
	list := []gateway.Peer{}
	for _, p := range a.network.Peers() {
		if p.Self {
			continue
		}
		seen := a.fetcher.Neighbour(p.ID)
		list = append(list, gateway.Peer{
			ID: p.Name, Host: p.Host, Zone: p.Zone, Rack: p.Rack, Addresses: p.Addrs,
			Connected: p.Connected, LastSeen: p.LastSeen, RTTMicros: p.RTT.Microseconds(),
			SentBytes: int64(p.SentBytes), ReceivedBytes: int64(p.ReceivedBytes), Errors: int64(p.Errors),
			Distance: seen.Distance.String(), SentRate: int64(p.SentRate), ReceivedRate: int64(p.ReceivedRate),
			UnderWay: seen.UnderWay, Queued: seen.Queued, Window: seen.Window,
			FirstByteMicros: seen.FirstByte.Microseconds(), BadBlocks: seen.Lies, Banned: seen.Banned,
		})
	}
	sortBy(list, func(p gateway.Peer) string { return p.ID })
	return list
}

// Locate says where the blocks of a file are.
func (a *Agent) Locate(ctx context.Context, path string) (gateway.Location, error) {
	ds, rel, release, err := a.resolveFile(ctx, path)
	if err != nil {
		return gateway.Location{}, err
	}
	defer release()
	entry, err := ds.Lookup(ctx, rel)
	if err != nil {
		return gateway.Location{}, fmt.Errorf("locate %s: %w", path, err)
	}
	if entry.Kind != dataset.File {
		return gateway.Location{}, fmt.Errorf("locate %s: not a file: %w", path, covey.ErrInvalid)
	}
	object := ds.Object(rel, entry)
	loc := gateway.Location{Path: path, Key: object.Key, Version: object.Version, Size: object.Size, Blocks: []gateway.BlockLocation{}}
	for i := range object.Blocks() {
		extent, slot, err := ds.Extent(ctx, rel, entry, i)
		if err != nil {
			return gateway.Location{}, fmt.Errorf("locate %s: %w", path, err)
		}
		loc.Blocks = append(loc.Blocks, a.locateBlock(ctx, object.Block(i), extent, slot))
	}
	return loc, nil
}

// resolveFile is resolve for a path that must name a file: a source URL is
// split at its last slash.
func (a *Agent) resolveFile(ctx context.Context, path string) (*dataset.Dataset, string, func(), error) {
	ds, rel, release, err := a.resolve(ctx, path)
	if err != nil || rel != "" {
		return ds, rel, release, err
	}
	release()
	return nil, "", nil, fmt.Errorf("locate %s: not a file below a mount of this agent; `covey mounts` lists them: %w", path, covey.ErrNotFound)
}

func (a *Agent) locateBlock(ctx context.Context, l covey.Locator, e *covey.Extent, slot int) gateway.BlockLocation {
	b := gateway.BlockLocation{
		Index: l.Index, CID: l.ID().String(), Extent: e.ID.String(),
		Homes: peerNames(a.directory.Homes(e.ID)), Holders: []string{},
	}
	// A block that no home could be asked about is shown with what is known
	// here.
	if known, err := a.directory.Lookup(ctx, e.ID, slot); err == nil {
		b.Holders = peerNames(known.Holders)
		if !known.Digest.IsZero() {
			b.Digest = known.Digest.String()
		}
	}
	b.Tier, b.Replica, _ = a.store.Where(l)
	self := peerName(a.network.Self())
	if a.store.Present(e).Has(slot) && !slices.Contains(b.Holders, self) {
		b.Holders = append(b.Holders, self)
	}
	return b
}

// peerName is a peer ID as people and libp2p's tools write it.
func peerName(id covey.PeerID) string { return corepeer.ID(id).String() }

func peerNames(ids []covey.PeerID) []string {
	list := make([]string, 0, len(ids))
	for _, id := range ids {
		list = append(list, peerName(id))
	}
	return list
}

// counterValue reads a counter back, for the JSON status that shows the same
// figures as the metrics.
func counterValue(c prometheus.Counter) int64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return 0
	}
	return int64(m.GetCounter().GetValue())
}

func sortBy[T any](list []T, key func(T) string) {
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}

var _ gateway.Agent = (*Agent)(nil)
