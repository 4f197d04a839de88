package peer

import (
	"context"
	"encoding/hex"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/fetch/ahead"
	"github.com/covey-cache/covey/fetch/plan"
	"github.com/covey-cache/covey/peer/internal/board"
)

const (
	// noticeBoards is how many members are told of a manifest's readers: one may
	// be lost, and another is told within noticeEvery.
	noticeBoards = 2
	// noticeSoon and noticeEvery are how often they are told: soon while a plan is
	// young and not all its ranks are known.
	noticeSoon  = 200 * time.Millisecond
	noticeEvery = 2 * time.Second
	noticeYoung = 20 * time.Second
	// noticeLife outlives a few that are lost.
	noticeLife = 15 * time.Second
	// noticeTimeout bounds one telling.
	noticeTimeout = 2 * time.Second
	// maxForeign and maxForeignBytes bound the orders of other nodes' jobs that
	// this node walks for its share.
	maxForeign      = 64
	maxForeignBytes = 512 << 20
)

// tellPlans tells the mesh what this node reads, and the reader who else does,
// until ctx ends.
func (a *Agent) tellPlans(ctx context.Context) error {
	told := map[[32]byte]time.Time{}
	for {
		next := noticeEvery
		known := map[[32]byte]bool{}
		for digest, plans := range a.plans.byManifest() {
			known[digest] = true
			young := time.Since(slices.MinFunc(plans, func(x, y *heldPlan) int { return -x.posted.Compare(y.posted) }).posted) < noticeYoung
			if !young && time.Since(told[digest]) < noticeEvery {
				continue
			}
			told[digest] = time.Now()
			if covered := a.tellManifest(ctx, digest, plans); !covered && young {
				next = noticeSoon
			}
		}
		maps.DeleteFunc(told, func(d [32]byte, _ time.Time) bool { return !known[d] })
		select {
		case <-ctx.Done():
			return nil
		case <-a.plans.fresh:
		case <-time.After(next):
		}
	}
}

// byManifest are the plans that other nodes should know of.
func (t *planTable) byManifest() map[[32]byte][]*heldPlan {
	all := map[[32]byte][]*heldPlan{}
	for _, p := range t.list() {
		if p.order.World() == 0 {
			continue // its order is known to nobody else
		}
		p.mu.Lock()
		if p.layout != nil {
			d := p.layout.Digest()
			all[d] = append(all[d], p)
		}
		p.mu.Unlock()
	}
	return all
}

// tellManifest tells of one manifest and takes in the answers. It reports whether
// the nodes known have all ranks of this node's jobs.
func (a *Agent) tellManifest(ctx context.Context, digest [32]byte, plans []*heldPlan) (covered bool) {
	notice := &board.Notice{Manifest: digest, Capacity: a.store.Usage().Budget, Life: noticeLife}
	for _, p := range plans {
		notice.Jobs = append(notice.Jobs, p.notice())
	}
	nodes := a.askBoards(ctx, notice)
	self := a.network.Self()
	nodes[self] = board.Node{Peer: self, Capacity: notice.Capacity, Jobs: notice.Jobs}
	m := ahead.Mesh{Covered: coversAll(nodes, notice.Jobs), Jobs: foreignJobs(nodes, notice.Jobs)}
	for _, n := range nodes {
		m.Nodes = append(m.Nodes, ahead.Node{ID: n.Peer, Capacity: n.Capacity})
	}
	m.Nodes = a.addMapped(m.Nodes, plans)
	a.ahead.SetMesh(digest, m)
	return m.Covered
}

// notice is what other nodes hear of a plan.
func (p *heldPlan) notice() board.Job {
	p.mu.Lock()
	defer p.mu.Unlock()
	return board.Job{
		Spec: p.order.Spec(), Epochs: uint32(p.epochs), Position: slices.Min(p.positions), Ranks: board.Sort(p.ranks),
	}
}

// askBoards tells the members that keep a manifest's board, which the same hash
// names that names the homes of extents.
func (a *Agent) askBoards(ctx context.Context, notice *board.Notice) map[covey.PeerID]board.Node {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	homes := a.directory.Homes(covey.ExtentID(notice.Manifest))
	answers := make([][]board.Node, min(noticeBoards, len(homes)))
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			var err error
			if answers[i], err = a.network.notify(ctx, homes[i], notice); err != nil {
				a.log.Debug("a member was not told of a plan", "peer", peerName(homes[i]), "error", err)
			}
		})
	}
	all.Wait()
	nodes := map[covey.PeerID]board.Node{}
	for _, list := range answers {
		for _, n := range list {
			nodes[n.Peer] = n
		}
	}
	return nodes
}

// addMapped adds the members that the jobs have named as the nodes of their ranks
// and that have not told of themselves yet.
func (a *Agent) addMapped(nodes []ahead.Node, plans []*heldPlan) []ahead.Node {
	named := map[string]bool{}
	for _, p := range plans {
		for _, n := range p.nodes {
			named[n] = true
		}
	}
	if len(named) == 0 {
		return nodes
	}
	for _, m := range a.network.Peers() {
		known := slices.ContainsFunc(nodes, func(n ahead.Node) bool { return n.ID == m.ID })
		if !known && m.Live && (named[m.Name] || named[m.Host]) {
			nodes = append(nodes, ahead.Node{ID: m.ID, Capacity: m.Capacity})
		}
	}
	return nodes
}

// sameJob is what of a spec does not change from epoch to epoch.
func sameJob(s plan.Spec) plan.Spec {
	s.Epoch, s.Base, s.RankMap = 0, 0, 0
	return s
}

// coversAll reports whether the nodes have every rank of the jobs.
func coversAll(nodes map[covey.PeerID]board.Node, jobs []board.Job) bool {
	ranks := map[plan.Spec]map[uint32]bool{}
	for _, n := range nodes {
		for _, j := range n.Jobs {
			s := sameJob(j.Spec)
			if ranks[s] == nil {
				ranks[s] = map[uint32]bool{}
			}
			for _, r := range j.Ranks {
				ranks[s][r] = true
			}
		}
	}
	for _, j := range jobs {
		if len(ranks[sameJob(j.Spec)]) < int(j.Spec.World) {
			return false
		}
	}
	return true
}

// foreignJobs are those of other nodes that are none of this one's.
func foreignJobs(nodes map[covey.PeerID]board.Node, own []board.Job) []ahead.MeshJob {
	mine := map[plan.Spec]bool{}
	for _, j := range own {
		mine[sameJob(j.Spec)] = true
	}
	found := map[plan.Spec]board.Job{}
	for _, n := range nodes {
		for _, j := range n.Jobs {
			first, known := found[j.Spec]
			if !mine[sameJob(j.Spec)] && (!known || j.Position < first.Position) {
				found[j.Spec] = j
			}
		}
	}
	var jobs []ahead.MeshJob
	room := int64(maxForeignBytes)
	for spec, j := range found {
		room -= 2 * spec.OrderBytes()
		b, err := spec.MarshalBinary()
		if len(jobs) == maxForeign || room < 0 || err != nil {
			break
		}
		order, err := ahead.NewOrder(spec, int(j.Epochs))
		if err != nil {
			continue
		}
		jobs = append(jobs, ahead.MeshJob{ID: hex.EncodeToString(b), Order: order, Position: j.Position})
	}
	return jobs
}
