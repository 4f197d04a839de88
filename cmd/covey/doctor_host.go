package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// checkHost looks at what covey needs of the machine.
func checkHost() []finding {
	return []finding{checkFuse(), checkFusermount(), checkPassthrough(), checkFiles(), checkClock()}
}

func checkFuse() finding {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return finding{fail, "/dev/fuse is missing", "load it with modprobe fuse, or give the container the device"}
	case err != nil:
		return finding{fail, "/dev/fuse cannot be opened: " + err.Error(), "allow this user or container to read and write it"}
	}
	f.Close()
	return finding{ok, "/dev/fuse can be opened", ""}
}

func checkFusermount() finding {
	path, err := exec.LookPath("fusermount3")
	switch {
	case err == nil:
		return finding{ok, "fusermount3 is " + path, ""}
	case hasSysAdmin():
		return finding{ok, "fusermount3 is missing and not needed: this user may mount", ""}
	}
	return finding{fail, "fusermount3 is missing", "install the package fuse3"}
}

// checkPassthrough looks whether the kernel may read cached files by itself:
// it came with Linux 6.9 and wants CAP_SYS_ADMIN.
func checkPassthrough() finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return finding{warn, "kernel version is unknown: " + err.Error(), ""}
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := kernelVersion(release)
	if major < 6 || (major == 6 && minor < 9) {
		return finding{warn, "kernel " + release + " has no FUSE passthrough: each cached read goes through the agent", "run Linux 6.9 or later"}
	}
	if !hasSysAdmin() {
		return finding{warn, "kernel " + release + " has FUSE passthrough, but this user may not use it", "run the agent with CAP_SYS_ADMIN"}
	}
	return finding{ok, "kernel " + release + " has FUSE passthrough and this user may use it", ""}
}

// kernelVersion reads the first two numbers of a release like 6.18.3-generic.
func kernelVersion(release string) (major, minor int) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	digits := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(parts[1])
	}
	minor, _ = strconv.Atoi(parts[1][:digits])
	return major, minor
}

func hasSysAdmin() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// wantFiles is the descriptors of a busy agent: one for each file that is open
// on a mount, and a few for each peer.
const wantFiles = 65536

func checkFiles() finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return finding{warn, "limit of open files is unknown: " + err.Error(), ""}
	}
	if l.Max < wantFiles { // Go raises the soft limit to the hard one by itself
		return finding{warn, fmt.Sprintf("at most %d files may be open", l.Max),
			fmt.Sprintf("raise the hard limit to %d (ulimit -Hn, LimitNOFILE=)", wantFiles)}
	}
	return finding{ok, fmt.Sprintf("%d files may be open", l.Max), ""}
}

// checkClock asks the kernel whether its clock is disciplined: member records
// and cache ages carry times that other hosts compare with theirs.
func checkClock() finding {
	const unsynchronised = 0x40 // STA_UNSYNC
	var t unix.Timex
	_, err := unix.Adjtimex(&t)
	switch {
	case time.Now().Year() < 2025:
		return finding{fail, "the clock says " + time.Now().Format(time.DateOnly), "set it, and run chrony or another NTP client"}
	case err != nil:
		return finding{warn, "state of the clock is unknown: " + err.Error(), ""}
	case t.Status&unsynchronised != 0:
		return finding{warn, "the clock is not synchronised", "run chrony or another NTP client"}
	}
	return finding{ok, "the clock is synchronised", ""}
}

// stacked are file systems on which a file is not passed through, whatever they
// lie on themselves. An overlay, as of a container, is none: a mount asks the
// kernel for one file system between itself and the disk.
var stacked = map[int64]string{0x65735546: "fuse"}

// minFree is the free disk below which a cache is hardly worth having: a
// thousand blocks.
const minFree = 4 << 30

// checkCache looks at the file system of the cache directory. A directory that
// is missing is judged by its parent, and not made.
func checkCache(dir string) []finding {
	place := dir
	for place != "/" {
		if _, err := os.Stat(place); !errors.Is(err, os.ErrNotExist) {
			break
		}
		place = filepath.Dir(place)
	}
	if err := unix.Access(place, unix.W_OK|unix.X_OK); err != nil {
		return []finding{{fail, fmt.Sprintf("cache %s: %s cannot be written: %v", dir, place, err), "give another --cache, or the right to write there"}}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(place, &fs); err != nil {
		return []finding{{fail, fmt.Sprintf("cache %s: %v", dir, err), "give another --cache"}}
	}
	found := []finding{{ok, "cache " + dir + " can be written", ""}}
	if name, bad := stacked[int64(fs.Type)]; bad { //nolint:unconvert // 32 bits on some architectures
		found = append(found, finding{warn, fmt.Sprintf("cache %s is on %s, which passthrough cannot use", dir, name), "put --cache on a disk's own file system (ext4, xfs) or tmpfs"})
	} else {
		found = append(found, finding{ok, "cache " + dir + " is on a file system that passthrough can use", ""})
	}
	free := int64(fs.Bavail) * int64(fs.Bsize) //nolint:unconvert // as above
	if free < minFree {
		return append(found, finding{warn, fmt.Sprintf("cache %s: %s of disk are free", dir, formatSize(free)), "make room, or give another --cache"})
	}
	return append(found, finding{ok, fmt.Sprintf("cache %s: %s of disk are free", dir, formatSize(free)), ""})
}
