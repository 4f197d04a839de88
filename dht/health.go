package dht

import (
	"sync"
	"time"

	"github.com/covey-cache/covey"
)

// restFor is how long a home that did not answer is not asked first. It is
// short: the member table, not one peer's bad luck, says who is gone, and a
// peer that is skipped while it lives may cost a second read.
const restFor = 2 * time.Second

// maxResting bounds what is remembered; a cluster that loses more peers than
// that within two seconds has other troubles than a few wasted questions.
const maxResting = 1024

// health remembers who did not answer lately.
//
// mu is a leaf lock and guards until.
type health struct {
	mu    sync.Mutex
	until map[covey.PeerID]time.Time
}

func (h *health) resting(id covey.PeerID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.until[id]
	if ok && !time.Now().Before(t) {
		delete(h.until, id)
		ok = false
	}
	return ok
}

func (h *health) failed(id covey.PeerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.until == nil || len(h.until) >= maxResting {
		h.until = map[covey.PeerID]time.Time{}
	}
	h.until[id] = now.Add(restFor)
}

func (h *health) answered(id covey.PeerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.until, id)
}
