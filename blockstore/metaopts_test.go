package blockstore

import (
	"math/rand/v2"
	"testing"
	"time"
)

// raceEnabled says that the race detector slows everything down tenfold.
var raceEnabled bool

// metaSet is one way to run a store.
type metaSet struct {
	name string
	opts Options
}

// metaSets are the ways that the metamorphic test runs a store in: each form of
// blocks, each policy, budgets that hold all or a fourth of the data, group commits
// that come at once or only when asked for, indexes that flush and compact all the
// time, decoded blocks that never fit.
func metaSets(t testing.TB) []metaSet {
	const tight, tiny = 6 * testBlock, 64 << 10
	zstd, auto := compression(t, "zstd"), compression(t, "auto")
	k1, k21 := testKeys(t, 1), testKeys(t, 2, 1)
	sets := []metaSet{
		{"raw", Options{}},
		{"raw, the index flushes", Options{memtable: tiny}},
		{"raw, commits at once", Options{SyncEvery: time.Millisecond, memtable: tiny}},
		{"raw, too little room", Options{Budget: tight, memtable: tiny}},
		{"raw, lru", Options{Budget: tight, Policy: PolicyLRU, memtable: tiny}},
		{"zstd", Options{Compress: zstd, memtable: tiny}},
		{"auto, lru, commits at once", Options{Compress: auto, Budget: tight, Policy: PolicyLRU, SyncEvery: time.Millisecond, memtable: tiny}},
		{"key", Options{Keys: k1, DecodedBytes: testBlock, memtable: tiny}},
		{"zstd and rotated keys, too little room", Options{Compress: zstd, Keys: k21, Budget: tight, memtable: tiny}},
		{"auto and key, lru", Options{Compress: auto, Keys: k1, Budget: tight, Policy: PolicyLRU, DecodedBytes: 1, memtable: tiny}},
	}
	for i := range sets {
		o := &sets[i].opts
		if o.Budget == 0 {
			o.Budget = 1 << 30
		}
		if o.SyncEvery == 0 {
			o.SyncEvery = time.Hour
		}
	}
	return sets
}

// recode sometimes changes how new blocks are stored, for the store's next life.
func (w *world) recode() {
	if w.rng.IntN(8) != 0 {
		return
	}
	o := w.sets[w.rng.IntN(len(w.sets))].opts
	w.opts.Compress = o.Compress
	if w.opts.Keys == nil { // what is encrypted needs its keys from now on
		w.opts.Keys = o.Keys
	}
}

// pickOne returns one of a few.
func pickOne[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }
