package blockstore

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey"
)

func putReplica(t testing.TB, s *Store, l covey.Locator, holders int) error {
	t.Helper()
	b := content(l)
	err := s.PutReplica(l, placeOf(l), covey.Sum(b), b, holders)
	if err != nil && !errors.Is(err, covey.ErrFull) {
		t.Fatal(err)
	}
	return err
}

func wantBlocks(t testing.TB, s *Store, want map[string]int) {
	t.Helper()
	for key, n := range want {
		if got := s.Stat(object(key, sizes[key])).Blocks; got != n {
			t.Errorf("%s has %d blocks, want %d", key, got, n)
		}
	}
}

// sizes are those of the objects of TestReplicasGiveWay.
var sizes = map[string]int64{
	"primary": 2 * testBlock, "many-large": 5 << 20, "many-small": testBlock, "few-large": 5 << 20, "few-small": testBlock, "mixed": 4 * testBlock,
}

// Replicas give way to primaries, those that many hold first and large ones before
// small ones; of an object of both kinds only its replicas go. Primaries give way to
// nothing, and replicas take spare room only. All of it survives a restart.
func TestReplicasGiveWay(t *testing.T) {
	for _, tiers := range []int{1, 2} {
		t.Run(fmt.Sprint(tiers), func(t *testing.T) {
			const large = int(5 << 20 / testBlock)
			const all int64 = int64(2 + 2*large + 2 + 4)
			fs := MemFS()
			opts := Options{Dir: "/fast", Budget: all * testBlock, FS: fs}
			if tiers == 2 {
				opts = twoTiers(fs, int64(2+large+1)*testBlock, int64(large+5)*testBlock)
			}
			s := mustOpenStore(t, opts)
			for _, o := range []struct {
				key     string
				holders int
			}{{"few-small", 1}, {"few-large", 1}, {"many-small", 5}, {"many-large", 5}} {
				l := object(o.key, sizes[o.key])
				for i := range l.Blocks() {
					if err := putReplica(t, s, l.Block(i), o.holders); err != nil {
						t.Fatal(err)
					}
				}
			}
			mixed := object("mixed", sizes["mixed"])
			for i := range mixed.Blocks() {
				if i%2 == 0 {
					put(t, s, mixed.Block(i))
				} else if err := putReplica(t, s, mixed.Block(i), 1); err != nil {
					t.Fatal(err)
				}
			}
			putAll(t, s, object("primary", sizes["primary"]))
			if u := s.Usage(); u.Used != u.Budget {
				t.Fatalf("usage %+v, want a full cache", u)
			}
			if err := putReplica(t, s, object("late", testBlock).Block(0), 9); err == nil {
				t.Error("a replica was admitted to a full cache")
			}
			if st := s.Stat(mixed); st.Replicas != 2 || st.Blocks != 4 {
				t.Errorf("%+v", st)
			}
			mustClose(t, s)
			s = mustOpenStore(t, opts)
			if st := s.Stat(mixed); st.Replicas != 2 || st.Blocks != 4 {
				t.Errorf("after a restart %+v", st)
			}
			if du, err := s.Du(nil); err != nil || du.Replicas != 2*large+2+2 {
				t.Errorf("du %+v, %v", du, err)
			}
			room := func(blocks int64) {
				t.Helper()
				putAll(t, s, object(fmt.Sprint("new", blocks, s.Usage().Blocks), blocks*testBlock))
			}
			if tiers == 1 {
				// Who holds how much is not kept over a restart: size alone decides.
				room(1)
				if a, b := s.Stat(object("few-large", 5<<20)), s.Stat(object("many-large", 5<<20)); a.Blocks+b.Blocks != large {
					t.Errorf("few %+v, many %+v, want one of them gone", a, b)
				}
				wantBlocks(t, s, map[string]int{"primary": 2, "many-small": 1, "few-small": 1, "mixed": 4})
			}
			for range 4 * all { // all that can go, goes
				l := object(fmt.Sprint("fill", s.Usage().Blocks, rand.Uint64()), testBlock).Block(0)
				b := content(l)
				if err := s.Put(l, placeOf(l), covey.Sum(b), b); errors.Is(err, covey.ErrFull) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			wantBlocks(t, s, map[string]int{"primary": 2, "many-large": 0, "many-small": 0, "few-large": 0, "few-small": 0, "mixed": 2})
			for i := range mixed.Blocks() {
				if i%2 == 0 {
					wantBlock(t, s, mixed.Block(i))
				} else {
					wantMissing(t, s, mixed.Block(i))
				}
			}
			if u := s.Usage(); u.Used != u.Budget {
				t.Errorf("usage %+v, want a full cache", u)
			}
		})
	}
}

// In one life, replicas that many hold go before those that few hold, whatever came
// first; and one that is open is passed over.
func TestReplicaOrder(t *testing.T) {
	s := mustOpenStore(t, Options{Dir: t.TempDir(), Budget: 4 * testBlock})
	few, many, both := object("few", testBlock), object("many", testBlock), object("both", 2*testBlock)
	for o, holders := range map[covey.Object]int{few: 1, many: 3} {
		if err := putReplica(t, s, o.Block(0), holders); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, both.Block(0))
	if err := putReplica(t, s, both.Block(1), 4); err != nil {
		t.Fatal(err)
	}
	f := wantWhole(t, s, both) // its replica must not be punched out under a reader
	put(t, s, object("a", testBlock).Block(0))
	if s.Stat(many).Blocks != 0 || s.Stat(few).Blocks != 1 {
		t.Errorf("many %+v, few %+v", s.Stat(many), s.Stat(few))
	}
	put(t, s, object("b", testBlock).Block(0))
	if s.Stat(few).Blocks != 0 {
		t.Errorf("few %+v", s.Stat(few))
	}
	b := content(object("c", testBlock).Block(0))
	if err := s.Put(object("c", testBlock).Block(0), covey.Place{}, covey.Sum(b), b); !errors.Is(err, covey.ErrFull) {
		t.Errorf("put over what is being read: %v", err)
	}
	wantContent(t, f, both)
}

func inSet(set, key string) covey.Object {
	o := object(set+"/"+key, testBlock)
	return o
}

// A data set that nobody used for a while gives way, the one unused for longest
// first, primaries too, also when the agent was restarted meanwhile; what is pinned
// stays.
func TestIdleDatasetGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := MemFS()
		opts := Options{Dir: "/c", FS: fs, Budget: 6 * testBlock, IdleAfter: 10 * time.Hour}
		s := mustOpenStore(t, opts)
		sets := func(s *Store) {
			for _, p := range []string{"old/", "older/", "busy/"} {
				if err := s.AddDataset(Dataset{Origin: "s3://bucket", Prefix: p}); err != nil {
					t.Fatal(err)
				}
			}
		}
		sets(s)
		for i := range 2 {
			put(t, s, inSet("older", fmt.Sprint(i)).Block(0))
		}
		mustPin(t, s, inSet("older", "1"))
		time.Sleep(time.Hour)
		for i := range 2 {
			put(t, s, inSet("old", fmt.Sprint(i)).Block(0))
			put(t, s, inSet("busy", fmt.Sprint(i)).Block(0))
		}
		full := func(s *Store, key string) {
			t.Helper()
			b := content(inSet("busy", key).Block(0))
			if err := s.Put(inSet("busy", key).Block(0), covey.Place{}, covey.Sum(b), b); !errors.Is(err, covey.ErrFull) {
				t.Errorf("%s: %v, want ErrFull", key, err)
			}
		}
		full(s, "x")
		time.Sleep(5 * time.Hour)
		mustClose(t, s)
		s = mustOpenStore(t, opts) // it is not told of the data sets until they are opened
		time.Sleep(4*time.Hour + 30*time.Minute)
		synctest.Wait()
		wantBlock(t, s, inSet("busy", "0").Block(0))
		put(t, s, inSet("busy", "2").Block(0))
		if s.Stat(inSet("older", "0")).Blocks != 0 || s.Stat(inSet("older", "1")).Blocks != 1 || s.Stat(inSet("old", "0")).Blocks != 1 {
			t.Errorf("older %+v, %+v, old %+v", s.Stat(inSet("older", "0")), s.Stat(inSet("older", "1")), s.Stat(inSet("old", "0")))
		}
		full(s, "y") // old is in use for half an hour more
		time.Sleep(time.Hour)
		put(t, s, inSet("busy", "3").Block(0))
		put(t, s, inSet("busy", "4").Block(0))
		full(s, "z")
		if n := s.Stat(inSet("old", "0")).Blocks + s.Stat(inSet("old", "1")).Blocks; n != 0 {
			t.Errorf("%d blocks of old are left", n)
		}
		wantBlock(t, s, inSet("older", "1").Block(0))
		mustClose(t, s)
	})
}

