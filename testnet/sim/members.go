package sim

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
)

// How a node sees the others is a model of package peer's member table, and the
// one room that is: records of joins reach everybody within a flood, a member
// that was killed stays one until its lease ends, and whom a node could not reach
// it alone leaves out, until a probe finds the peer again.
const (
	floodEvery = 100 * time.Millisecond
	lease      = 60 * time.Second
	probeSoon  = 250 * time.Millisecond // after a stall
	probeFirst = 5 * time.Second        // after a refusal, and doubled from then on
	probeLast  = time.Minute
)

// view is the member table of one node: dht.Members.
type view struct {
	self *node
	now  atomic.Pointer[snapshot]

	// mu guards what follows; it is a leaf lock but for world.base.
	mu    sync.Mutex
	epoch uint64
	down  map[covey.PeerID]*absence
	// hurried is when the probes of all were last brought forward.
	hurried time.Time
	// any says that down has some, so that whether a peer is down costs no lock
	// when none is.
	any atomic.Bool
}

type snapshot struct {
	ids   []covey.PeerID
	epoch uint64
}

// absence is what a node knows of a peer that it gave up.
type absence struct {
	failures int
	probe    time.Time
}

// Self is the node.
func (v *view) Self() covey.PeerID { return v.self.id }

// Live returns the members believed reachable.
func (v *view) Live() ([]covey.PeerID, uint64) {
	s := v.now.Load()
	return s.ids, s.epoch
}

// isDown reports whether the peer was given up and not found again.
func (v *view) isDown(id covey.PeerID) bool {
	if !v.any.Load() {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.down[id] != nil
}

// failed gives a peer up.
func (v *view) failed(id covey.PeerID, stalled bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.down == nil {
		v.down = map[covey.PeerID]*absence{}
	}
	if v.down[id] != nil {
		return
	}
	a := &absence{failures: 1, probe: time.Now().Add(probeFirst)}
	if stalled {
		a.probe = time.Now().Add(probeSoon)
	}
	v.down[id] = a
	v.rebuild()
}

// found takes a peer in again.
func (v *view) found(ids ...covey.PeerID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := len(v.down)
	for _, id := range ids {
		delete(v.down, id)
	}
	if len(v.down) == n {
		return
	}
	v.rebuild()
	// Who finds one again looks at the others soon, as package peer does.
	if now := time.Now(); now.Sub(v.hurried) >= probeFirst {
		v.hurried = now
		for _, a := range v.down {
			if soon := now.Add(rand.N(time.Second)); soon.Before(a.probe) {
				a.probe = soon
			}
		}
	}
}

// refresh takes in a change of who is a member at all.
func (v *view) refresh() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rebuild()
}

// restart forgets whom the last process had given up.
func (v *view) restart() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down = nil
	v.rebuild()
}

// rebuild makes the snapshot; v.mu is held. Nodes that miss nobody share one.
func (v *view) rebuild() {
	v.epoch++
	v.any.Store(len(v.down) > 0)
	base := *v.self.w.base.Load()
	if len(v.down) > 0 {
		all := base
		base = make([]covey.PeerID, 0, len(all))
		for _, id := range all {
			if v.down[id] == nil {
				base = append(base, id)
			}
		}
	}
	v.now.Store(&snapshot{base, v.epoch})
}

// due returns the peers whose probe is due, and sets the next one.
func (v *view) due(now time.Time) (ids []covey.PeerID) {
	if !v.any.Load() {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, a := range v.down {
		if !now.Before(a.probe) {
			ids = append(ids, id)
			a.probe = now.Add(min(probeFirst<<min(a.failures-1, 8), probeLast))
			a.failures++
		}
	}
	slices.Sort(ids) // what follows from them should not depend on the map
	return ids
}

// members is the base of all views: who is a member at all.
type members struct {
	mu      sync.Mutex
	is      map[covey.PeerID]bool
	changed bool
	back    []covey.PeerID // joined or came back since the last flood
	leases  map[covey.PeerID]time.Time
}

// joined makes a node a member; the others hear of it with the next flood.
func (w *world) joined(id covey.PeerID) {
	w.members.mu.Lock()
	defer w.members.mu.Unlock()
	w.members.changed = w.members.changed || !w.members.is[id]
	w.members.is[id] = true
	delete(w.members.leases, id)
	w.members.back = append(w.members.back, id)
}

// left begins the end of a killed node's lease.
func (w *world) left(id covey.PeerID) {
	w.members.mu.Lock()
	defer w.members.mu.Unlock()
	w.members.leases[id] = time.Now().Add(lease)
}

// rebase makes the list that all views begin with.
func (w *world) rebase() {
	ids := make([]covey.PeerID, 0, len(w.members.is))
	for id := range w.members.is {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	w.base.Store(&ids)
}

// spread lets the news of one flood period reach the nodes and ends leases.
func (w *world) spread(now time.Time) {
	m := &w.members
	m.mu.Lock()
	for id, end := range m.leases {
		if !now.Before(end) {
			delete(m.leases, id)
			delete(m.is, id)
			m.changed = true
			w.marks.hit(markExpelled)
		}
	}
	changed, back := m.changed, m.back
	m.changed, m.back = false, nil
	if changed {
		w.rebase()
	}
	m.mu.Unlock()
	topo := w.topo.Load()
	for _, n := range w.nodes {
		if n.life.Load() == nil {
			continue
		}
		if changed {
			n.view.refresh()
		}
		var heard []covey.PeerID
		for _, id := range back {
			if topo.reaches(w.byID[id].num, n.num) {
				heard = append(heard, id)
			}
		}
		if len(heard) > 0 {
			n.view.found(heard...)
		}
		w.probe(n, now, topo)
	}
}

// probe looks at the peers that a node has given up.
func (w *world) probe(n *node, now time.Time, topo *topology) {
	for _, id := range n.view.due(now) {
		to := w.byID[id]
		n.sent.Add(1)
		if to.life.Load() != nil && topo.reaches(n.num, to.num) && topo.reaches(to.num, n.num) {
			w.marks.hit(markProbed)
			n.view.found(id)
			to.view.found(n.id)
		}
	}
}
