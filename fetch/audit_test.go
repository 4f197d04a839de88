package fetch

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/covey-cache/covey"
)

// forged is what a liar that was the first reader of a block has made everybody
// believe.
func forged(l covey.Locator) []byte {
	b := bytes.Clone(content(l))
	b[7] ^= 1
	return b
}

func forger(_ context.Context, l covey.Locator, buf []byte, _ bool) error {
	copy(buf, forged(l))
	return nil
}

// believe makes the home take the forged value of a slot for the right one.
func (r *room) believe(e *covey.Extent, slot int) {
	r.home.holds(e, []int{slot}, "a")
	r.home.mu.Lock()
	defer r.home.mu.Unlock()
	r.home.entry(e.ID, slot).digest = covey.Sum(forged(e.Blocks[slot]))
}

// A value that the whole mesh agrees on and the origin never had is found by an
// audit. From then on the block is read from the origin.
func TestAuditFindsAForgedBlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"a": forger}, func(o *Options) { o.AuditEvery = 1 })
		e := extentOf("k", 2)
		r.believe(e, 0)
		r.believe(e, 1)
		h, err := r.Get(t.Context(), e, 0)
		if err != nil {
			t.Fatal(err)
		}
		h.Release() // the lie, which nothing contradicts yet
		r.settle()
		if r.audits.differ.Load() != 1 || r.audits.quarantined.Load() != 1 || len(r.corrupt) != 1 {
			t.Fatalf("%d audits differ, %d blocks in quarantine, corrupt %q", r.audits.differ.Load(), r.audits.quarantined.Load(), r.corrupt)
		}
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		r.settle()
		mustGet(t.Context(), t, r.Fetcher, e, 0) // from the store now
		if n := r.origin.count(e.Blocks[0]); n != 2 {
			t.Errorf("%d reads of the origin, want one for the audit and one after it", n)
		}
		// Audits have a pause between them, however many are asked for.
		h, err = r.Get(t.Context(), e, 1)
		if err != nil {
			t.Fatal(err)
		}
		h.Release()
		r.settle()
		if n := r.origin.count(e.Blocks[1]); n != 0 {
			t.Errorf("another audit within %v", auditPause)
		}
	})
}

// One in so many blocks is audited, and those that are right change nothing.
func TestAuditRate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRoom(t, peerBytes{"a": honest}, func(o *Options) { o.AuditEvery = 4 })
		const blocks = 200
		for i := range blocks {
			e := extentOf(string(rune('A'+i)), 1)
			r.home.holds(e, []int{0}, "a")
			mustGet(t.Context(), t, r.Fetcher, e, 0)
			time.Sleep(auditPause)
		}
		r.settle()
		// Four standard deviations of a binomial distribution are 24.
		if n := r.audits.same.Load(); n < blocks/4-24 || n > blocks/4+24 {
			t.Errorf("%d of %d blocks audited, want about one in four", n, blocks)
		}
		if r.audits.differ.Load()+r.audits.failed.Load()+r.audits.quarantined.Load() != 0 {
			t.Error("an honest neighbour was doubted")
		}
	})
}

// listed is a manifest.
type listed map[covey.Locator]covey.Digest

func (m listed) Digest(l covey.Locator) (covey.Digest, bool) {
	d, ok := m[l]
	return d, ok
}

// With a manifest nothing else is read: not what the mesh agrees on, not what the
// store has, not what the origin says now, and not what is not listed.
func TestManifestAcceptsNothingElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := extentOf("k", 4)
		m := listed{}
		for i, l := range e.Blocks[:3] {
			m[l] = covey.Sum(content(l))
			if i == 2 {
				m[l] = covey.Sum(forged(l))
			}
		}
		r := newRoom(t, peerBytes{"a": forger, "b": honest}, func(o *Options) { o.Manifest = m })
		// The home believes the forger; another holder has the right bytes.
		r.believe(e, 0)
		r.home.holds(e, nil)
		r.home.mu.Lock()
		r.home.entry(e.ID, 0).holders = []covey.PeerID{"a", "b"}
		r.home.mu.Unlock()
		mustGet(t.Context(), t, r.Fetcher, e, 0)
		if got := r.Totals(); got.Neighbour == 0 || got.Origin != 0 {
			t.Errorf("not from the honest holder: %+v", got)
		}
		// The store has other bytes: they are dropped and fetched again.
		bad := forged(e.Blocks[1])
		if err := r.store.Put(e.Blocks[1], covey.Place{Extent: e.ID, Slot: 1}, covey.Sum(bad), bad); err != nil {
			t.Fatal(err)
		}
		mustGet(t.Context(), t, r.Fetcher, e, 1)
		// The origin has other bytes than the manifest.
		_, err := r.Get(t.Context(), e, 2)
		wantKind(t, err, covey.ErrCorrupt)
		// The manifest does not have the block.
		_, err = r.Get(t.Context(), e, 3)
		wantKind(t, err, covey.ErrCorrupt)
		if n := r.origin.count(e.Blocks[3]); n != 0 {
			t.Error("read what the manifest does not list")
		}
		r.settle()
	})
}
