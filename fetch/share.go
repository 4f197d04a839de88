package fetch

import (
	"sync"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht"
)

const (
	// maxVolunteered bounds the reads that this peer does in turn for those that
	// it is sent to others for, beside the memory that prefetch may use.
	maxVolunteered = 32

	// scanWindow is how long a slot asked for makes the next one of its extent a
	// scan, and scanExtents how many extents are watched.
	scanWindow  = 5 * time.Second
	scanExtents = 256

	// throttleNews is how long a refusal of the origin is told to every home that
	// is asked. A home that hears of it slows down by itself from then on.
	throttleNews = 2 * time.Second
)

// scans remembers which slots of which extents were asked for of late. Whoever
// wants a second block of an extent will want the rest: then it may as well read
// some of it from the origin while it waits for what others read.
//
// mu is a leaf lock.
type scans struct {
	mu        sync.Mutex
	extents   *lru[covey.ExtentID, scan]
	throttled map[uint64]time.Time // by bucket: until when it is news
}

type scan struct {
	slots covey.Bitmap
	at    time.Time
}

// seen notes the slots and reports whether the extent is being scanned.
func (s *scans) seen(e covey.ExtentID, slots covey.Bitmap) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.extents.get(e)
	if !ok || now.Sub(old.at) > scanWindow {
		old = scan{}
	}
	all := old.slots | slots
	s.extents.put(e, scan{slots: all, at: now})
	return all.Len() > 1
}

// throttle notes that the bucket refused a request for being one too many.
func (s *scans) throttle(bucket uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.throttled == nil || len(s.throttled) > 64 {
		s.throttled = map[uint64]time.Time{}
	}
	s.throttled[bucket] = time.Now().Add(throttleNews)
}

func (s *scans) throttledFor(bucket uint64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, time.Until(s.throttled[bucket]))
}

// Throttled notes that an origin refused a request because there are too many,
// though the request itself may be tried again and succeed: the homes hear of it
// with the next questions and slow their grants down.
func (f *Fetcher) Throttled(origin string) { f.scans.throttle(dht.Bucket(origin)) }

// volunteer completes a question: what is known of the origin, and which slots
// this peer would read for the others.
func (f *Fetcher) volunteer(e *covey.Extent, w *dht.Want) {
	w.FirstByte, _ = f.originFirst.p99()
	w.Throttled = f.scans.throttledFor(w.Bucket)
	scanning := f.scans.seen(e.ID, w.Need) || w.Prefetch
	if !scanning || w.Home != "" || w.Throttled > 0 || f.volunteered.Load() >= maxVolunteered ||
		time.Now().UnixNano() < f.full.Load() {
		return
	}
	w.Spare = e.All() &^ w.Need &^ f.store.Present(e) &^ f.table.under(e)
}

// taken begins the reads that a home granted beyond what it was asked for.
func (f *Fetcher) taken(e *covey.Extent, w dht.Want, p dht.Plan) {
	for _, b := range p.Blocks {
		if b.State == dht.Granted && !w.Need.Has(b.Slot) {
			f.readSpare(e, answer{BlockPlan: b, home: p.Home})
		}
	}
}

// readSpare begins a flight with its grant, or gives the grant back.
func (f *Fetcher) readSpare(e *covey.Extent, a answer) {
	buf := f.staging.trySpare(int(e.Blocks[a.Slot].Range().Len))
	if buf == nil {
		f.table.spawn(func() { f.planner.handBack(e, a) })
		return
	}
	fl, began, err := f.table.join(e, a.Slot, false, 0)
	if !began {
		buf.free()
		if err == nil {
			f.table.leave(fl) // it asks for itself, and is granted the same
		}
		return
	}
	q := newQuestion(e, askKey{}, wish{})
	q.plan, q.answered = dht.Plan{Home: a.home, Blocks: []dht.BlockPlan{a.BlockPlan}}, true
	close(q.done)
	fl.buf, fl.asked = buf, q
	f.volunteered.Add(1)
	go func() {
		defer f.volunteered.Add(-1)
		defer f.table.leave(fl)
		f.fly(fl)
	}()
}

// under returns the slots of the extent that are being fetched.
func (t *table) under(e *covey.Extent) covey.Bitmap {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b covey.Bitmap
	if len(t.flights) == 0 {
		return b
	}
	for slot, l := range e.Blocks {
		if t.flights[l] != nil {
			b = b.With(slot)
		}
	}
	return b
}
