// Package fetch gets one block from the nearest copy that verifies: local disk,
// then a neighbour, then the origin, and it reads ahead.
//
// It declares the small interfaces it calls; package peer supplies the real
// store, directory, exchange and origins, so all of it is tested without a
// network.
//
// One block is fetched by one flight at a time, whoever waits for it: readers
// of this host, peers that were told to wait for this one, and the prefetcher.
// A flight owns one buffer of the bounded staging area, walks from source to
// source until bytes verify, hands them to all who wait, tells the home, and
// gives them to the store.
package fetch

import (
	"context"
	"io"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/blockstore"
	"github.com/covey-cache/covey/dht"
)

// Store is what fetch needs of the block store.
type Store interface {
	Get(l covey.Locator) (blockstore.Handle, error)
	Present(e *covey.Extent) covey.Bitmap
	Put(l covey.Locator, p covey.Place, d covey.Digest, data []byte) error
	// PutReplica is Put for a block that came from a neighbour, one of so many
	// holders.
	PutReplica(l covey.Locator, p covey.Place, d covey.Digest, data []byte, holders int) error
	Drop(l covey.Locator) error
}

// Directory is what fetch needs of the directory.
type Directory interface {
	Resolve(ctx context.Context, w dht.Want) (dht.Plan, error)
	Done(ctx context.Context, home covey.PeerID, o dht.Outcome) error
	// Progress reports the granted reads under way.
	Progress(ctx context.Context, reads []dht.Reading) error
	Announce(h dht.Have)
}

// Exchange reads blocks from neighbours.
type Exchange interface {
	// Fetch reads the whole block into buf, whose length is the block's. With
	// wait, the peer is asked to hold the request until a read of its own that
	// is under way has ended. ErrNotFound when the peer does not have it,
	// ErrUnavailable when it cannot be reached or stalls.
	Fetch(ctx context.Context, from covey.PeerID, l covey.Locator, buf []byte, wait bool) error
}

// Origins opens ranges of objects at their origin, whichever it is.
// origin.Bucket.Get says what the reader promises.
type Origins interface {
	Open(ctx context.Context, o covey.Object, r covey.Range) (io.ReadCloser, error)
}

// Source says where the bytes of a fetch came from.
type Source uint8

// The sources, as the metric label of covey_fetch_bytes_total has them.
const (
	Local Source = iota
	Neighbour
	Origin
)

// String returns the label value.
func (s Source) String() string { return [...]string{"local", "neighbour", "origin"}[s] }
