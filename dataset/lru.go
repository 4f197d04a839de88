package dataset

import "container/list"

// lru is a map bounded by the total cost of its values: what was used least
// recently goes. It is not safe for concurrent use.
type lru[K comparable, V any] struct {
	max, used int64
	order     list.List // of *lruItem[K, V], most recently used first
	items     map[K]*list.Element
}

type lruItem[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

func newLRU[K comparable, V any](max int64) *lru[K, V] {
	return &lru[K, V]{max: max, items: make(map[K]*list.Element)}
}

// get returns the value and makes it the most recently used.
func (l *lru[K, V]) get(key K) (V, bool) {
	el, ok := l.items[key]
	if !ok {
		var none V
		return none, false
	}
	l.order.MoveToFront(el)
	return el.Value.(*lruItem[K, V]).value, true
}

// put stores the value and makes room for it.
func (l *lru[K, V]) put(key K, value V, cost int64) {
	l.remove(key)
	l.items[key] = l.order.PushFront(&lruItem[K, V]{key, value, cost})
	l.reserve(cost)
}

func (l *lru[K, V]) remove(key K) {
	el, ok := l.items[key]
	if !ok {
		return
	}
	l.used -= l.order.Remove(el).(*lruItem[K, V]).cost
	delete(l.items, key)
}

// reserve charges for something that is kept elsewhere, or gives it back when
// cost is negative, and makes room. It reports whether everything fits.
func (l *lru[K, V]) reserve(cost int64) bool {
	l.used += cost
	for l.used > l.max && l.order.Len() > 0 {
		l.remove(l.order.Back().Value.(*lruItem[K, V]).key)
	}
	return l.used <= l.max
}
