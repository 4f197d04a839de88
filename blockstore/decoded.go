package blockstore

import (
	"container/list"
	"runtime"
	"sync"

	"github.com/covey-cache/covey"
)

// defaultDecodedBytes is 16 blocks of the usual size: what 16 streams, or as many
// pools of small random reads, are at. Raw blocks need none of it, the page cache
// is theirs.
const defaultDecodedBytes int64 = 64 << 20

// decodedKey names a block's bytes. With the digest in it, a block that came again
// with other bytes is another.
type decodedKey struct {
	blockKey
	digest covey.Digest
}

// decodedCache keeps the plain bytes of blocks that are compressed or encrypted on
// disk, those used last, within a bound in bytes. Readers that want a block at once
// share one decoding of it. Besides the bound, the blocks take memory that readers
// are copying from, and that are being decoded: as many as there are processors.
type decodedCache struct {
	limit int64
	// turns has a place for each decoding that may run. More would not be
	// faster, and would hold two blocks of memory each.
	turns chan struct{}

	// mu is a leaf lock over what follows and over refs.
	//
	// INVARIANT: size is the sum of the lengths in blocks.
	// INVARIANT: a block in blocks has a reference for that.
	mu           sync.Mutex
	size         int64
	blocks       map[decodedKey]*decodedBlock
	used         list.List // of *decodedBlock, last used first
	hits, misses int64
}

type decodedBlock struct {
	key   decodedKey
	buf   *buffer
	ready chan struct{} // closes when err is set and buf is filled
	err   error
	refs  int
	at    *list.Element // nil when it is not in the cache
}

func newDecodedCache(limit int64) *decodedCache {
	return &decodedCache{
		limit: limit, blocks: make(map[decodedKey]*decodedBlock),
		turns: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// get returns the bytes of a block of n, decoded by load unless they are here. The
// caller gives them back with put, unless there was an error.
func (c *decodedCache) get(key decodedKey, n int, load func(plain []byte) error) (*decodedBlock, error) {
	c.mu.Lock()
	b := c.blocks[key]
	if b != nil {
		c.hits++
		b.refs++
		c.used.MoveToFront(b.at)
		c.mu.Unlock()
		<-b.ready
		return b, c.check(b)
	}
	c.misses++
	b = &decodedBlock{key: key, buf: getBuffer(n), ready: make(chan struct{}), refs: 2}
	c.blocks[key], b.at = b, c.used.PushFront(b)
	c.size += int64(n)
	for c.size > c.limit {
		c.forget(c.used.Back().Value.(*decodedBlock))
	}
	c.mu.Unlock()

	c.turns <- struct{}{}
	b.err = load(b.buf.b)
	<-c.turns
	close(b.ready)
	return b, c.check(b)
}

// check gives a block that could not be decoded back, and forgets it.
func (c *decodedCache) check(b *decodedBlock) error {
	if b.err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(b)
	c.unref(b)
	return b.err
}

func (c *decodedCache) put(b *decodedBlock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(b)
}

// forget takes a block out of the cache. mu is held.
func (c *decodedCache) forget(b *decodedBlock) {
	if b.at == nil {
		return
	}
	c.used.Remove(b.at)
	delete(c.blocks, b.key)
	c.size -= int64(len(b.buf.b))
	b.at = nil
	c.unref(b)
}

// unref gives one reference up, and with the last one the memory. mu is held.
func (c *decodedCache) unref(b *decodedBlock) {
	if b.refs--; b.refs == 0 {
		b.buf.free()
		b.buf = nil
	}
}

// decodedStats is what a cache was good for so far.
type decodedStats struct{ hits, misses, size int64 }

func (c *decodedCache) stats() decodedStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return decodedStats{c.hits, c.misses, c.size}
}
