package blockstore

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/covey-cache/covey"
)

// admitKeys sees to it that every block can be decrypted, and notes in the index
// under which key new ones will be: before the first of them is written.
func (s *tier) admitKeys() error {
	noted := map[KeyID]bool{}
	_, err := s.index.scan([]byte{keyCipher}, []byte{keyCipher + 1}, -1, func(k, _ []byte) error {
		if len(k) != 1+len(KeyID{}) {
			return badRecord("key", k)
		}
		noted[KeyID(k[1:])] = true
		return nil
	})
	if err != nil {
		return err
	}
	for id := range noted {
		if s.coder.keys.has(id) {
			continue
		}
		if err := s.missKey(id); err != nil {
			return err
		}
	}
	if s.coder.keys == nil || noted[s.coder.keys.ids[0]] {
		return nil
	}
	if n := s.table.objects - s.table.coded(); n > 0 {
		s.log.Warn("objects that were cached before the key was given stay as they are; evict them to have them encrypted",
			"tier", s.opts.Dir, "objects", n)
	}
	id := s.coder.keys.ids[0]
	return s.index.write(func(b *pebble.Batch) error {
		return b.Set(append([]byte{keyCipher}, id[:]...), []byte{recordVersion}, nil)
	})
}

// missKey fails when a block is encrypted under a key that is not there; when none
// is any more, the key is forgotten. It reads all blocks' records.
func (s *tier) missKey(id KeyID) error {
	n := 0
	_, err := s.index.scan([]byte{keyBlock}, []byte{keyBlock + 1}, -1, func(_, v []byte) error {
		r, err := parseRecord(v)
		if err == nil && r.coding != nil && r.coding.codec&codecSealed != 0 && r.coding.key == id {
			n++
		}
		return nil // a record that cannot be read is a block that will be dropped
	})
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d blocks are encrypted under the cache key %s and the keys given are %s; add that key as another line to the key file, or empty the directory: %w",
			n, id, s.coder.keys.names(), covey.ErrInvalid)
	}
	return s.index.write(func(b *pebble.Batch) error {
		return b.Delete(append([]byte{keyCipher}, id[:]...), nil)
	})
}

// coded counts the objects that have a coded block.
func (t *table) coded() int {
	n := 0
	for _, slab := range t.slab {
		for i := range slab {
			if slab[i].flags&flagCoded != 0 {
				n++
			}
		}
	}
	return n
}
