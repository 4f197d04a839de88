package blockstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
)

// The names in a cache directory. FORMAT.md describes each.
const (
	nameFormat = "FORMAT"
	nameLock   = "LOCK"
	nameData   = "data"
	nameIndex  = "index"
	// nameBad is where an index goes that cannot be read; one is kept, for
	// whoever wants to find out why.
	nameBad = "index.bad"
	// nameDamaged is left by a process that found damage in the index while
	// it ran; the next one starts cold.
	nameDamaged = "index.damaged"
	// nameProbe is in data and index for a moment of each start, and of each try of
	// a tier that failed.
	nameProbe = "probe"
	// nameTrash is data whose index is gone, on its way out.
	nameTrash = "trash"
	// nameStaging is not the store's: mounts that may write stage files there.
	nameStaging = "staging"
)

// formatVersion is the version of everything in the directory. Version 1 has no
// compressed or encrypted blocks and is otherwise the same; a store of it becomes
// one of this version when it is opened.
const (
	formatVersion = 2
	formatOldest  = 1
)

const formatPrefix = "covey-blockstore "

// isOSError reports whether the operating system refused something, as against
// files that say the wrong thing. A missing file is the latter here: Pebble
// names the files it needs.
func isOSError(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && errno != syscall.ENOENT
}

// layout is a cache directory.
type layout struct {
	fs  vfs.FS
	os  bool // fs is the operating system's
	dir string
}

func (l layout) path(name string) string { return l.fs.PathJoin(l.dir, name) }

func (l layout) exists(name string) bool {
	_, err := l.fs.Stat(l.path(name))
	return err == nil
}

// prepare makes the directory when it is missing.
func (l layout) prepare() error {
	if _, err := l.fs.Stat(l.dir); err == nil {
		return nil
	}
	if err := l.fs.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	if l.os {
		return nil // its name is synced with FORMAT, below
	}
	// In a simulated file system the whole path must survive.
	for dir := l.dir; ; dir = l.fs.PathDir(dir) {
		if err := syncDir(l.fs, l.fs.PathDir(dir)); err != nil {
			return err
		}
		if up := l.fs.PathDir(dir); up == l.fs.PathDir(up) {
			return nil
		}
	}
}

// lock takes the directory for this process. The file has the process's ID, so
// that the next one can say who is in its way.
func (l layout) lock() (io.Closer, error) {
	if !l.os {
		c, err := l.fs.Lock(l.path(nameLock))
		if errors.Is(err, syscall.EAGAIN) {
			return nil, l.taken(os.Getpid())
		}
		return c, err
	}
	f, err := os.OpenFile(l.path(nameLock), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			b, _ := io.ReadAll(io.LimitReader(f, 32))
			pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			return nil, l.taken(pid)
		}
		return nil, err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (l layout) taken(pid int) error {
	return fmt.Errorf("it is in use by process %d; stop that agent or give this one its own directory: %w", pid, covey.ErrUnavailable)
}

// check reads the format version, or writes it into a directory that is new.
// The version is durable before anything else is made, so that a directory with
// files but without one is somebody else's.
func (l layout) check() error {
	f, err := l.fs.Open(l.path(nameFormat))
	if errors.Is(err, fs.ErrNotExist) {
		if err := l.claim(); err != nil {
			return err
		}
		// Whatever is here lost its version, so nobody knows how to read it.
		return l.quarantine()
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return err
	}
	line := strings.TrimSuffix(string(b), "\n")
	v, found := strings.CutPrefix(line, formatPrefix)
	n, err := strconv.Atoi(v)
	switch damaged := !found || err != nil; {
	case damaged && l.exists(nameIndex) && l.exists(nameData):
		// Only the version is lost, and with it how to read the rest. What else is
		// here is looked at before anything is moved.
		if err := l.claim(); err != nil {
			return err
		}
		return l.quarantine()
	case damaged || n < formatOldest || n > formatVersion:
		return fmt.Errorf("its format is %q and this covey knows %q and older; empty the directory or use another: %w",
			line, formatPrefix+strconv.Itoa(formatVersion), covey.ErrInvalid)
	case n < formatVersion:
		return l.writeFormat()
	}
	return nil
}

func (l layout) claim() error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n {
		case nameLock, nameFormat, nameFormat + ".new", nameData, nameIndex, nameBad, nameDamaged, nameProbe, nameTrash, nameStaging, "lost+found":
		default:
			return fmt.Errorf("it holds %q, which is not a cache; give an empty directory: %w", n, covey.ErrInvalid)
		}
	}
	return l.writeFormat()
}

