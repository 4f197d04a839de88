// Package gateway holds the doors to an agent that are not kernel mounts: the
// HTTP and JSON control API on the agent's socket, the metrics and health
// endpoints, and the client of that API which the command line uses.
//
// The JSON below is stable: fields are added, never renamed or removed.
package gateway

import (
	"context"
	"time"
)

// Agent is what the API serves; package peer implements it. All methods may be
// called concurrently.
type Agent interface {
	Planner

	Status() Status
	Peers() []Peer
	Mounts() []Mount
	// Mount mounts a source on a directory of the agent's host and returns when
	// the kernel answers from it.
	Mount(ctx context.Context, r MountRequest) (Mount, error)
	Unmount(ctx context.Context, dir string) error
	// Locate says where the blocks of a mounted path, or of a source URL's
	// object, are.
	Locate(ctx context.Context, path string) (Location, error)
	// Prefetch begins to bring everything below a mounted path or source URL
	// into the local cache, and returns the job, which goes on after ctx ends.
	Prefetch(ctx context.Context, r PrefetchRequest) (Job, error)
	// Job returns how far a job is; ErrNotFound when unknown. Finished jobs are
	// kept for an hour, at most 1,000 of them.
	Job(id string) (Job, error)
	CancelJob(id string) error
	// Stat says how much of a mounted path, or of a source URL, is cached here.
	// It lists the origin and leaves out versions that the origin has no more.
	Stat(ctx context.Context, path string) (Stat, error)
	// Du adds up what is cached here, at any version: below a path or source
	// URL, or by data set when the path is empty.
	Du(ctx context.Context, path string) (Du, error)
	// Pin keeps every file at or below a path from eviction and reserves room
	// for what is not cached yet. It pins all of them or, with an error, none;
	// covey.ErrFull when there is no room.
	Pin(ctx context.Context, path string) (Pinned, error)
	// Unpin ends the pins of all files at or below a path, at any version. Their
	// bytes stay until they are evicted.
	Unpin(ctx context.Context, path string) (Pinned, error)
	// Evict frees what is cached at or below a path, at any version, and tells
	// the mesh. Where anything is pinned it frees nothing: covey.ErrReadOnly.
	Evict(ctx context.Context, path string) (Evicted, error)
	// Verify begins to compare what is cached at or below a path, or everything
	// when it is empty, with its digests; blocks that differ are dropped. The job
	// goes on after ctx ends, and is "done" also when it found bad blocks.
	Verify(ctx context.Context, path string) (Job, error)
	// Tiers are the cache directories, the fastest first.
	Tiers() []Tier
	// ReviveTier brings a tier that failed back now, rather than at the next of the
	// attempts that go on by themselves. The error says what is still in the way.
	ReviveTier(ctx context.Context, dir string) error
	// Ready is nil once the mesh listens and every configured mount is mounted.
	Ready() error
}

// Status is the answer of /api/v1/status.
type Status struct {
	PeerID  string    `json:"peer_id"`
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Ready   bool      `json:"ready"`
	// NotReady is why the agent is not ready, one line, as /readyz says it. The
	// handler fills it in.
	NotReady  string   `json:"not_ready,omitempty"`
	Listen    []string `json:"listen"`
	HTTP      string   `json:"http,omitempty"`
	DataPlane string   `json:"data_plane"`
	// Standalone says that the agent has no cluster key and joins nobody.
	Standalone bool `json:"standalone"`
	Peers      int  `json:"peers"`
	// Fetched are the bytes that reads asked for, by where they came from.
	Fetched FetchedBytes `json:"fetched_bytes"`
	// OriginBytes and OriginRequests are what the origin was asked for.
	OriginBytes    int64            `json:"origin_bytes"`
	OriginRequests map[string]int64 `json:"origin_requests"`
	// OriginOverrides are reads of the origin that no home granted.
	OriginOverrides int64            `json:"origin_overrides"`
	CorruptBlocks   map[string]int64 `json:"corrupt_blocks"`
	Tiers           []Tier           `json:"tiers"`
	Mounts          []Mount          `json:"mounts"`
	// Staged are files written to mounts that are not at their origin.
	Staged []StagedFile `json:"staged"`
	// Plans are those of training jobs, oldest first.
	Plans []Plan `json:"plans"`
}

// FetchedBytes is covey_fetch_bytes_total.
type FetchedBytes struct {
	Local     int64 `json:"local"`
	Neighbour int64 `json:"neighbour"`
	Origin    int64 `json:"origin"`
}

