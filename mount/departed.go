package mount

import "time"

const (
	// departedAge is how long a path is remembered after a file was renamed away
	// from it: the kernel is told of the new name a moment after the answer, and
	// until then may open the old node under it.
	departedAge = 10 * time.Second
	// maxDeparted bounds the paths; beyond it the oldest knowledge is dropped, and
	// with it only a guard against requests of the last seconds.
	maxDeparted = 1024
)

// depart notes that a file was renamed away from a path.
func (w *writes) depart(path string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.departed) >= maxDeparted {
		for p, at := range w.departed {
			if now.Sub(at) > departedAge {
				delete(w.departed, p)
			}
		}
	}
	if len(w.departed) >= maxDeparted {
		clear(w.departed)
	}
	w.departed[path] = now
}

// hasDeparted reports whether a node with this path may be that of a file which has
// another name by now.
func (w *writes) hasDeparted(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.departed[path]
	return ok && time.Since(at) <= departedAge
}
