package sim

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/covey-cache/covey/dht"
	"github.com/covey-cache/covey/testnet/scenario"
)

// strike is one thing that is done to some nodes at a time: a fault, or its end.
type strike struct {
	at    time.Duration
	kind  scenario.Kind
	nodes []int
	ends  bool // undoes the fault
	stays bool // nobody will
	// id tells faults that overlap apart.
	id     int
	factor float64
}

// String says it for the log.
func (s strike) String() string {
	verb := ""
	if s.ends {
		verb = "end of "
	}
	names := make([]string, len(s.nodes))
	for i, n := range s.nodes {
		names[i] = fmt.Sprint(n)
	}
	if len(names) > 12 {
		names = append(names[:12], "…")
	}
	text := verb + string(s.kind)
	if len(s.nodes) > 0 {
		text += fmt.Sprintf(" of %d: %s", len(s.nodes), strings.Join(names, " "))
	}
	return text
}

// schedule turns faults into strikes, in the order of their time. All that is
// chosen is chosen here, from the seed.
func schedule(c *scenario.Case, racks [][]int, rng *rand.Rand) []strike {
	faults := c.Faults
	if c.Chaos != nil {
		faults = append(slices.Clone(faults), draw(c.Chaos, rng)...)
	}
	var all []strike
	joiner := c.Nodes
	for i := range faults {
		f := &faults[i]
		pool := rng.Perm(c.Nodes)
		if f.Kind == scenario.Rack {
			pool = rng.Perm(len(racks))
		}
		for r := range f.Repeats() {
			var nodes []int
			switch f.Kind {
			case scenario.Outage:
			case scenario.Join:
				for range f.Nodes.Of(math.MaxInt32) {
					nodes = append(nodes, joiner)
					joiner++
				}
			case scenario.Rack:
				for _, k := range deal(&pool, f.Nodes.Of(len(racks)), len(racks), rng) {
					nodes = append(nodes, racks[k]...)
				}
			default:
				nodes = deal(&pool, f.Nodes.Of(c.Nodes), c.Nodes, rng)
			}
			at := f.At.D() + time.Duration(r)*f.Every.D()
			all = append(all, strikes(f, at, nodes, len(all)+1)...)
		}
	}
	slices.SortStableFunc(all, func(a, b strike) int { return cmp.Compare(a.at, b.at) })
	return all
}

// deal takes n of a pool, which is filled again when it is used up: repeated
// faults strike others first.
func deal(pool *[]int, n, of int, rng *rand.Rand) []int {
	var got []int
	for len(got) < min(n, of) {
		if len(*pool) == 0 {
			*pool = slices.DeleteFunc(rng.Perm(of), func(i int) bool { return slices.Contains(got, i) })
		}
		got = append(got, (*pool)[0])
		*pool = (*pool)[1:]
	}
	slices.Sort(got)
	return got
}

// strikes are a fault's beginning and end, or one of each for every node where
// they take turns.
func strikes(f *scenario.Fault, at time.Duration, nodes []int, id int) (all []strike) {
	groups := [][]int{nodes}
	if f.Over > 0 {
		groups = nil
		for _, n := range nodes {
			groups = append(groups, []int{n})
		}
	}
	for i, g := range groups {
		s := strike{at: at, kind: f.Kind, nodes: g, id: id, factor: f.Factor, stays: f.For == 0}
		if len(groups) > 1 {
			s.at += f.Over.D() * time.Duration(i) / time.Duration(len(groups)-1)
		}
		all = append(all, s)
		if f.For > 0 {
			s.at, s.ends = s.at+f.For.D(), true
			all = append(all, s)
		}
	}
	return all
}