// Policies by prefix, the longest one holding: lru gives way to itself and to
// others, epoch to nobody, lfu by use.
func TestPolicyByPrefix(t *testing.T) {
	s := mustOpenStore(t, Options{
		Dir: "/c", FS: MemFS(), Budget: 8 * testBlock,
		Datasets: []Dataset{
			{Origin: "s3://bucket", Prefix: "d/", Policy: PolicyEpoch},
			{Origin: "s3://bucket", Prefix: "d/cache/", Policy: PolicyLRU},
			{Origin: "s3://bucket", Prefix: "d/hot/", Policy: PolicyLFU},
		},
	})
	for i := range 3 {
		put(t, s, inSet("d", fmt.Sprint(i)).Block(0))
		put(t, s, inSet("d/cache", fmt.Sprint(i)).Block(0))
	}
	for i := range 2 {
		put(t, s, inSet("d/hot", fmt.Sprint(i)).Block(0))
	}
	for range 10 {
		wantBlock(t, s, inSet("d/hot", "0").Block(0))
	}
	wantBlock(t, s, inSet("d/cache", "0").Block(0))
	put(t, s, inSet("d/cache", "3").Block(0)) // 1 goes, used longest ago of all that trade
	put(t, s, inSet("d", "3").Block(0))       // then 2
	here := func(set string) (keys string) {
		for i := range 5 {
			if s.Stat(inSet(set, fmt.Sprint(i))).Blocks > 0 {
				keys += fmt.Sprint(i)
			}
		}
		return keys
	}
	if got := here("d") + " " + here("d/cache") + " " + here("d/hot"); got != "0123 03 01" {
		t.Errorf("here are %s", got)
	}
	for i := 2; i < 5; i++ {
		put(t, s, inSet("d/hot", fmt.Sprint(i)).Block(0))
	}
	if got := here("d") + " " + here("d/cache"); got != "0123 " {
		t.Errorf("here are %s", got)
	}
	if got := here("d/hot"); got[0] != '0' || len(got) != 4 {
		t.Errorf("of hot are here %s, want 0, which is used most, and three more", got)
	}
	b := content(inSet("d", "4").Block(0))
	for i := 4; ; i++ { // primaries of epoch take all that trades, and then nothing
		if err := s.Put(inSet("d", fmt.Sprint(i)).Block(0), covey.Place{}, covey.Sum(b), b); errors.Is(err, covey.ErrFull) {
			break
		}
	}
	if got := here("d/hot"); got != "" {
		t.Errorf("of hot are here %s", got)
	}
	for i := range 8 {
		if s.Stat(inSet("d", fmt.Sprint(i))).Blocks != 1 {
			t.Errorf("d/%d is gone", i)
		}
	}
}