// Mount is one mounted data set.
type Mount struct {
	Source         string `json:"source"`
	Dir            string `json:"dir"`
	Passthrough    bool   `json:"passthrough"`
	PassthroughWhy string `json:"passthrough_why,omitempty"`
	// Profile is auto until the first open, then large or small.
	Profile string `json:"profile"`
	// RW says that programs may write.
	RW bool `json:"rw"`
	// Opens since the mount, by how they were served.
	OpensPassthrough uint64 `json:"opens_passthrough"`
	OpensDaemon      uint64 `json:"opens_daemon"`
}

// Peer is one member of the mesh other than this agent.
type Peer struct {
	ID        string    `json:"id"`
	Host      string    `json:"host"`
	Zone      string    `json:"zone,omitempty"`
	Rack      string    `json:"rack,omitempty"`
	Addresses []string  `json:"addresses"`
	Connected bool      `json:"connected"`
	LastSeen  time.Time `json:"last_seen"`
	// RTT is the smoothed round trip in microseconds, 0 when unknown.
	RTTMicros     int64 `json:"rtt_us"`
	SentBytes     int64 `json:"sent_bytes"`
	ReceivedBytes int64 `json:"received_bytes"`
	Errors        int64 `json:"errors"`
	// Distance is "host", "rack", "zone" or "far".
	Distance string `json:"distance,omitempty"`
	// SentRate and ReceivedRate are averages of the last seconds, in bytes a second.
	SentRate     int64 `json:"sent_bytes_per_second"`
	ReceivedRate int64 `json:"received_bytes_per_second"`
	// UnderWay are the blocks now asked of the peer, Queued their bytes, and Window
	// is how many it may be asked for at once.
	UnderWay int   `json:"blocks_under_way"`
	Queued   int64 `json:"queued_bytes"`
	Window   int   `json:"window_blocks"`
	// FirstByte is how long the peer takes to begin an answer, on average, in
	// microseconds; 0 when unknown.
	FirstByteMicros int64 `json:"first_byte_us"`
	// BadBlocks are the blocks of wrong bytes that count against the peer; Banned is
	// until when it is not asked for any, absent when it may be.
	BadBlocks int       `json:"bad_blocks,omitempty"`
	Banned    time.Time `json:"banned_until,omitzero"`
}

// MountRequest is the body of POST /api/v1/mounts.
type MountRequest struct {
	Source string `json:"source"`
	Dir    string `json:"dir"`
	// Profile is auto, large or small; empty means the agent's.
	Profile string `json:"profile,omitempty"`
	// Options are the mount's own.
	Options MountOptions `json:"options,omitzero"`
}

// PrefetchRequest is the body of POST /api/v1/prefetch.
type PrefetchRequest struct {
	// Path is an absolute path below a mount, or a source URL.
	Path string `json:"path"`
	// Replicas is how many copies the mesh should hold; 0 means this agent's.
	Replicas int `json:"replicas,omitempty"`
	// Rate is the most bytes per second; 0 means unlimited.
	Rate int64 `json:"rate_bytes,omitempty"`
	// Manifest is an absolute path on the agent's host, where a signed list of the
	// digests of everything is written in the end; none when empty.
	Manifest string `json:"manifest,omitempty"`
}

// PathRequest is the body of POST /api/v1/pin, unpin, evict and verify.
type PathRequest struct {
	// Path is an absolute path below a mount, or a source URL. Verify takes an
	// empty one for everything that is cached.
	Path string `json:"path"`
}

// Stat is how much of a file, or of all files below a directory, is cached here.
type Stat struct {
	Path string `json:"path"`
	Kind string `json:"kind"` // "file" or "directory"
	// Key and Version are a file's at its origin.
	Key     string `json:"key,omitempty"`
	Version string `json:"version,omitempty"`
	Size    int64  `json:"size"`
	Files   int64  `json:"files"`
	Blocks  int64  `json:"blocks"`
	// FilesCached are those with every block here.
	FilesCached  int64 `json:"files_cached"`
	BlocksCached int64 `json:"blocks_cached"`
	// Used is what the cached blocks take of the disk.
	Used        int64 `json:"used_bytes"`
	FilesPinned int64 `json:"files_pinned"`
	// BlocksReplica are those of the cached blocks that came from a neighbour; the
	// others are primaries, read from the origin.
	BlocksReplica int64 `json:"blocks_replica"`
	// Tiers is the part of each cache directory that has any, the fastest first.
	Tiers []TierPart `json:"tiers"`
}

