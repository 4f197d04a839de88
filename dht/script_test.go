package dht

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/covey-cache/covey"
)

// TestScripts runs the scripts in testdata/scripts, each a cluster of its own
// on a virtual clock that starts at 0. The commands:
//
//	start NAME...                 begin peers (again); everybody sees all that run
//	kill NAME...                  end peers; nobody is told
//	silence NAME / speak NAME     a peer that takes calls and does not answer
//	members NAME... [on=(NAME,…)] the member table, on all peers or some
//	homes e=N                     the homes by the first running peer's table
//	want e=N by=NAME slots=LIST [count=N] [failed=(NAME,…)] [spare=LIST]
//	     [got=WORD] [first-byte=DURATION] [bucket=N] [throttled=DURATION]
//	     [hold=NAME]             the question, with got for all its slots; with
//	                             hold it is put to that home in the background
//	answers                      what questions in the background have got, and when
//	done e=N by=NAME slot=N (digest=WORD | err | throttled) [bucket=N]
//	progress e=N by=NAME slot=N bytes=N [new]
//	put / drop e=N by=NAME slots=LIST [digest=WORD] [quietly]
//	lookup e=N by=NAME slot=N
//	advance DURATION
//	metric by=NAME (conflicts | entries)
//
// Peers of a plan are sorted, because their order is a matter of chance.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			s := &script{c: newCluster(t, 1), leases: map[string]BlockPlan{}, homes: map[string]covey.PeerID{}, begun: time.Now()}
			datadriven.RunTest(t, path, s.run)
			s.c.close()
		})
	})
}

type script struct {
	c *cluster
	// leases and homes remember who was granted what, and by whom.
	leases map[string]BlockPlan
	homes  map[string]covey.PeerID
	// begun is when the script began, and came what held questions were answered.
	begun time.Time
	mu    sync.Mutex
	came  []string
}

func (s *script) run(t *testing.T, td *datadriven.TestData) string {
	var out strings.Builder
	switch td.Cmd {
	case "start":
		for _, a := range td.CmdArgs {
			s.c.start(covey.PeerID(a.Key))
		}
		s.seeAll()
	case "kill":
		for _, a := range td.CmdArgs {
			s.c.nodes[covey.PeerID(a.Key)].kill()
		}
	case "silence", "speak":
		s.c.silence(covey.PeerID(td.CmdArgs[0].Key), td.Cmd == "silence")
	case "members":
		s.members(td)
	case "homes":
		fmt.Fprintln(&out, s.c.running()[0].d.Homes(s.extent(t, td)))
	case "want":
		s.want(t, td, &out)
	case "answers":
		synctest.Wait()
		s.mu.Lock()
		out.WriteString(strings.Join(s.came, ""))
		s.came = nil
		s.mu.Unlock()
	case "progress":
		s.progress(t, td, &out)
	case "done":
		s.done(t, td, &out)
	case "put", "drop":
		n, e := s.by(t, td), s.extent(t, td)
		if td.Cmd == "drop" {
			n.drop(e, slotsArg(t, td, "slots"), td.HasArg("quietly"))
		} else {
			n.put(e, digestArg(td), slotsArg(t, td, "slots"))
		}
	case "lookup":
		s.lookup(t, td, &out)
	case "advance":
		d, err := time.ParseDuration(td.CmdArgs[0].Key)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(d)
		synctest.Wait()
	case "metric":
		m := s.by(t, td).d.m
		if td.HasArg("conflicts") {
			fmt.Fprintln(&out, value(t, m.conflicts))
		} else {
			fmt.Fprintln(&out, value(t, m.entries))
		}
	default:
		t.Fatalf("%s: no command %q", td.Pos, td.Cmd)
	}
	if out.Len() == 0 {
		return "ok\n"
	}
	return out.String()
}

func (s *script) seeAll() {
	var ids []covey.PeerID
	for _, n := range s.c.running() {
		ids = append(ids, n.id)
	}
	s.c.see(ids...)
}

func (s *script) members(td *datadriven.TestData) {
	var ids []covey.PeerID
	on := s.c.running()
	for _, a := range td.CmdArgs {
		if a.Key == "on" {
			on = nil
			for _, v := range a.Vals {
				on = append(on, s.c.nodes[covey.PeerID(v)])
			}
			continue
		}
		ids = append(ids, covey.PeerID(a.Key))
	}
	for _, n := range on {
		n.setLive(ids)
	}
}

func (s *script) want(t *testing.T, td *datadriven.TestData, out *strings.Builder) {
	n, e := s.by(t, td), s.extent(t, td)
	w := Want{Extent: e, Count: 64, Need: slotsArg(t, td, "slots"), Spare: slotsArg(t, td, "spare")}
	for _, a := range td.CmdArgs {
		v := ""
		if len(a.Vals) > 0 {
			v = a.Vals[0]
		}
		switch a.Key {
		case "failed":
			for _, v := range a.Vals {
				w.Failed = append(w.Failed, covey.PeerID(v))
			}
		case "count":
			w.Count, _ = strconv.Atoi(v)
		case "got":
			w.Got = w.Need
			for range w.Need.Slots() {
				w.Digests = append(w.Digests, testDigest(v))
			}
		case "first-byte":
			w.FirstByte, _ = time.ParseDuration(v)
		case "throttled":
			w.Throttled, _ = time.ParseDuration(v)
		case "bucket":
			w.Bucket, _ = strconv.ParseUint(v, 10, 64)
		case "hold":
			w.Home, w.Hold = covey.PeerID(v), time.Second
		}
	}
	if w.Hold == 0 {
		s.ask(n, w, out)
		return
	}
	go func() {
		var out strings.Builder
		s.ask(n, w, &out)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.came = append(s.came, fmt.Sprintf("%s at %v: %s", n.id, time.Since(s.begun), out.String()))
	}()
	synctest.Wait()
}

