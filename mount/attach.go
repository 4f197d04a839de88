package mount

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fsName is the source in /proc/mounts, and "fuse." in front of it the type.
const (
	fsName = "covey"
	fsType = "fuse." + fsName
)

// What is asked of the kernel.
const (
	// maxRequest is the largest request: 1 MiB doubles what the daemon serves
	// against the default of 128 KiB, and 4 MiB add nothing.
	maxRequest = 1 << 20
	// readahead keeps 8 requests in flight for a sequential reader.
	readahead = 8 << 20
	// background is how many readahead requests may be in flight at once: 8
	// streams of 8.
	background = 64
	// stackDepth lets a cache on overlayfs, as in a container, back the files.
	// The price is that no overlayfs can be stacked on the mount.
	stackDepth = 2
)

// mountOptions are what go-fuse is told of a mount.
func mountOptions(opts Options, log *slog.Logger) fuse.MountOptions {
	o := fuse.MountOptions{
		AllowOther:    opts.AllowOther,
		MaxBackground: background,
		MaxWrite:      maxRequest,
		MaxReadAhead:  readahead,
		FsName:        fsName,
		Name:          fsName,
		DisableXAttrs: opts.Describe == nil,
		// The answers are copied into go-fuse's own buffers; a splice of them
		// costs as much and falls back silently.
		DisableSplice:            true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		MaxStackDepth:            stackDepth,
		Options:                  []string{"default_permissions"},
		Logger:                   slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		PanicHandler:             panicked(log),
	}
	if opts.Write != nil {
		// An open that cuts an object is one request, which says so.
		o.ExtraCapabilities = fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DIRECT_IO_ALLOW_MMAP
	}
	return o
}

// attach mounts the tree: directly where that is allowed, by fusermount3
// otherwise. device is a descriptor of the mount when there is a holder to keep it
// for.
func attach(t *tree, dir string, opts Options, log *slog.Logger) (s *fuse.Server, device *os.File, err error) {
	o := mountOptions(opts, log)
	var flags uintptr = unix.MS_NOSUID | unix.MS_NODEV
	if opts.Write == nil {
		flags |= unix.MS_RDONLY
	}
	if os.Geteuid() == 0 {
		if opts.Keeper != nil {
			s, device, err = mountKept(t, dir, o, flags)
		} else {
			direct := o
			direct.DirectMountStrict = true
			direct.DirectMountFlags = flags
			s, err = fuse.NewServer(t, dir, &direct)
		}
		if err == nil || !errors.Is(err, unix.EPERM) {
			return s, device, err
		}
		if _, lookErr := fusermount(); lookErr != nil {
			return nil, nil, fmt.Errorf("%w: it needs CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN --device /dev/fuse) or fusermount3", err)
		}
	}
	o.Options = append(o.Options, "nosuid", "nodev")
	if opts.Write == nil {
		o.Options = append(o.Options, "ro")
	}
	s, err = fuse.NewServer(t, dir, &o)
	if err != nil {
		// fusermount3 writes its reason to standard error, and go-fuse ends its
		// errors with a line break.
		return nil, nil, fmt.Errorf("%s; fusermount3 has said why", strings.TrimSpace(err.Error()))
	}
	return s, nil, nil
}

// widenReadahead raises the kernel's readahead of the mount, which cannot be
// asked for above 128 KiB when mounting. Only root may; without it a sequential
// reader has one request in flight instead of eight.
func widenReadahead(minor uint32) error {
	name := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", minor)
	return os.WriteFile(name, fmt.Appendf(nil, "%d", readahead>>10), 0)
}
