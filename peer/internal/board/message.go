// Package board is how the agents of one training job find each other: each tells
// two members what it reads, and hears from them who else reads the same.
package board

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/plan"
)

// The bounds of a notice.
const (
	// MaxJobs and MaxRanks bound what one node says of itself: as many jobs as an
	// agent holds plans, and more ranks than a host has accelerators.
	MaxJobs  = 64
	MaxRanks = 1024
	// MaxNodes bounds an answer: at some 100 bytes each, 400 KiB of the 1 MiB that
	// a message may have.
	MaxNodes = 4096
	// MaxLife is the longest that a notice is believed. It is told anew every
	// few seconds.
	MaxLife = time.Minute

	version = 1
	maxPeer = 64
)

// Notice is what one node says of its reading of one manifest.
type Notice struct {
	Manifest [32]byte
	// Capacity is how many bytes its cache may hold.
	Capacity int64
	// Life is how long the notice holds without a new one; 0 withdraws it.
	Life time.Duration
	Jobs []Job
}

// Job is one job with ranks on the node.
type Job struct {
	Spec   plan.Spec
	Epochs uint32
	// Position is the lowest of its ranks', in samples taken.
	Position uint64
	// Ranks are in ascending order.
	Ranks []uint32
}

// Node is a notice and who said it.
type Node struct {
	Peer     covey.PeerID
	Capacity int64
	Jobs     []Job
}

// AppendNotice appends a notice: version (1), manifest (32), capacity, life in
// ms, then the jobs. Numbers without a size are unsigned LEB128. Jobs are their
// number, and for each the 40 bytes of its spec, epochs, position, the number of
// ranks, and each rank less the one before (the first as it is).
func AppendNotice(b []byte, n *Notice) ([]byte, error) {
	b = append(b, version)
	b = append(b, n.Manifest[:]...)
	b = binary.AppendUvarint(b, uint64(n.Capacity))
	b = binary.AppendUvarint(b, uint64(n.Life.Milliseconds()))
	return appendJobs(b, n.Jobs)
}

func appendJobs(b []byte, jobs []Job) ([]byte, error) {
	var err error
	b = binary.AppendUvarint(b, uint64(len(jobs)))
	for _, j := range jobs {
		if b, err = j.Spec.AppendBinary(b); err != nil {
			return nil, err
		}
		b = binary.AppendUvarint(b, uint64(j.Epochs))
		b = binary.AppendUvarint(b, j.Position)
		b = binary.AppendUvarint(b, uint64(len(j.Ranks)))
		last := uint32(0)
		for _, r := range j.Ranks {
			b = binary.AppendUvarint(b, uint64(r-last))
			last = r
		}
	}
	return b, nil
}

// AppendNodes appends an answer: version (1), the number of nodes, and for each
// the length of its peer ID, the peer ID, capacity and jobs.
func AppendNodes(b []byte, nodes []Node) ([]byte, error) {
	var err error
	b = append(b, version)
	b = binary.AppendUvarint(b, uint64(len(nodes)))
	for _, n := range nodes {
		b = binary.AppendUvarint(b, uint64(len(n.Peer)))
		b = append(b, n.Peer...)
		b = binary.AppendUvarint(b, uint64(n.Capacity))
		if b, err = appendJobs(b, n.Jobs); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// reader takes a message apart. After the first fault everything is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

// number reads a number of at most the given size.
func (r *reader) number(most uint64) uint64 {
	if r.bad {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) version() {
	if v := r.take(1); v == nil || v[0] != version {
		r.bad = true
	}
}

func (r *reader) jobs() []Job {
	var jobs []Job
	for range r.number(MaxJobs) {
		var j Job
		if b := r.take(plan.SpecSize); b == nil || j.Spec.UnmarshalBinary(b) != nil {
			r.bad = true
			return nil
		}
		j.Epochs = uint32(r.number(1 << 30))
		j.Position = r.number(1 << 62)
		last := uint64(0)
		for i := range r.number(MaxRanks) {
			d := r.number(1 << 24)
			if last += d; last >= uint64(j.Spec.World) || d == 0 && i > 0 {
				r.bad = true
			}
			if r.bad {
				return nil
			}
			j.Ranks = append(j.Ranks, uint32(last))
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// end returns an error unless the message was read to its end without a fault.
func (r *reader) end(what string) error {
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("%s that is malformed: %w", what, covey.ErrInvalid)
	}
	return nil
}

// ParseNotice reads what AppendNotice wrote.
func ParseNotice(b []byte) (*Notice, error) {
	r := reader{b: b}
	n := &Notice{}
	r.version()
	copy(n.Manifest[:], r.take(32))
	n.Capacity = int64(r.number(1 << 62))
	n.Life = time.Duration(r.number(uint64(MaxLife.Milliseconds()))) * time.Millisecond
	n.Jobs = r.jobs()
	return n, r.end("plan notice")
}

// ParseNodes reads what AppendNodes wrote.
func ParseNodes(b []byte) ([]Node, error) {
	r := reader{b: b}
	r.version()
	var nodes []Node
	for range r.number(MaxNodes) {
		n := Node{Peer: covey.PeerID(r.take(r.number(maxPeer)))}
		n.Capacity = int64(r.number(1 << 62))
		n.Jobs = r.jobs()
		if r.bad {
			break
		}
		nodes = append(nodes, n)
	}
	return nodes, r.end("list of plan notices")
}

// Sort puts ranks in the order that a Job has them in.
func Sort(ranks []uint32) []uint32 {
	ranks = slices.Clone(ranks)
	slices.Sort(ranks)
	return ranks
}
