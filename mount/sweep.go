package mount

import (
	"context"
	"iter"
	"os"
	"strconv"
	"strings"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
)

// A reader of pushed files is silent, so how far it got must be seen by what is
// left out: one file in probeEvery is not pushed. Each read of such a probe says
// that the files around it are being read, and lets the sweep go on by
// probeGrant; a sweep whose probes nobody reads stops. The probes cost a reader
// one message in 32 files.
const (
	probeEvery = 32
	probeGrant = 4 * probeEvery
	// firstGrant is what a directory gets on suspicion, when its reader seems to
	// go through it: two probes.
	firstGrant = 2 * probeEvery
	// maxGrant bounds how far a sweep runs ahead: 200 ms of the fastest push, and
	// about 450 MB of the files this is for.
	maxGrant = 4096
	// suspicious is how many reads in a directory, in no order, make a sweep.
	suspicious = 16
	// inOrder is how many reads in a row must be in the listing's order to count
	// as a walk of it: by chance, one in 40,320.
	inOrder = 8
	// maxLead is how many files in front of a reader in order are left to it, as
	// long as it reads them faster than they are pushed.
	maxLead = 63
	// maxLost is how many pushed files may be read from the daemon after all
	// before the sweep takes it for lack of memory.
	maxLost = 8
	// maxSweeps bounds the directories that are swept or watched. A random epoch
	// over more of them begins anew in those that were dropped.
	maxSweeps = 1024
)

// sweep is the push of one directory in the order of its listing. The pusher's
// lock guards it, but for the calls of next and stop, which are the pusher's
// goroutine's.
type sweep struct {
	dir    *node
	reads  int    // since the sweep began, or began to be suspected
	last   string // name read last
	rising int    // reads in a row, each behind the one before
	lost   int    // pushed files that the kernel dropped before they were read
	credit int    // files that may still be pushed
	since  int    // files pushed since the last probe
	behind string // files up to this name are left out
	at     string // name the sweep has come to
	lead   int    // files left out in front of a reader that is faster
	skip   int    // of those, still to be left out
	queued bool   // the goroutine has something to do here
	begun  bool

	next func() (dataset.Entry, error, bool)
	stop func()
}

