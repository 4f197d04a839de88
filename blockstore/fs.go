package blockstore

import "github.com/cockroachdb/pebble/v2/vfs"

// FS is the file system that a store can be given. The alias lets other
// packages pass one on without importing Pebble.
type FS = vfs.FS
