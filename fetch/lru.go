package fetch

import "container/list"

// lru maps at most limit keys to values and forgets the one that was not used
// for longest. It is not safe for concurrent use; its owner's lock guards it.
type lru[K comparable, V any] struct {
	limit int
	order list.List // of *lruEntry, most recently used in front
	at    map[K]*list.Element
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](limit int) *lru[K, V] {
	return &lru[K, V]{limit: limit, at: make(map[K]*list.Element)}
}

// get returns the value of the key and counts as a use.
func (c *lru[K, V]) get(k K) (v V, ok bool) {
	el, ok := c.at[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(el)
	return el.Value.(*lruEntry[K, V]).value, true
}

func (c *lru[K, V]) put(k K, v V) {
	if el, ok := c.at[k]; ok {
		el.Value.(*lruEntry[K, V]).value = v
		c.order.MoveToFront(el)
		return
	}
	if c.order.Len() >= c.limit {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.at, last.Value.(*lruEntry[K, V]).key)
	}
	c.at[k] = c.order.PushFront(&lruEntry[K, V]{k, v})
}