// missed hears of the first read of a file that the kernel did not have, and
// decides how the directory's sweep goes on. It is called by requests, so it
// only takes notes.
func (p *pusher) missed(h *handle, m *Metrics) {
	n := h.node
	if p.budget <= 0 || n.size > maxPushed {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sweepOf(n.parent)
	was := n.ahead
	p.takeOff(n, wasRead)
	if s == nil {
		return
	}
	s.note(n.name)
	switch was {
	case probed:
		s.lost = 0
		s.credit = min(max(2*s.credit, s.credit+probeGrant), maxGrant)
	case pushed:
		// The kernel needed the memory for something else, before this was read.
		// Once may be a read that crossed its push.
		p.missedPushed.Add(1)
		if m != nil {
			m.pushedLost.Inc()
		}
		if s.lost++; s.lost == maxLost {
			s.credit, s.reads, s.lost = 0, 0, 0
		}
	default:
		if s.rising == 1 && s.reads == 2 || s.reads == suspicious {
			s.credit = max(s.credit, firstGrant)
		}
	}
	s.queued = s.queued || s.credit > 0
	if s.queued {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// note takes the place of a read into account. A reader that goes through the
// directory in order, faster than the sweep, is overtaken; one in no order wants
// all of it.
func (s *sweep) note(name string) {
	s.reads++
	if name > s.last {
		s.rising++
	} else {
		s.rising = 0
	}
	s.last = name
	switch {
	case s.rising >= inOrder && name > s.at:
		s.behind = name
		if s.begun {
			s.lead = min(2*s.lead+1, maxLead)
			s.skip = s.lead
		}
	case s.begun:
	case s.reads < suspicious:
		s.behind = name
	default:
		s.behind = ""
	}
}

// sweepOf returns the directory's sweep, nil when there are too many; p.mu is
// held.
func (p *pusher) sweepOf(dir *node) *sweep {
	s := p.sweeps[dir]
	if s == nil && len(p.sweeps) < maxSweeps {
		s = &sweep{dir: dir, rising: -1}
		p.sweeps[dir] = s
	}
	return s
}

// runPusher pushes until the mount ends.
func (t *tree) runPusher(ctx context.Context) {
	p := &t.pusher
	defer p.end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for s := p.take(); s != nil && ctx.Err() == nil; s = p.take() {
			t.sweepOn(ctx, s)
		}
	}
}

// end gives back the listings of all sweeps.
func (p *pusher) end() {
	p.mu.Lock()
	sweeps := p.sweeps
	p.sweeps = map[*node]*sweep{}
	p.mu.Unlock()
	for _, s := range sweeps {
		if s.stop != nil {
			s.stop()
		}
	}
}

// take returns a sweep that has something to do. When half the places are taken
// it frees those of sweeps that have not.
func (p *pusher) take() *sweep {
	var idle []*sweep
	p.mu.Lock()
	var next *sweep
	for dir, s := range p.sweeps {
		switch {
		case s.queued:
			next = s
		case len(p.sweeps) > maxSweeps/2:
			delete(p.sweeps, dir)
			idle = append(idle, s)
		}
		if next != nil && len(p.sweeps) <= maxSweeps/2 {
			break
		}
	}
	if next != nil {
		next.begun = true
	}
	p.mu.Unlock()
	for _, s := range idle {
		if s.stop != nil {
			s.stop()
		}
	}
	return next
}

// sweepOn pushes the next files of the directory, as many as one probe stands
// for, so that sweeps take turns.
func (t *tree) sweepOn(ctx context.Context, s *sweep) {
	p := &t.pusher
	if s.next == nil {
		s.next, s.stop = iter.Pull2(t.names.ReadDir(ctx, s.dir.path()))
	}
	if lowMemory() {
		p.rest(s)
		return
	}
	var asked covey.ExtentID
	for range probeEvery {
		if !p.granted(s) {
			return
		}
		e, err, ok := s.next()
		if !ok || err != nil {
			p.finish(s)
			return
		}
		if e.Kind != dataset.File || p.leftOut(s, e.Name) {
			continue
		}
		n := t.nodes.find(s.dir, e.Name)
		if n == nil || n.size == 0 || n.size > maxPushed || !p.due(s, n) {
			continue
		}
		t.prefetchAround(ctx, n, &asked)
		if _, err := t.pushOne(ctx, n); err != nil {
			t.log.Debug("push ahead", "path", n.path(), "error", err)
			p.rest(s)
			return
		}
	}
}

// granted reports whether the sweep may push another file.
func (p *pusher) granted(s *sweep) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.queued = s.credit > 0
	return s.queued
}

// leftOut reports whether the next file is left to its reader.
func (p *pusher) leftOut(s *sweep, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.at = name
	if name <= s.behind {
		return true
	}
	if s.skip > 0 {
		s.skip--
		return true
	}
	return false
}

// due decides whether the file is pushed now, and makes one in probeEvery a probe.
func (p *pusher) due(s *sweep, n *node) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.ahead.held() || n.ahead == wasRead {
		return false
	}
	s.credit--
	if s.since++; s.since == probeEvery {
		s.since, n.ahead = 0, probed
		return false
	}
	return true
}

// rest stops a sweep until its probes are read again.
func (p *pusher) rest(s *sweep) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.credit, s.queued, s.reads = 0, false, 0
}

// finish ends a sweep at the end of its directory. It stays known, so that the
// next misses do not begin it again at once.
func (p *pusher) finish(s *sweep) {
	s.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	*s = sweep{dir: s.dir, rising: -1}
}

// prefetchAround has the file's extent fetched, once for all of its files, so
// that the pushes behind this one do not wait for one fetch each.
func (t *tree) prefetchAround(ctx context.Context, n *node, asked *covey.ExtentID) {
	path := n.path()
	e := dataset.Entry{Name: n.name, Kind: dataset.File, Size: n.size, Version: n.version}
	x, slot, err := t.names.Extent(ctx, path, e, 0)
	if err != nil || x.ID == *asked {
		return
	}
	*asked = x.ID
	t.blocks.Prefetch(x, x.All()&^covey.FirstBits(slot))
}

// budgetShare is the part of the memory available at mount that pushes may fill.
// It is page cache, which the kernel takes back under pressure; but until then it
// crowds out other page cache.
const budgetShare = 2

// lowShare is the part of memory that must be available for pushes to go on.
const lowShare = 10

// pushBudget returns the default of Options.PushBudget.
func pushBudget() int64 {
	available, _ := memory()
	if limit := cgroupLimit(); limit > 0 {
		available = min(available, limit)
	}
	return available / budgetShare
}

func lowMemory() bool {
	available, total := memory()
	return total > 0 && available < total/lowShare
}

// memory returns what /proc/meminfo says, in bytes, 0 when it says nothing.
func memory() (available, total int64) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "MemAvailable":
			available = kib << 10
		case "MemTotal":
			total = kib << 10
		}
	}
	return available, total
}

// cgroupLimit returns the memory limit of this process's control group, 0 when
// there is none. Pushed pages count as this process's.
func cgroupLimit() int64 {
	text, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	if err != nil {
		return 0
	}
	limit, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return limit
}
