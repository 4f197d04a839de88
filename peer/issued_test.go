package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/memnet"
)

func issue(t testing.TB, key ClusterKey, id string, life time.Duration) *MemberRecord {
	t.Helper()
	r, err := IssueMember(key, id, life)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

// Agents with an issued record and agents with the key are members of each other,
// also where two of the former meet.
func TestIssuedMembers(t *testing.T) {
	key := NewClusterKey()
	first := newNode(t, NetworkOptions{Key: &key}).run(t)
	join := first.ListenAddrs()
	own := newNode(t, NetworkOptions{}) // only for its identity
	dir := t.TempDir()
	kept := newNode(t, NetworkOptions{StateDir: dir})
	_ = kept.Close() // told by newNode
	nodes := []*node{
		first,
		newNode(t, NetworkOptions{Record: issue(t, key, "", time.Hour), Join: join}).run(t),
		newNode(t, NetworkOptions{Record: issue(t, key, "", time.Hour), Join: join}).run(t),
		newNode(t, NetworkOptions{Record: issue(t, key, kept.id.String(), time.Hour), StateDir: dir, Join: join}).run(t),
	}
	waitLive(t, nodes, len(nodes))
	for _, n := range nodes {
		n.SetServer(&fakeServer{reply: func(from covey.PeerID, req []byte) []byte { return req }})
	}
	if reply, err := nodes[1].Call(testContext(t), nodes[2].Self(), []byte("x")); err != nil || string(reply) != "x" {
		t.Errorf("between two issued members: %q, %v", reply, err)
	}
	_, err := NewNetwork(NetworkOptions{Record: issue(t, key, own.id.String(), time.Hour)})
	if !errors.Is(err, covey.ErrDenied) {
		t.Errorf("another agent's record: %v", err)
	}
}

func TestMemberRecordText(t *testing.T) {
	key := NewClusterKey()
	for _, id := range []string{"", newNode(t, NetworkOptions{}).id.String()} {
		r := issue(t, key, id, time.Hour)
		got, err := ParseMemberRecord(r.String() + "\n")
		if err != nil || got.Peer != r.Peer || got.HasIdentity() != (id == "") || got.String() != r.String() {
			t.Errorf("parsed %v, %v", got.Peer, err)
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			if s := fmt.Sprintf(verb, *r); s != "member record (hidden)" {
				t.Errorf("%s prints %q", verb, s)
			}
		}
	}
	r := issue(t, key, "", time.Hour).String()
	for name, text := range map[string]string{
		"empty": "", "a cluster key": key.String(), "cut short": r[:len(r)-9], "damaged": r[:40] + "A" + r[41:],
		"huge": memberRecordPrefix + string(make([]byte, 1<<20)),
	} {
		if _, err := ParseMemberRecord(text); !errors.Is(err, covey.ErrInvalid) && !errors.Is(err, covey.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, life := range []time.Duration{0, -time.Hour, MaxIssue + 1} {
		if _, err := IssueMember(key, "", life); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("issued for %s: %v", life, err)
		}
	}
}

func FuzzMemberRecord(f *testing.F) {
	f.Add(issue(f, NewClusterKey(), "", time.Hour).String())
	f.Add(memberRecordPrefix)
	f.Add(memberRecordPrefix + "CgA")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseMemberRecord(s); err == nil {
			if _, err := ParseMemberRecord(r.String()); err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, covey.ErrInvalid) && !errors.Is(err, covey.ErrDenied) {
			t.Fatalf("error of kind %v", err)
		}
	})
}

// A membership that ends is over everywhere within a lease, and its agent is told
// why nobody takes it in any more.
func TestMembershipExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		a, _ := simNode(t, mem, &key, 0)
		b, _ := simNode(t, mem, &key, 1, "10.0.0.1:7171")
		const ip = "10.0.0.9"
		c := newNode(t, NetworkOptions{
			Record: issue(t, key, "", 5*time.Minute), Listen: ip + ":7171",
			Join: []string{"10.0.0.1:7171"}, Sockets: mem.Host(ip),
		}).run(t)
		time.Sleep(4 * time.Minute)
		if live(a) != 3 || live(b) != 3 || live(c) != 3 {
			t.Fatalf("%d, %d and %d live members before the end", live(a), live(b), live(c))
		}
		time.Sleep(2 * time.Minute)
		for _, n := range []*node{a, b} {
			if live(n) != 2 || len(n.Peers()) != 2 {
				t.Errorf("%d live members of %d after the end", live(n), len(n.Peers()))
			}
		}
		if err := c.Join(t.Context()); err == nil {
			t.Error("it joined again")
		}
		if !contains(join(c.log.all()), refusalExpired) {
			t.Error("it was not told why")
		}
		if !contains(join(c.log.all()), "member record ends soon") {
			t.Error("it was not warned")
		}
	})
}

