package origin

// PosixWindow returns the driver of a directory with a smaller window, so that a
// test of many windows needs few files.
func PosixWindow(dir string, names int) (Bucket, func() error) {
	b := newPosix(dir, Options{}.withDefaults())
	b.windowNames = names
	return b, b.close
}
