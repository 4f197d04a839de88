package blockstore

import (
	"bytes"
)

// faulty lets the disk fail for a few operations. The store goes on, in whatever
// state that leaves it, until it is closed or power is lost.
func (w *world) faulty() {
	f := newFault(w.rng)
	w.faults.set(f)
	for range 3 + w.rng.IntN(6) {
		w.gone(f)
		switch w.rng.IntN(4) {
		case 0:
			if w.s.Sync() == nil {
				w.settle()
			}
		case 1:
			w.getFaulty(w.pick(), f)
		default:
			w.putFaulty(w.pick())
		}
	}
	w.faults.set(nil)
	w.struck += w.faults.struck
	w.gone(f)
	crashed := w.rng.IntN(2) == 0
	if crashed {
		w.fs = CrashMemFS(w.fs, w.rng.Uint64(), pickOne(w.rng, 0, 30, 100))
	}
	if w.store.Close() == nil && !crashed {
		w.settle()
	}
	w.open()
	w.resolve(crashed)
	w.checkAll()
}

// gone takes note of what a failed sync or read took, or what gave way.
func (w *world) gone(f *fault) {
	for _, m := range w.model {
		if !m.here || w.s.holds(blockKey{m.l.Object.ID(), uint32(m.l.Index)}) {
			continue
		}
		// A block that cannot be read under a handle takes its object along.
		if !m.maybe && !f.reads && (!w.lru() || w.pins[m.l.Object]) {
			w.t.Fatalf("%s was durable and is gone after %+v", m.l, f)
		}
		m.here, m.maybe = false, true
	}
}

func (w *world) putFaulty(m *modelBlock) {
	err := w.store.Put(m.l, m.place(m.moved), w.sums[m.l], w.bytes[m.l])
	if err == nil && !m.here {
		m.here, m.maybe, m.moving = true, true, true
	}
}

func (w *world) getFaulty(m *modelBlock, f *fault) {
	h, err := w.s.Get(m.l)
	if err == nil {
		defer h.Release()
		b := make([]byte, h.Len())
		if n, err := h.ReadAt(b, 0); err == nil && !bytes.Equal(b[:n], w.bytes[m.l]) {
			w.t.Fatalf("block %s has other bytes than were admitted", m.l)
		}
	}
	if f.reads && m.here && !w.s.holds(blockKey{m.l.Object.ID(), uint32(m.l.Index)}) {
		m.here, m.maybe = false, true
	}
}
