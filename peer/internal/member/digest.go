package member

import (
	"encoding/binary"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/wire"
)

const (
	entryLen = 16 // of a digest: key and seq
	keyLen   = 8
	// maxAnswer is how many bytes of records go into one answer; the frame's
	// limit is 1 MiB.
	maxAnswer = 512 << 10
)

// Summary is a number that two tables share when they hold the same records and
// revocations.
func (t *Table) Summary(now time.Time) uint64 {
	var sum uint64
	t.each(now, func(e *entry) { sum ^= mix(e.key + mix(e.Seq)) })
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.revoked {
		sum ^= mix(^key(p))
	}
	return sum
}

// mix is the finaliser of splitmix64: every bit of x changes half of the result.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// each calls f for every record that others should know: members, and those that
// have left until the record of it ends.
func (t *Table) each(now time.Time, f func(*entry)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.members {
		if e.msg != nil {
			f(e)
		}
	}
	for _, e := range t.gone {
		if e.Left && e.ends().After(now) {
			f(e)
		}
	}
}

// Digest lists what the table holds.
func (t *Table) Digest(now time.Time) []byte {
	var b []byte
	t.each(now, func(e *entry) {
		b = binary.BigEndian.AppendUint64(b, e.key)
		b = binary.BigEndian.AppendUint64(b, e.Seq)
	})
	return b
}

// Compare holds another table's digest against this one: the records that the
// other lacks or has older, whether there are more of them than fit an answer,
// and the keys of those that this one lacks.
func (t *Table) Compare(digest []byte, now time.Time) (records []*wire.SignedRecord, more bool, want []byte, err error) {
	if len(digest)%entryLen != 0 || len(digest) > 2*t.max*entryLen {
		return nil, false, nil, fmt.Errorf("member digest of %d bytes: %w", len(digest), covey.ErrInvalid)
	}
	theirs := make(map[uint64]uint64, len(digest)/entryLen)
	for ; len(digest) > 0; digest = digest[entryLen:] {
		theirs[binary.BigEndian.Uint64(digest)] = binary.BigEndian.Uint64(digest[keyLen:])
	}
	size := 0
	t.each(now, func(e *entry) {
		seq, has := theirs[e.key]
		if !has || seq < e.Seq {
			if more = more || size > maxAnswer; !more {
				m := e.aged(now)
				size += proto.Size(m)
				records = append(records, m)
			}
		}
		if has && seq <= e.Seq {
			delete(theirs, e.key)
		}
	})
	for k := range theirs {
		want = binary.BigEndian.AppendUint64(want, k)
	}
	return records, more, want, nil
}

// Records returns the records with the given keys, as many as fit a message.
func (t *Table) Records(keys []byte, now time.Time) ([]*wire.SignedRecord, error) {
	if len(keys)%keyLen != 0 || len(keys) > 2*t.max*keyLen {
		return nil, fmt.Errorf("%d bytes of record keys: %w", len(keys), covey.ErrInvalid)
	}
	wanted := make(map[uint64]bool, len(keys)/keyLen)
	for ; len(keys) > 0; keys = keys[keyLen:] {
		wanted[binary.BigEndian.Uint64(keys)] = true
	}
	var records []*wire.SignedRecord
	size := 0
	t.each(now, func(e *entry) {
		if wanted[e.key] && size <= maxAnswer {
			m := e.aged(now)
			size += proto.Size(m)
			records = append(records, m)
		}
	})
	return records, nil
}

// aged returns the record as it is passed on: with the age that it has by now.
func (e *entry) aged(now time.Time) *wire.SignedRecord {
	return &wire.SignedRecord{
		Record: e.msg.Record, Signature: e.msg.Signature, Grant: e.msg.Grant,
		AgeMs: uint64(max(now.Sub(e.born).Milliseconds(), 0)),
	}
}