// Under lfu with a few hot objects and a stream of others, the hot ones stay; under
// lru they go. The counts halve, so that what was hot once goes in the end.
func TestLFU(t *testing.T) {
	hot := func(policy Policy) int {
		s := mustOpenStore(t, Options{Dir: "/c", FS: MemFS(), Budget: 20 * unit, Policy: policy})
		rng := rand.New(rand.NewPCG(5, 6))
		hits := 0
		for i := range 4000 {
			key := fmt.Sprint("cold", i)
			if i%5 == 0 {
				key = fmt.Sprint("hot", rng.IntN(15))
			}
			if readThrough(t, s, object(key, 16).Block(0)) {
				hits++
			}
		}
		return hits
	}
	lfu, lru := hot(PolicyLFU), hot(PolicyLRU)
	t.Logf("hits: lfu %d, lru %d", lfu, lru)
	if lfu < 600 || lru > 300 {
		t.Errorf("hits: lfu %d, want most of 800; lru %d, want few", lfu, lru)
	}
	synctest.Test(t, func(t *testing.T) {
		s := mustOpenStore(t, Options{Dir: "/c", FS: MemFS(), Budget: 2 * testBlock, Policy: PolicyLFU})
		once, now := object("once", testBlock), object("now", testBlock)
		put(t, s, once.Block(0))
		for range 200 {
			wantBlock(t, s, once.Block(0))
		}
		time.Sleep(12 * time.Hour)
		put(t, s, now.Block(0))
		for range 3 {
			wantBlock(t, s, now.Block(0))
		}
		put(t, s, object("new", testBlock).Block(0))
		if s.Stat(once).Blocks != 0 || s.Stat(now).Blocks != 1 {
			t.Errorf("once %+v, now %+v", s.Stat(once), s.Stat(now))
		}
		mustClose(t, s)
	})
}

