package origin

import (
	"bytes"
	"encoding/binary"
	"os"
	"syscall"
)

// direntBuffer is what one getdents call may fill: some 2,000 names.
const direntBuffer = 64 << 10

// readDirents calls take for each name of an open directory, a buffer at a time,
// and step after each buffer. It is here because the ReadDir of a file opened
// below an os.Root looks every entry up: 1.5 µs each, for each scan of a
// directory, where the type comes along for nothing.
func readDirents(dir *os.Root, take func(dirName), step func() error) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, direntBuffer)
	for {
		n, err := 0, error(nil)
		ctlErr := conn.Control(func(fd uintptr) { n, err = syscall.ReadDirent(int(fd), buf) })
		switch {
		case ctlErr != nil:
			return ctlErr
		case err == syscall.EINTR: //nolint:errorlint // straight from the kernel
			continue
		case err != nil:
			return err
		case n <= 0:
			return nil
		}
		eachDirent(dir, buf[:n], take)
		if err := step(); err != nil {
			return err
		}
	}
}

// Offsets in struct linux_dirent64: an inode and an offset of 8 bytes each, the
// record's length, the type, the name.
const (
	direntLen  = 16
	direntType = 18
	direntName = 19
)

// eachDirent takes apart what getdents filled in. Nothing in it is trusted: a
// FUSE server below may have written it.
func eachDirent(dir *os.Root, buf []byte, take func(dirName)) {
	for len(buf) > direntName {
		size := int(binary.NativeEndian.Uint16(buf[direntLen:]))
		if size <= direntName || size > len(buf) {
			return
		}
		name, _, _ := bytes.Cut(buf[direntName:size], []byte{0})
		kind := buf[direntType]
		buf = buf[size:]
		if d, ok := direntOf(dir, string(name), kind); ok {
			take(d)
		}
	}
}

// direntOf leaves out what is neither a directory, a file nor a link. A file
// system that tells no types is asked for each.
func direntOf(dir *os.Root, name string, kind byte) (dirName, bool) {
	if name == "" || name == "." || name == ".." {
		return dirName{}, false
	}
	switch kind {
	case syscall.DT_DIR:
		return dirName{name: name, dir: true}, true
	case syscall.DT_REG, syscall.DT_LNK:
		return dirName{name: name}, true
	case syscall.DT_UNKNOWN:
		info, err := dir.Lstat(name)
		return dirName{name: name, dir: err == nil && info.IsDir()}, err == nil
	}
	return dirName{}, false
}
