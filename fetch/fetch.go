// Package fetch gets one block from the nearest copy that verifies: local disk,
// then a neighbour, then the origin, and it reads ahead.
//
// It declares the small interfaces it calls; package peer supplies the real
// store, directory, exchange and origins, so all of it is tested without a
// network.
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
	Drop(l covey.Locator) error
}

// Directory is what fetch needs of the directory.
type Directory interface {
	Resolve(ctx context.Context, w dht.Want) (dht.Plan, error)
	Done(ctx context.Context, home covey.PeerID, o dht.Outcome) error
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

// The methods of Fetcher, implemented in the files beside this one.
type fetcher interface {
	// Get holds block slot of e, wherever it comes from. Concurrent calls for
	// one block share one fetch, which has its own context and ends when the
	// last caller leaves; a caller whose ctx ends leaves at once. The caller
	// releases the handle. Errors wrap the covey kinds; ErrStale means that the
	// object changed.
	Get(ctx context.Context, e *covey.Extent, slot int) (blockstore.Handle, error)

	// Prefetch asks for the slots in the background, bounded, lowest first, and
	// returns at once. What is here already costs nothing. It reports how many
	// it accepted.
	Prefetch(e *covey.Extent, slots covey.Bitmap) int

	// Serve waits for the block when this peer is fetching it, else looks it up
	// in the store: what the exchange's server side calls. It never starts a
	// fetch. wait says whether to wait at all.
	Serve(ctx context.Context, l covey.Locator, wait bool) (blockstore.Handle, error)
}
