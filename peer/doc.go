// Package peer is a running node: who it is, whom it admits, and how it speaks
// to the others.
//
// A [Network] is the side that faces the mesh. It owns the libp2p host, keeps
// the member table, and carries two kinds of traffic for the rooms above it:
// directory messages ([Network.Call]) and blocks ([Network.Fetch]). What is said
// on the wire, with every limit, is in PROTOCOL.md.
//
// Nobody is spoken to who has not proved membership: a record signed with the
// cluster key and bound to the peer ID that TLS authenticated. The check sits
// below the protocol muxer, so that it holds for protocols this package knows
// nothing of.
package peer
