package blockstore

import (
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// MemFS returns an empty file system in memory for [Options.FS]. It remembers
// what was synced, so that [CrashMemFS] can lose the rest. Holes take memory:
// it is for objects of megabytes.
func MemFS() *vfs.MemFS { return vfs.NewCrashableMem() }

// CrashMemFS returns what a power loss at this moment leaves of a file system
// made by [MemFS]: all that was synced, and of the rest each 4 KiB and each name
// with a likelihood of keep percent. The same seed and state give the same
// result. The original goes on unharmed.
func CrashMemFS(fs *vfs.MemFS, seed uint64, keep int) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: keep,
		RNG:                 rand.New(rand.NewPCG(seed, 0)),
	})
}