// TierPart is what one cache directory has of some files.
type TierPart struct {
	Dir           string `json:"dir"`
	Files         int64  `json:"files"`
	FilesCached   int64  `json:"files_cached"`
	Blocks        int64  `json:"blocks"`
	BlocksReplica int64  `json:"blocks_replica"`
	Used          int64  `json:"used_bytes"`
	FilesPinned   int64  `json:"files_pinned"`
}

// Add adds what the same directory has of other files.
func (p *TierPart) Add(q TierPart) {
	p.Files += q.Files
	p.FilesCached += q.FilesCached
	p.Blocks += q.Blocks
	p.BlocksReplica += q.BlocksReplica
	p.Used += q.Used
	p.FilesPinned += q.FilesPinned
}

// Du is what is cached here.
type Du struct {
	// Sources are in the order of their names; one, when a path was asked for.
	Sources []DuSource `json:"sources"`
	Total   DuSource   `json:"total"`
}

// DuSource is what a path, a mounted data set, or an origin outside all mounted
// data sets, takes.
type DuSource struct {
	Source string `json:"source"`
	// Files have any block here; FilesCached have all.
	Files       int64 `json:"files"`
	FilesCached int64 `json:"files_cached"`
	Blocks      int64 `json:"blocks"`
	Used        int64 `json:"used_bytes"`
	FilesPinned int64 `json:"files_pinned"`
	// PinnedUsed is the part of Used that is pinned, and Reserved the room kept
	// for pinned blocks that are not here yet.
	PinnedUsed int64 `json:"pinned_used_bytes"`
	Reserved   int64 `json:"reserved_bytes"`
	// BlocksReplica are those of the blocks that came from a neighbour; the others
	// are primaries, read from the origin.
	BlocksReplica int64 `json:"blocks_replica"`
	// Tiers is the part of each cache directory, the fastest first.
	Tiers []TierPart `json:"tiers"`
}

// Pinned is what Pin or Unpin did.
type Pinned struct {
	Path string `json:"path"`
	// Files are those at or below the path that Pin was to pin, or Unpin found
	// pinned; Changed are those of them that it changed.
	Files   int64 `json:"files"`
	Changed int64 `json:"changed"`
	Bytes   int64 `json:"bytes"`
	// Missing is the room that Pin's files still have reserved, for blocks that
	// are not here yet.
	Missing int64 `json:"missing_bytes"`
}

// Evicted is what Evict freed.
type Evicted struct {
	Path  string `json:"path"`
	Files int64  `json:"files"`
	Freed int64  `json:"freed_bytes"`
}

// Job is a prefetch or a verification, under way or finished.
type Job struct {
	ID string `json:"id"`
	// Kind is "prefetch" or "verify".
	Kind  string `json:"kind,omitempty"`
	Path  string `json:"path"`
	State string `json:"state"` // "running", "done", "failed", "cancelled"
	Error string `json:"error,omitempty"`
	// Files and Bytes are what is to be done, still growing while Listing.
	Listing    bool  `json:"listing"`
	Files      int64 `json:"files"`
	Bytes      int64 `json:"bytes"`
	FilesDone  int64 `json:"files_done"`
	BytesDone  int64 `json:"bytes_done"`
	FilesError int64 `json:"files_failed"`
	// BadBlocks are what a verification dropped: blocks whose bytes had changed,
	// or that the disk did not give back.
	BadBlocks int64     `json:"bad_blocks,omitempty"`
	Started   time.Time `json:"started"`
	Ended     time.Time `json:"ended,omitzero"`
}

// Location says where one object's blocks are.
type Location struct {
	Path    string          `json:"path"`
	Key     string          `json:"key"`
	Version string          `json:"version"`
	Size    int64           `json:"size"`
	Blocks  []BlockLocation `json:"blocks"`
}

// BlockLocation says where one block is.
type BlockLocation struct {
	Index   int      `json:"index"`
	CID     string   `json:"cid"`
	Extent  string   `json:"extent"`
	Homes   []string `json:"homes"`
	Holders []string `json:"holders"` // peer IDs, this agent's own included
	Digest  string   `json:"digest,omitempty"`
	// Tier is the cache directory of this agent that has it, if one does, and
	// Replica says that it came from a neighbour.
	Tier    string `json:"tier,omitempty"`
	Replica bool   `json:"replica,omitempty"`
}
