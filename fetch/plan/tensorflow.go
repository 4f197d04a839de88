package plan

import (
	"fmt"
	"iter"

	"github.com/covey-cache/covey"
)

// Shard returns what tf.data's Dataset.shard(shards, index) keeps of n elements:
// the positions index, index+shards and so on. It is how a TensorFlow job deals
// files to its workers. An index outside the shards is ErrInvalid.
func Shard(n, shards, index uint64) (iter.Seq[uint64], error) {
	if shards == 0 || index >= shards {
		return nil, fmt.Errorf("shard %d of %d: %w", index, shards, covey.ErrInvalid)
	}
	return func(yield func(uint64) bool) {
		for i := index; i < n && yield(i); {
			if n-i <= shards { // the sum could overflow
				return
			}
			i += shards
		}
	}, nil
}

// Record is one record of one file, both counted from 0.
type Record struct {
	File  int
	Index uint64
}

// Interleave returns the order in which tf.data's Dataset.interleave with a fixed
// cycle_length and block_length reads files that hold so many records each:
// block records from each of cycle files in turn, a finished file's place being
// taken by the next file when its turn comes. A file with no records uses up a
// turn.
//
// It is the same with and without num_parallel_calls while the data set is
// deterministic, which is TensorFlow's default. One that is not may give records
// earlier than this, but only from files that are open at that moment, so the
// order remains the best advice. Memory is one counter for each place in the
// cycle. A cycle or block of less than 1 is ErrInvalid.
func Interleave(records []uint64, cycle, block int) (iter.Seq[Record], error) {
	if cycle < 1 || block < 1 {
		return nil, fmt.Errorf("interleave with a cycle of %d and blocks of %d: %w", cycle, block, covey.ErrInvalid)
	}
	return func(yield func(Record) bool) {
		// More places than files stay empty, and empty places are passed over.
		places := make([]Record, min(cycle, len(records)))
		for i := range places {
			places[i].File = -1
		}
		for next, open, at := 0, 0, 0; next < len(records) || open > 0; at = (at + 1) % len(places) {
			p := &places[at]
			if p.File < 0 {
				if next == len(records) {
					continue
				}
				*p = Record{File: next}
				next++
				open++
			}
			for range block {
				if p.Index == records[p.File] {
					p.File = -1
					open--
					break
				}
				if !yield(*p) {
					return
				}
				p.Index++
			}
		}
	}, nil
}