// draw makes up faults of all kinds, in the measure in which clusters have them
// on their worst days.
func draw(c *scenario.Chaos, rng *rand.Rand) (all []scenario.Fault) {
	share := func(low, high float64) scenario.Amount {
		return scenario.Amount{Share: low + rng.Float64()*(high-low)}
	}
	for range c.Faults {
		f := scenario.Fault{
			At:  scenario.Duration(rng.Int64N(int64(c.Until))),
			For: scenario.Duration(float64(c.Longest) * (0.05 + 0.95*rng.Float64())),
		}
		switch rng.IntN(10) {
		case 0, 1:
			f.Kind, f.Nodes = scenario.Kill, share(0.05, 0.3)
		case 2:
			f.Kind, f.Nodes = scenario.Wipe, share(0.02, 0.1)
		case 3:
			f.Kind, f.Nodes = scenario.Partition, share(0.1, 0.5)
		case 4:
			f.Kind, f.Nodes = scenario.OneWay, share(0.02, 0.1)
		case 5:
			f.Kind, f.Nodes, f.Factor = scenario.Slow, share(0.05, 0.2), 0.01
		case 6:
			f.Kind, f.Nodes = scenario.Lie, share(0.02, 0.1)
		case 7:
			f.Kind, f.Nodes = scenario.Claim, share(0.02, 0.1)
		case 8:
			f.Kind = scenario.Outage
		case 9:
			f.Kind, f.Nodes = scenario.Rack, scenario.Amount{N: 1}
		}
		all = append(all, f)
	}
	return all
}

// strikeAll does it all, each at its time, until the run ends.
func (w *world) strikeAll(all []strike) {
	for _, s := range all {
		if !w.sleep(w.ctx, time.Until(w.began.Add(s.at)), nil) {
			return
		}
		w.log(event{Kind: "fault", Node: -1, Text: s.String()})
		w.struck = append(w.struck, Strike{At: time.Since(w.began).Seconds(), What: s.String(), Ends: s.ends, Kind: string(s.kind)})
		w.strike(s)
	}
}

func (w *world) strike(s strike) {
	switch s.kind {
	case scenario.Partition:
		w.cut(func(t *topology) {
			for _, n := range s.nodes {
				if !s.ends {
					t.side[n] = s.id
				} else if t.side[n] == s.id {
					delete(t.side, n)
				}
			}
		})
	case scenario.OneWay:
		w.cut(func(t *topology) {
			for _, n := range s.nodes {
				if t.deaf[n] = !s.ends; s.ends {
					delete(t.deaf, n)
				}
			}
		})
	case scenario.Outage:
		if s.ends {
			w.origin.refuses.Add(-1)
		} else {
			w.origin.refuses.Add(1)
		}
	default:
		for _, i := range s.nodes {
			w.nodes[i].suffer(s)
		}
	}
}

// suffer does to a node what concerns it alone.
func (n *node) suffer(s strike) {
	switch s.kind {
	case scenario.Kill, scenario.Wipe, scenario.Rack:
		switch {
		case !s.ends:
			n.kill(s.kind == scenario.Wipe)
			if s.stays {
				n.abandon()
			}
		case n.life.Load() == nil && !n.gone.Load():
			if n.store.blocks() > 0 {
				n.w.marks.hit(markWarmRestart)
			}
			n.start()
		}
	case scenario.Join:
		if n.w.pass.Load() != nil {
			n.w.marks.hit(markJoined)
		}
		n.gone.Store(false)
		n.start()
		n.catchUp()
	case scenario.Slow:
		speed := s.factor
		if s.ends {
			speed = 1
		}
		n.speed.Store(math.Float64bits(speed))
	case scenario.Lie:
		n.lies.Store(!s.ends)
	case scenario.Claim:
		n.claims.Store(!s.ends)
		n.claim(!s.ends)
	}
}

// claim announces every block as held, or takes that back.
func (n *node) claim(on bool) {
	l := n.life.Load()
	if l == nil {
		return
	}
	for i, e := range n.w.data.extents {
		h := dht.Have{Extent: e.ID}
		if on {
			h.Have = e.All()
			for slot := range e.Blocks {
				h.Digests = append(h.Digests, n.w.data.blocks[n.w.data.starts[i]+slot].digest)
			}
		} else {
			h.Gone = e.All() &^ n.store.Present(e)
		}
		l.dir.Announce(h)
	}
}

// racks lists the nodes of each rack that are there from the start.
func (w *world) racks() [][]int {
	racks := make([][]int, w.c.Racks)
	for _, n := range w.nodes[:w.c.Nodes] {
		racks[n.rack] = append(racks[n.rack], n.num)
	}
	return racks
}