// writeFormat says that the directory is of this version.
func (l layout) writeFormat() error {
	tmp := l.path(nameFormat + ".new")
	f, err := l.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(formatPrefix + strconv.Itoa(formatVersion) + "\n"))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if l.os {
		if err := os.Chmod(tmp, 0o600); err != nil {
			return err
		}
	}
	if err := l.fs.Rename(tmp, l.path(nameFormat)); err != nil {
		return err
	}
	return errors.Join(syncDir(l.fs, l.dir), syncDir(l.fs, l.fs.PathDir(l.dir)))
}

// makeDirs makes the directories of data and index.
func (l layout) makeDirs() error {
	for _, n := range [...]string{nameData, nameIndex} {
		if l.os {
			// A link planted here would lead writes out of the cache.
			if info, err := os.Lstat(l.path(n)); err == nil && !info.IsDir() {
				return fmt.Errorf("%s is not a directory: %w", l.path(n), covey.ErrCorrupt)
			}
		}
		if err := l.fs.MkdirAll(l.path(n), 0o700); err != nil {
			return err
		}
	}
	return syncDir(l.fs, l.dir)
}

// quarantine moves the index aside and the data out of the way. Data without its
// index is of no use: the files do not say what they hold.
func (l layout) quarantine() error {
	if l.exists(nameIndex) {
		if err := l.fs.RemoveAll(l.path(nameBad)); err != nil {
			return err
		}
		if err := l.fs.Rename(l.path(nameIndex), l.path(nameBad)); err != nil {
			return err
		}
	}
	if err := l.discard(); err != nil {
		return err
	}
	if err := l.fs.Remove(l.path(nameDamaged)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(l.fs, l.dir)
}

// indexFormatPrefix begins the name of the empty file by which Pebble says, in its last
// three digits, which format its files have.
const indexFormatPrefix = markerPrefix + "format-version."

// checkIndex refuses an index that a later covey wrote, before it is taken for a
// damaged one and moved aside.
func (l layout) checkIndex() error {
	names, err := l.fs.List(l.path(nameIndex))
	if err != nil {
		return err
	}
	for _, n := range names {
		rest, is := strings.CutPrefix(n, indexFormatPrefix)
		_, version, cut := strings.Cut(rest, ".")
		if v, err := strconv.Atoi(version); is && cut && err == nil && v > int(indexFormat) {
			return fmt.Errorf("its index has format %d, of a later covey, and this one knows %d; use that covey, or another directory: %w",
				v, indexFormat, covey.ErrInvalid)
		}
	}
	return nil
}

// discard moves the data into the trash, which the store empties in the
// background. What an earlier start left there goes now.
func (l layout) discard() error {
	if !l.exists(nameData) {
		return nil
	}
	if err := l.fs.RemoveAll(l.path(nameTrash)); err != nil {
		return err
	}
	return l.fs.Rename(l.path(nameData), l.path(nameTrash))
}

// indexSlack is what opening the index writes besides the logs it replays: a
// manifest, options, a new log, in small change.
const indexSlack = 1 << 20

// probe finds out whether data and index can be written. Pebble does not say so: when it cannot write what it replays from its log, it tries for ever.
func (l layout) probe() error {
	var need int64 = indexSlack
	names, err := l.fs.List(l.path(nameIndex))
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			if info, err := l.fs.Stat(l.fs.PathJoin(l.path(nameIndex), n)); err == nil {
				need += info.Size()
			}
		}
	}
	if du, err := l.fs.GetDiskUsage(l.dir); err == nil && int64(du.AvailBytes) < need {
		return fmt.Errorf("%d bytes are free and the index needs %d: %w", du.AvailBytes, need, covey.ErrFull)
	}
	for _, dir := range [...]string{nameData, nameIndex} {
		name := l.fs.PathJoin(l.path(dir), nameProbe)
		f, err := l.fs.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, unit))
		if err := errors.Join(err, f.Sync(), f.Close(), l.fs.Remove(name)); err != nil {
			return err
		}
	}
	return nil
}

// noteDamage makes the next start a cold one.
func (l layout) noteDamage() error {
	f, err := l.fs.Create(l.path(nameDamaged), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), syncDir(l.fs, l.dir))
}
