package blockstore

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
)

// Dataset says how the objects of one data set, or of a part of one, are kept. Of
// several that an object belongs to, the one with the longest prefix holds.
type Dataset struct {
	// Origin is the objects', and Prefix what their Key begins with. One that ends
	// with "/" means the object of that name as well.
	Origin, Prefix string
	// Policy says what gives way; "" means the store's.
	Policy Policy
	// TTL is how long an object is kept under [PolicyTTL].
	TTL time.Duration
}

// maxRules bounds the data sets that are told apart, old ones included that only
// their blocks remember. What is beyond is kept as the store's policy says.
const maxRules = 1 << 10

// rule is a data set under the number that its objects carry.
type rule struct {
	Dataset
	number uint16
	// used is when anything of it was used, in seconds since 1970.
	used atomic.Int64
}

// idle reports whether nothing of the data set was used for so long.
func (r *rule) idle(after time.Duration, now time.Time) bool {
	return after > 0 && now.Sub(time.Unix(r.used.Load(), 0)) > after
}

func (r *rule) touch() { r.used.Store(time.Now().Unix()) }

// rules are the data sets of a store, shared by its tiers.
type rules struct {
	policy Policy // of data sets that have none of their own
	// clock counts uses of objects. It orders objects of different tiers; wrapping
	// around after 4 billion only makes a few of them look younger.
	clock atomic.Uint32
	// changed counts changes of the list, so that a tier knows to sort its objects
	// anew.
	changed atomic.Uint64

	// mu is a leaf lock and guards list, whose rules are never removed. The first is
	// for what belongs to no data set.
	mu   sync.RWMutex
	list []*rule
}

func newRules(policy Policy, sets []Dataset) *rules {
	rs := &rules{policy: policy}
	rs.add(Dataset{}, time.Now())
	for _, d := range sets {
		rs.add(d, time.Now())
	}
	return rs
}

// add makes a data set known, or says anew how it is kept; last is when it was used.
func (rs *rules) add(d Dataset, last time.Time) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if d.Policy == "" {
		d.Policy = rs.policy
	}
	for i, r := range rs.list {
		if r.Origin != d.Origin || r.Prefix != d.Prefix {
			continue
		}
		if r.Dataset != d {
			// A new one, since its readers hold no lock.
			n := &rule{Dataset: d, number: r.number}
			n.used.Store(r.used.Load())
			rs.list[i] = n
			rs.changed.Add(1)
			r = n
		}
		r.used.Store(max(r.used.Load(), last.Unix()))
		return
	}
	if len(rs.list) == maxRules {
		return
	}
	r := &rule{Dataset: d, number: uint16(len(rs.list))}
	r.used.Store(last.Unix())
	rs.list = append(rs.list, r)
	if len(rs.list) > 1 {
		rs.changed.Add(1)
	}
}

// recall makes a data set known that an earlier process used, unless it is known.
func (rs *rules) recall(origin, prefix string, last time.Time) {
	rs.mu.RLock()
	for _, r := range rs.list {
		if r.Origin == origin && r.Prefix == prefix {
			rs.mu.RUnlock()
			return
		}
	}
	rs.mu.RUnlock()
	rs.add(Dataset{Origin: origin, Prefix: prefix}, last)
}

// of returns the data set of an object.
func (rs *rules) of(o covey.Object) *rule {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	best := rs.list[0]
	for _, r := range rs.list[1:] {
		if r.Origin == o.Origin && len(r.Prefix) >= len(best.Prefix) && below(o.Key, r.Prefix) {
			best = r
		}
	}
	return best
}

// below reports whether a key begins with a prefix, or is the directory that it names.
func below(key, prefix string) bool {
	dir, is := strings.CutSuffix(prefix, "/")
	return strings.HasPrefix(key, prefix) || is && key == dir
}

// at returns the data set of a number.
func (rs *rules) at(number uint16) *rule {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.list[number]
}

// all returns the data sets as they are now.
func (rs *rules) all() []*rule {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return slices.Clone(rs.list)
}

// validate reports what is wrong with a data set.
func (d Dataset) validate() error {
	if !d.Policy.known() {
		return fmt.Errorf("data set %s%s: cache policy %q, none of %s: %w", d.Origin, d.Prefix, d.Policy, policyNames, covey.ErrInvalid)
	}
	if d.TTL < 0 || d.Policy == PolicyTTL && d.TTL == 0 {
		return fmt.Errorf("data set %s%s: policy ttl with a time of %v: %w", d.Origin, d.Prefix, d.TTL, covey.ErrInvalid)
	}
	return nil
}

// AddDataset makes a data set known, so that its uses are counted, or says anew how
// it is kept. One without a policy changes nothing of what was said before.
func (s *Store) AddDataset(d Dataset) error {
	if err := d.validate(); err != nil {
		return err
	}
	if d.Policy == "" {
		s.opts.rules.recall(d.Origin, d.Prefix, time.Now())
		s.opts.rules.of(covey.Object{Origin: d.Origin, Key: d.Prefix}).touch()
	} else {
		s.opts.rules.add(d, time.Now())
	}
	signal(s.unsorted)
	return nil
}
