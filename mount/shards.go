package mount

import (
	"sync"
	"sync/atomic"
)

// shardCount spreads the look-up of an open handle, which every read does, over
// as many locks as go-fuse has reader goroutines at most.
const shardCount = 16

// shards maps file-handle numbers to what they stand for.
type shards[T any] struct {
	last  atomic.Uint64
	parts [shardCount]struct {
		mu sync.RWMutex // leaf; guards m
		m  map[uint64]T
	}
}

// add stores v and returns its number, which is never 0 or used twice.
func (s *shards[T]) add(v T) uint64 {
	id := s.last.Add(1)
	p := &s.parts[id%shardCount]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[uint64]T{}
	}
	p.m[id] = v
	return id
}

func (s *shards[T]) get(id uint64) (T, bool) {
	p := &s.parts[id%shardCount]
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, ok := p.m[id]
	return v, ok
}

// take removes and returns what the number stands for.
func (s *shards[T]) take(id uint64) (T, bool) {
	p := &s.parts[id%shardCount]
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.m[id]
	delete(p.m, id)
	return v, ok
}

// drain removes and returns everything.
func (s *shards[T]) drain() []T {
	var all []T
	for i := range s.parts {
		p := &s.parts[i]
		p.mu.Lock()
		for _, v := range p.m {
			all = append(all, v)
		}
		p.m = nil
		p.mu.Unlock()
	}
	return all
}
