// Package covey holds the words that every other package shares: how a block is
// named before anyone has read it, how its bytes are known once somebody has,
// and the few errors that cross package borders.
//
// It imports no sibling and does no I/O. All types are plain values, safe to
// copy and to use from several goroutines.
//
// The names follow a chain. An [Object] is one file of an origin at one
// version. A [Locator] is one block of it; the CID of the locator's canonical
// bytes is the [BlockID]. Up to 64 blocks that are advertised together form an
// [Extent], whose [ExtentID] is the CID of its BlockIDs. What a block contains
// is named by its [Digest], which only a reader of the block can know.
package covey
