package dataset

import "iter"

// Watcher hears that what is known of a path changed: an entry became another,
// came (was.Kind is 0) or went (now.Kind is 0). It hears only of directories
// and names that were known before, from one goroutine for each listing or
// question, after those who waited for that have their answer. It may call the
// data set, but not Close, which waits for it.
type Watcher func(path string, was, now Entry)

// Watch calls w on every change until the returned function is called. A call
// under way at that moment may still run.
func (d *Dataset) Watch(w Watcher) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.nextID
	d.nextID++
	d.watchers[id] = w
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, id)
	}
}

func (d *Dataset) listeners() []Watcher {
	d.mu.Lock()
	defer d.mu.Unlock()
	ws := make([]Watcher, 0, len(d.watchers))
	for _, w := range d.watchers {
		ws = append(ws, w)
	}
	return ws
}

func (d *Dataset) announce(path string, was, now Entry) {
	for _, w := range d.listeners() {
		w(path, was, now)
	}
}

// announceDiff tells the watchers what differs between two complete listings of
// a directory.
func (d *Dataset) announceDiff(was, now *listing) {
	watchers := d.listeners()
	if len(watchers) == 0 {
		return
	}
	tell := func(name string, a, b Entry) {
		for _, w := range watchers {
			w(joinPath(now.path, name), a, b)
		}
	}
	nextOld, stopOld := iter.Pull2(was.view.Load().from(0))
	defer stopOld()
	nextNew, stopNew := iter.Pull2(now.view.Load().from(0))
	defer stopNew()
	a, i, aok := nextOld()
	b, j, bok := nextNew()
	for aok || bok {
		switch {
		case !bok || aok && a.name(i) < b.name(j):
			tell(a.name(i), a.entry(i), Entry{})
			a, i, aok = nextOld()
		case !aok || b.name(j) < a.name(i):
			tell(b.name(j), Entry{}, b.entry(j))
			b, j, bok = nextNew()
		default:
			if !a.same(i, b, j) {
				tell(a.name(i), a.entry(i), b.entry(j))
			}
			a, i, aok = nextOld()
			b, j, bok = nextNew()
		}
	}
}