// Objects of a data set with a time go when it is over, also across a restart,
// whether or not they are used; pins stay.
func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := Options{
			Dir: "/c", FS: MemFS(), Budget: 1 << 20,
			Datasets: []Dataset{{Origin: "s3://bucket", Prefix: "t/", Policy: PolicyTTL, TTL: time.Hour}},
		}
		s := mustOpenStore(t, opts)
		a, b, pinned, other := inSet("t", "a"), inSet("t", "b"), inSet("t", "pinned"), inSet("u", "c")
		put(t, s, a.Block(0))
		put(t, s, other.Block(0))
		put(t, s, pinned.Block(0))
		mustPin(t, s, pinned)
		time.Sleep(30 * time.Minute)
		put(t, s, b.Block(0))
		mustClose(t, s)
		s = mustOpenStore(t, opts)
		time.Sleep(20 * time.Minute)
		wantBlock(t, s, a.Block(0))
		time.Sleep(15 * time.Minute)
		wantMissing(t, s, a.Block(0))
		wantBlock(t, s, b.Block(0))
		time.Sleep(time.Hour)
		wantMissing(t, s, b.Block(0))
		wantBlock(t, s, pinned.Block(0))
		wantBlock(t, s, other.Block(0))
		mustClose(t, s)
	})
}

func TestBadDatasets(t *testing.T) {
	for _, d := range []Dataset{{Policy: "fifo"}, {Policy: PolicyTTL}, {TTL: -1}} {
		if _, err := Open(Options{Dir: "/c", FS: MemFS(), Datasets: []Dataset{d}}); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}
	rs := newRules(PolicyEpoch, nil)
	for i := range 2 * maxRules {
		rs.add(Dataset{Origin: fmt.Sprint(i)}, time.Now())
	}
	if r := rs.of(covey.Object{Origin: fmt.Sprint(2*maxRules - 1)}); r.number != 0 || len(rs.list) != maxRules {
		t.Errorf("%+v of %d", r, len(rs.list))
	}
	// Their number and any kind fit a queue.
	if q := queueOf(rs.list[maxRules-1], 1<<kindBits-1); q.rule() != maxRules-1 || q.kind() != 1<<kindBits-1 || maxRules<<kindBits > math.MaxUint16+1 {
		t.Errorf("queue %x", q)
	}
}
