package blockstore

import "os"

// File returns the file that has the block's bytes as they are, and where they
// begin in it, so that the kernel can send them without a copy through this
// process. ok is false when there is no such file, or the bytes are compressed or
// encrypted in it: then ReadAt is the only way. The file is the store's: it is open until Release, and not to be moved in or closed.
func (h *handle) File() (f *os.File, off int64, ok bool) {
	f, ok = h.f.dataFile.(*os.File)
	return f, h.off, ok && h.r.coding == nil
}