// A peer that is put on the list is out of the whole mesh within a minute, on every
// agent, whoever it is connected to; it stays out, and is told why.
func TestRevokedWithinAMinute(t *testing.T) {
	const crowd = 24
	list := filepath.Join(t.TempDir(), "revoked")
	synctest.Test(t, func(t *testing.T) {
		mem := &memnet.Network{Latency: time.Millisecond}
		key := NewClusterKey()
		start := func(i int, o NetworkOptions) *node {
			ip := fmt.Sprintf("10.0.0.%d", i+1)
			o.Listen, o.Sockets, o.Join = ip+":7171", mem.Host(ip), []string{"10.0.0.1:7171", "10.0.0.2:7171"}
			return newNode(t, o).run(t)
		}
		var nodes []*node
		for i := range crowd {
			o := NetworkOptions{Key: &key}
			switch {
			case i == 5:
				o.Revoked = list // that is not there yet
			case i%3 == 0:
				o.Key, o.Record = nil, issue(t, key, "", time.Hour)
			}
			nodes = append(nodes, start(i, o))
		}
		time.Sleep(10 * time.Second)
		rogue := nodes[9]
		for i, n := range nodes {
			if live(n) != crowd {
				t.Fatalf("node %d sees %d live members", i, live(n))
			}
			n.SetServer(&fakeServer{reply: func(_ covey.PeerID, req []byte) []byte { return req }})
		}
		if _, err := rogue.Call(t.Context(), nodes[1].Self(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(list, []byte("# left on Friday\n"+rogue.id.String()+" # node 9\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for i, n := range nodes {
			if n == rogue {
				continue
			}
			if live(n) != crowd-1 || n.table.Has(rogue.id) {
				t.Errorf("node %d has %d live members after a minute", i, live(n))
			}
			if n.connectedTo(rogue) {
				t.Errorf("node %d is still connected to it", i)
			}
		}
		if _, err := rogue.Call(t.Context(), nodes[1].Self(), []byte("x")); err == nil {
			t.Error("a member still answers it")
		}
		if err := rogue.Join(t.Context()); err == nil {
			t.Error("it joined again")
		}
		// Whoever comes later learns of it too.
		late := start(crowd, NetworkOptions{Key: &key})
		time.Sleep(30 * time.Second)
		if !late.table.Revoked(rogue.id) || live(late) != crowd {
			t.Errorf("a newcomer has %d live members, and knows of the revocation: %v", live(late), late.table.Revoked(rogue.id))
		}
		if !contains(join(nodes[5].log.all()), "peer expelled", rogue.id.String()) {
			t.Error("not logged")
		}
	})
}

// A list that is damaged changes nothing and says which line is wrong.
func TestRevokedList(t *testing.T) {
	id := newNode(t, NetworkOptions{}).id
	file := filepath.Join(t.TempDir(), "revoked")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf("\n# comment\n  %s  # why\n\n", id))
	if got, err := readRevoked(file); err != nil || len(got) != 1 || got[0] != id {
		t.Errorf("%v, %v", got, err)
	}
	write(fmt.Sprintf("%s\nnobody\n", id))
	if _, err := readRevoked(file); !errors.Is(err, covey.ErrInvalid) || !contains(err.Error(), "line 2") {
		t.Errorf("a damaged list: %v", err)
	}
}

// A join that fails is one line of an agent's log, which says why.
func TestFailedJoinIsLoggedOnce(t *testing.T) {
	k1, k2 := NewClusterKey(), NewClusterKey()
	a := newNode(t, NetworkOptions{Key: &k1}).run(t)
	b := newNode(t, NetworkOptions{Key: &k2, Join: a.ListenAddrs()}).run(t)
	if err := b.Joined(testContext(t)); !errors.Is(err, covey.ErrDenied) {
		t.Errorf("Joined = %v", err)
	}
	warnings := 0
	for _, line := range b.log.all() {
		if contains(line, "level=WARN") {
			warnings++
			if !contains(line, a.ListenAddrs()[0], refusalWrongKey) {
				t.Errorf("not the reason: %s", line)
			}
		}
	}
	if warnings != 1 {
		t.Errorf("%d warnings, want one: %s", warnings, b.log.all())
	}
}
