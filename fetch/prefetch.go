package fetch

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

// queue holds what is to be prefetched, extent by extent in the order asked.
type queue struct {
	limit  int // slots waiting
	flying int // of them at once

	// wake has a value when there may be something to begin.
	wake chan struct{}

	// mu is a leaf lock; it guards all below.
	//
	// INVARIANT: waiting is the number of slots set in jobs.
	mu      sync.Mutex
	order   list.List // of *job
	jobs    map[covey.ExtentID]*list.Element
	waiting int
	begun   int // flights that prefetch holds
}

// job is what is wanted of one extent.
type job struct {
	extent *covey.Extent
	slots  covey.Bitmap
}

func newQueue(limit, flying int) *queue {
	return &queue{limit: limit, flying: flying, wake: make(chan struct{}, 1), jobs: make(map[covey.ExtentID]*list.Element)}
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

func (q *queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// add queues the slots, lowest first, while there is room, and returns how many
// of them are queued now.
func (q *queue) add(e *covey.Extent, slots covey.Bitmap) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	el := q.jobs[e.ID]
	if el == nil {
		if q.waiting >= q.limit || slots == 0 {
			return 0
		}
		el = q.order.PushBack(&job{extent: e})
		q.jobs[e.ID] = el
	}
	j := el.Value.(*job)
	n := 0
	for slot := range slots.Slots() {
		if !j.slots.Has(slot) {
			if q.waiting >= q.limit {
				break
			}
			j.slots = j.slots.With(slot)
			q.waiting++
		}
		n++
	}
	return n
}

// group is how many slots of an extent begin together, with one question to the
// home; groups that begin while a question is under way share the next. Fewer
// would cost the home a message a block, and waiting for more would leave the
// line idle.
const group = 8

// take removes the next slots to begin and counts them as begun: up to a group,
// and no less than a group, or all there is, so that each question is worth it.
func (q *queue) take() (*covey.Extent, covey.Bitmap) {
	q.mu.Lock()
	defer q.mu.Unlock()
	el := q.order.Front()
	if el == nil {
		return nil, 0
	}
	j := el.Value.(*job)
	n := min(group, j.slots.Len(), q.flying)
	if q.flying-q.begun < n {
		return nil, 0
	}
	var slots covey.Bitmap
	for slot := range j.slots.Slots() {
		if slots.Len() == n {
			break
		}
		slots = slots.With(slot)
	}
	j.slots &^= slots
	if j.slots == 0 {
		q.order.Remove(el)
		delete(q.jobs, j.extent.ID)
	}
	q.waiting -= n
	q.begun += n
	return j.extent, slots
}

// putBack queues slots in front that take gave out and that cannot begin now.
func (q *queue) putBack(e *covey.Extent, slots covey.Bitmap) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.begun -= slots.Len()
	el := q.jobs[e.ID]
	if el == nil {
		el = q.order.PushFront(&job{extent: e})
		q.jobs[e.ID] = el
	}
	j := el.Value.(*job)
	q.waiting += (slots &^ j.slots).Len()
	j.slots |= slots
}

// ended counts begun slots as done.
func (q *queue) ended(n int) {
	q.mu.Lock()
	q.begun -= n
	q.mu.Unlock()
	q.nudge()
}

// remove takes back slots that wait, and returns how many did.
func (q *queue) remove(id covey.ExtentID, slots covey.Bitmap) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	el := q.jobs[id]
	if el == nil {
		return 0
	}
	j := el.Value.(*job)
	gone := j.slots & slots
	j.slots &^= gone
	q.waiting -= gone.Len()
	if j.slots == 0 {
		q.order.Remove(el)
		delete(q.jobs, id)
	}
	return gone.Len()
}

// Forgo takes back what Prefetch was asked for and has not begun: whoever was to
// read it has gone elsewhere. What is under way goes on, as the origin bills it
// either way. Others who asked for the same slots lose them too; their reads fetch
// them then. It reports how many were taken back.
func (f *Fetcher) Forgo(e *covey.Extent, slots covey.Bitmap) int {
	n := f.queue.remove(e.ID, slots)
	f.metrics.prefetchForgone.Add(int64(n))
	return n
}

// Prefetch asks for the slots in the background, bounded, lowest first, and
// returns at once. What is here already, or will be read ahead by a plan, costs
// nothing. It reports how many it
// accepted: those that are queued or under way now, or here already. The others
// were dropped because the queue is full or the store has no room; asking again
// later may do. A prefetch reads from the origin only what a home grants.
func (f *Fetcher) Prefetch(e *covey.Extent, slots covey.Bitmap) int {
	slots &= e.All()
	here := f.store.Present(e) & slots
	here |= f.foreseen(e, slots&^here)
	missing := slots &^ here
	accepted := here.Len()
	if time.Now().UnixNano() >= f.full.Load() {
		n := f.queue.add(e, missing)
		f.metrics.prefetchQueued.Add(int64(n))
		accepted += n
		if n > 0 {
			f.queue.nudge()
		}
	}
	f.metrics.prefetchDropped.Add(int64(slots.Len() - accepted))
	return accepted
}

// prefetch begins what is queued until ctx ends.
func (f *Fetcher) prefetch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.queue.wake:
		}
		for ctx.Err() == nil {
			e, slots := f.queue.take()
			if e == nil || !f.beginGroup(e, slots) {
				break
			}
		}
	}
}

// beginGroup starts a flight for each slot, with one question for all of them.
// Memory comes before the question, so that no grant waits for it. It reports
// false when memory ran out; the rest is queued again then.
func (f *Fetcher) beginGroup(e *covey.Extent, slots covey.Bitmap) bool {
	here := f.store.Present(e) & slots
	if time.Now().UnixNano() < f.full.Load() {
		f.metrics.prefetchDropped.Add(int64((slots &^ here).Len()))
		here = slots
	}
	if here != 0 {
		f.queue.ended(here.Len())
	}
	var flights []*flight
	var need covey.Bitmap
	todo := slots &^ here
	for slot := range todo.Slots() {
		size := e.Blocks[slot].Range().Len
		buf := f.staging.trySpare(int(size))
		if buf == nil {
			break
		}
		todo = todo.Without(slot)
		fl, began, err := f.table.join(e, slot, false, 0)
		if err != nil || !began {
			// A demand is at it already; that is as good.
			buf.free()
			f.queue.ended(1)
			if err == nil {
				f.table.leave(fl)
			}
			continue
		}
		fl.buf = buf
		flights = append(flights, fl)
		if _, known := f.planner.recall(e, slot); !known {
			need = need.With(slot)
		}
	}
	f.launch(e, flights, need)
	if todo != 0 {
		f.queue.putBack(e, todo)
		return false
	}
	return true
}

// launch puts the question for the slots in need and starts the flights. The
// prefetcher stays with each to its end, so that a demand that joins and leaves
// does not end it.
func (f *Fetcher) launch(e *covey.Extent, flights []*flight, need covey.Bitmap) {
	var q *question
	if need != 0 {
		// When this fails the fetcher is stopping, and each flight finds out.
		q, _ = f.planner.put(e, -1, need, wish{prefetch: true, fresh: true})
	}
	for _, fl := range flights {
		if need.Has(fl.slot) {
			fl.asked = q
		}
		go func() {
			defer f.queue.ended(1)
			defer f.metrics.prefetchEnded.Add(1)
			defer f.table.leave(fl)
			f.fly(fl)
		}()
	}
}
