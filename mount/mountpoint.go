package mount

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxStacked is how many dead mounts are taken away from one directory: each
// agent that was killed over a dead mount leaves one more.
const maxStacked = 16

// mountInfo is one line of /proc/self/mountinfo.
type mountInfo struct {
	minor          uint32
	dir            string
	fstype, source string
}

// Mounted returns the type and source of the file system mounted on the
// directory, the topmost one; false when it is no mount point. It asks nothing
// of the file system, so a dead mount does not hang it.
func Mounted(dir string) (fstype, source string, ok bool) {
	info, ok := mountOn(resolve(dir))
	return info.fstype, info.source, ok
}

// Umount takes a mount of covey away, as root or by fusermount3: plainly, which
// is an error that wraps EBUSY while it is in use, or lazily, which leaves open
// files as they are. Mounts that are not covey's are refused.
func Umount(dir string, lazy bool) error {
	path := resolve(dir)
	info, ok := mountOn(path)
	if !ok {
		return fmt.Errorf("unmount %s: not a mount point (covey mounts lists them): %w", dir, unix.EINVAL)
	}
	if info.fstype != fsType {
		return fmt.Errorf("unmount %s: a %s file system is mounted there, not covey's; use umount: %w", dir, info.fstype, unix.EINVAL)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(path, flags)
	if errors.Is(err, unix.EPERM) {
		err = fusermountUmount(path, lazy)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		if below, ok := mountBelow(path); ok {
			return fmt.Errorf("unmount %s: %s is mounted below it; unmount that first: %w", dir, below, err)
		}
		return fmt.Errorf("unmount %s: files are open or a process works there (fuser -vm %s names them): %w", dir, dir, err)
	default:
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
}

// detach takes the mount away under open files and ends its connection, so that
// nothing waits for the daemon any more.
func detach(path string, number uint32) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	if err := fusermountUmount(path, true); err != nil {
		return err
	}
	// The owner of a mount may abort it, where fusectl is mounted.
	_ = os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", number), []byte("1"), 0)
	return nil
}

func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount", "/bin/fusermount3"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("fusermount3 is not installed (apt-get install fuse3, or dnf install fuse3)")
}

func fusermountUmount(path string, lazy bool) error {
	bin, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "-q", path}
	if lazy {
		args = []string{"-u", "-z", "-q", path}
	}
	if out, err := exec.Command(bin, args...).CombinedOutput(); err != nil {
		// With -q it says nothing but its exit code; busy is all that a mount
		// of ours, seen a moment ago, can be.
		if len(bytes.TrimSpace(out)) == 0 {
			return unix.EBUSY
		}
		return fmt.Errorf("%s: %s", filepath.Base(bin), bytes.TrimSpace(out))
	}
	return nil
}

// resolve makes the path absolute and follows symlinks without touching what it
// names itself, which may be a dead mount.
func resolve(path string) string {
	for range 40 { // as many symlinks as the kernel follows
		abs, err := filepath.Abs(path)
		if err != nil {
			return path
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return abs
		}
		path = filepath.Join(parent, filepath.Base(abs))
		link, err := os.Readlink(path)
		if err != nil {
			return path
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(parent, link)
		}
		path = link
	}
	return path
}

// mountOn returns the topmost mount on the resolved path.
func mountOn(path string) (info mountInfo, ok bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, false
	}
	defer f.Close()
	return findMount(f, path)
}

// findMount returns the last, which is the topmost, mount on the path.
func findMount(r io.Reader, path string) (info mountInfo, ok bool) {
	for m := range mountsIn(r) {
		if m.dir == path {
			info, ok = m, true
		}
	}
	return info, ok
}

// mountBelow returns the directory of a mount below the path: the one made last,
// which has none below it that is in the way.
func mountBelow(path string) (dir string, ok bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	defer f.Close()
	for m := range mountsIn(f) {
		if strings.HasPrefix(m.dir, path+"/") {
			dir, ok = m.dir, true
		}
	}
	return dir, ok
}

// mountsIn yields the lines of a mountinfo that can be read.
func mountsIn(r io.Reader) iter.Seq[mountInfo] {
	return func(yield func(mountInfo) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20) // overlay mounts have option lists of many KiB
		for lines.Scan() {
			if m, valid := parseMount(lines.Text()); valid && !yield(m) {
				return
			}
		}
	}
}

// parseMount reads "id parent major:minor root dir options [tags] - type source
// options".
func parseMount(line string) (mountInfo, bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	if !ok || len(f) < 6 || len(b) < 2 {
		return mountInfo{}, false
	}
	_, minor, _ := strings.Cut(f[2], ":")
	n, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return mountInfo{}, false
	}
	return mountInfo{minor: uint32(n), dir: unescape(f[4]), fstype: b[0], source: unescape(b[1])}, true
}

// unescape undoes the kernel's octal escapes of space, tab, newline and
// backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// prepare checks that the directory can be mounted on, so that what is wrong is
// said in one line, and takes a dead mount of ours away.
func prepare(path string, opts Options, log *slog.Logger) error {
	if err := bury(path, log); err != nil {
		return err
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the directory does not exist; make it first (mkdir -p %s)", path)
	case err != nil:
		return err
	case !st.IsDir():
		return errors.New("not a directory; name an empty directory")
	}
	if info, ok := mountOn(path); ok {
		return fmt.Errorf("already a mount point (%s); unmount it or name another directory", info.fstype)
	}
	entries, err := os.Open(path)
	if err != nil {
		return err
	}
	defer entries.Close()
	if _, err := entries.Readdirnames(1); err == nil {
		return errors.New("the directory is not empty; name an empty directory")
	}
	return canMount(opts)
}

// bury unmounts dead mounts of ours: those of agents that were killed. It asks
// with statfs, which the kernel never answers by itself: a stat of a dead mount's
// root succeeds for as long as its attributes are cached.
func bury(path string, log *slog.Logger) error {
	for range maxStacked {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); !errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		info, ok := mountOn(path)
		if !ok {
			return nil
		}
		if info.fstype != fsType {
			return fmt.Errorf("a dead %s mount is there; unmount it first (umount -l %s)", info.fstype, path)
		}
		if err := Umount(path, true); err != nil {
			return err
		}
		log.Warn("took a dead mount away", "dir", path)
	}
	return nil
}

// canMount checks for what mounting needs.
func canMount(opts Options) error {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return errors.New("/dev/fuse is missing; load it (modprobe fuse), or in a container pass it (--device /dev/fuse)")
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if _, err := fusermount(); err != nil {
		return err
	}
	if unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) != nil {
		return errors.New("/dev/fuse is not open to this user; open it (chmod 666 /dev/fuse), as package fuse3 does")
	}
	if opts.AllowOther && !userAllowOther() {
		return errors.New("letting other users read needs the line user_allow_other in /etc/fuse.conf")
	}
	return nil
}

func userAllowOther() bool {
	conf, err := os.ReadFile("/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(conf)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