func (s *script) ask(n *node, w Want, out *strings.Builder) {
	began := time.Now()
	p, err := n.d.Resolve(context.Background(), w)
	if err != nil {
		fmt.Fprintln(out, "error:", err)
		return
	}
	fmt.Fprintf(out, "home=%s", p.Home)
	if took := time.Since(began); took > 0 && w.Hold == 0 {
		fmt.Fprintf(out, " after %v", took)
	}
	fmt.Fprintln(out)
	for _, b := range p.Blocks {
		s.block(n, w, p.Home, b, out)
	}
}

func (s *script) block(n *node, w Want, home covey.PeerID, b BlockPlan, out *strings.Builder) {
	slices.Sort(b.Peers)
	fmt.Fprintf(out, "%d %s", b.Slot, b.State)
	if len(b.Peers) > 0 {
		fmt.Fprintf(out, " %s", b.Peers)
	}
	if !b.Digest.IsZero() {
		fmt.Fprintf(out, " %s", digestName(b.Digest))
	}
	if w.FirstByte > 0 && b.State == Granted {
		fmt.Fprintf(out, " for %v", b.TTL)
	}
	if (b.State == Fetching || b.State == Wait) && !b.Moving {
		fmt.Fprint(out, " still")
	}
	fmt.Fprintln(out)
	if b.State == Granted {
		k := leaseKey(w.Extent, n.id, b.Slot)
		s.leases[k], s.homes[k] = b, home
	}
}

func (s *script) progress(t *testing.T, td *datadriven.TestData, out *strings.Builder) {
	n, e := s.by(t, td), s.extent(t, td)
	x := Reading{Extent: e, New: td.HasArg("new")}
	td.ScanArgs(t, "slot", &x.Slot)
	td.ScanArgs(t, "bytes", &x.Bytes)
	k := leaseKey(e, n.id, x.Slot)
	x.Lease, x.TTL, x.Home = s.leases[k].Lease, s.leases[k].TTL, s.homes[k]
	if err := n.d.Progress(context.Background(), []Reading{x}); err != nil {
		fmt.Fprintln(out, "error:", err)
	}
}

func (s *script) done(t *testing.T, td *datadriven.TestData, out *strings.Builder) {
	n, e := s.by(t, td), s.extent(t, td)
	var slot int
	td.ScanArgs(t, "slot", &slot)
	k := leaseKey(e, n.id, slot)
	o := Outcome{Extent: e, Slot: slot, Lease: s.leases[k].Lease, Digest: digestArg(td)}
	td.MaybeScanArgs(t, "bucket", &o.Bucket)
	switch {
	case td.HasArg("err"):
		o.Err = covey.ErrNotFound
	case td.HasArg("throttled"):
		o.Err = covey.ErrThrottled
	default:
		defer n.put(e, o.Digest, covey.Bitmap(0).With(slot))
	}
	if err := n.d.Done(context.Background(), s.homes[k], o); err != nil {
		fmt.Fprintln(out, "error:", err)
	}
}

func (s *script) lookup(t *testing.T, td *datadriven.TestData, out *strings.Builder) {
	var slot int
	td.ScanArgs(t, "slot", &slot)
	l, err := s.by(t, td).d.Lookup(context.Background(), s.extent(t, td), slot)
	if err != nil {
		fmt.Fprintln(out, "error:", err)
		return
	}
	slices.Sort(l.Holders)
	fmt.Fprintf(out, "home=%s holders=%s digest=%s reading=%q\n", l.Home, l.Holders, digestName(l.Digest), l.Reading)
}

// value reads a counter or gauge.
func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func leaseKey(e covey.ExtentID, by covey.PeerID, slot int) string {
	return fmt.Sprintf("%x/%s/%d", e[:4], by, slot)
}

func (s *script) by(t *testing.T, td *datadriven.TestData) *node {
	var name string
	td.ScanArgs(t, "by", &name)
	return s.c.nodes[covey.PeerID(name)]
}

func (s *script) extent(t *testing.T, td *datadriven.TestData) covey.ExtentID {
	var i int
	td.ScanArgs(t, "e", &i)
	return testExtent(i)
}

// slotsArg reads slots=3, slots=0-5 or slots=(0,7).
func slotsArg(t *testing.T, td *datadriven.TestData, key string) covey.Bitmap {
	var b covey.Bitmap
	for _, a := range td.CmdArgs {
		if a.Key != key {
			continue
		}
		for _, v := range a.Vals {
			from, to, isRange := strings.Cut(v, "-")
			if !isRange {
				to = from
			}
			i, err1 := strconv.Atoi(from)
			j, err2 := strconv.Atoi(to)
			if err1 != nil || err2 != nil {
				t.Fatalf("%s: slots %q", td.Pos, v)
			}
			for ; i <= j; i++ {
				b = b.With(i)
			}
		}
	}
	return b
}

func digestArg(td *datadriven.TestData) covey.Digest {
	for _, a := range td.CmdArgs {
		if a.Key == "digest" {
			return testDigest(a.Vals[0])
		}
	}
	if td.Cmd == "done" && (td.HasArg("err") || td.HasArg("throttled")) {
		return covey.Digest{}
	}
	return testDigest("x")
}

func digestName(d covey.Digest) string {
	for _, w := range []string{"x", "y", "z"} {
		if d == testDigest(w) {
			return w
		}
	}
	if d.IsZero() {
		return "-"
	}
	return d.String()[:8]
}
