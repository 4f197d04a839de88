package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
)

// mountKept mounts as attach does, as root, with a descriptor that a holder can be
// given.
func mountKept(t *tree, dir string, o fuse.MountOptions, flags uintptr) (*fuse.Server, *os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, nil, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	device := os.NewFile(uintptr(fd), "/dev/fuse")
	opts := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, st.Mode&unix.S_IFMT, os.Geteuid(), os.Getegid(), o.MaxWrite)
	if o.AllowOther {
		opts += ",allow_other"
	}
	if err := unix.Mount(fsName, dir, fsType, flags, opts); err != nil {
		device.Close()
		return nil, nil, err
	}
	s, err := serveOn(t, device, o)
	if err != nil {
		device.Close()
		return nil, nil, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	return s, device, nil
}

// serveOn makes a server over a copy of the descriptor of a mount, whose first
// message is there to be read.
func serveOn(t *tree, device *os.File, o fuse.MountOptions) (*fuse.Server, error) {
	own, err := unix.FcntlInt(device.Fd(), unix.F_DUPFD_CLOEXEC, 4)
	if err != nil {
		return nil, err
	}
	// The server owns the descriptor, and closes it when it fails.
	return fuse.NewServer(t, fmt.Sprintf("/dev/fd/%d", own), &o)
}

// resumeOn makes a server over a mount that another process has served: it reads
// the kernel's first message, which that process had, from a socket, and from then
// on from the device, which takes the socket's place under the same number.
func resumeOn(t *tree, device *os.File, init []byte, o fuse.MountOptions) (*fuse.Server, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer closeFD(pair[1])
	if _, err := unix.Write(pair[1], init); err != nil {
		closeFD(pair[0])
		return nil, err
	}
	s, err := fuse.NewServer(t, fmt.Sprintf("/dev/fd/%d", pair[0]), &o)
	if err != nil {
		return nil, err
	}
	if err := unix.Dup3(int(device.Fd()), pair[0], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	// What the other process had read and not answered is asked again.
	if err := resend(device); err != nil {
		return nil, fmt.Errorf("have the kernel ask again: %w", err)
	}
	return s, nil
}

func closeFD(fd int) { _ = unix.Close(fd) }

// notifyResend is FUSE_NOTIFY_RESEND of fuse.h (Linux 6.9).
const notifyResend = 7

// resend tells the kernel to send requests again that wait for an answer.
func resend(device *os.File) error {
	h := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: notifyResend}
	_, err := unix.Write(int(device.Fd()), unsafe.Slice((*byte)(unsafe.Pointer(&h)), h.Length))
	return err
}

// initOf returns the kernel's first message as it came.
func initOf(s *fuse.Server) []byte {
	in := s.KernelSettings()
	in.Length = uint32(unsafe.Sizeof(*in))
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(in)), unsafe.Sizeof(*in))...)
}

// keep gives the holder what it takes to serve the mount again. Without it the
// mount works, and ends with this process.
func (m *Mount) keep(device *os.File, opts Options) error {
	meta, err := json.Marshal(keptMeta{
		Format: keptFormat, Source: m.names.Name(), Dir: m.dir, Init: initOf(m.server),
		Profile: opts.Profile, Write: opts.Write != nil, Extra: opts.Extra,
	})
	if err != nil {
		return err
	}
	k := opts.Keeper
	if err := k.ask(&packet{Op: "keep", Name: m.dir, Meta: meta, files: []*os.File{device, m.tree.ledger.file}}); err != nil {
		return err
	}
	m.keeper = k
	m.tree.ledger.swap = func(f *os.File) error { return k.ask(&packet{Op: "ledger", Name: m.dir, files: []*os.File{f}}) }
	return nil
}

// remember gives the mount a ledger.
func (t *tree) remember() error {
	l, err := newLedger()
	if err != nil {
		return err
	}
	(&image{}).write(l)
	t.ledger, t.nodes.ledger, t.passthrough.ledger = l, l, l
	if t.profile.small.Load() {
		l.small()
	}
	return nil
}

// unkeep tells the holder that the mount has ended.
func (m *Mount) unkeep() {
	if m.keeper != nil {
		_ = m.keeper.ask(&packet{Op: "drop", Name: m.dir}) // it logs what fails
	}
}

// Resume serves a mount again that a process before this one served, with what the
// kernel knows and has open as it is. The options are those it was mounted with.
// Who calls Resume must call Run or Unmount. A mount that cannot be resumed is an
// error, and is the caller's to [Keeper.Forget] and to mount anew.
func Resume(k *Kept, names Names, blocks Blocks, opts Options) (*Mount, error) {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	fail := func(err error) (*Mount, error) {
		return nil, fmt.Errorf("resume the mount of %s on %s: %w", k.Source, k.Dir, err)
	}
	if k.meta.Format != keptFormat || k.meta.Write != (opts.Write != nil) {
		return fail(errNotResumable)
	}
	info, ok := mountOn(k.Dir)
	if !ok || info.fstype != fsType {
		return fail(errors.New("it is not mounted any more"))
	}
	file, err := dup(k.ledger)
	if err != nil {
		return fail(err)
	}
	l, err := openLedger(file)
	if err != nil {
		return fail(err)
	}
	t, cancel := newTree(names, blocks, opts, log)
	t.mountedAt = k.Dir
	im, end, err := replay(l.log)
	if err == nil && end == 0 {
		err = errNotResumable
	}
	if err == nil {
		l.n, l.base = end, end
		t.ledger, t.nodes.ledger, t.passthrough.ledger = l, l, l
		err = t.restore(im)
	}
	var server *fuse.Server
	if err == nil {
		server, err = resumeOn(t, k.device, k.meta.Init, mountOptions(opts, log))
	}
	if err != nil {
		cancel()
		l.close()
		return fail(err)
	}
	m := newMount(k.Dir, names, log, t, server, cancel)
	m.keeper = opts.Keeper
	l.swap = func(f *os.File) error {
		return m.keeper.ask(&packet{Op: "ledger", Name: m.dir, files: []*os.File{f}})
	}
	t.closeStrays(im)
	k.device.Close()
	k.ledger.Close()
	return m, nil
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 4)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// restore makes the tables what they were.
func (t *tree) restore(im *image) error {
	if err := t.nodes.restore(im); err != nil {
		return err
	}
	if im.small {
		t.beSmall(true)
	}
	for fh, id := range im.dirs {
		if n := t.nodes.get(id); n != nil {
			t.dirs.put(fh, &dirHandle{node: n})
		}
	}
	t.handles.last.Store(im.fh)
	t.dirs.last.Store(im.dir)
	for fh, o := range im.open {
		n := t.nodes.get(o.node)
		if n == nil {
			continue
		}
		h := &handle{node: n, inode: t.nodes.inode(n), path: n.path(), writes: o.writes, unclosed: o.writes, opener: o.opener}
		if isDraft(n.version) {
			if err := t.resumeDraft(h, o); err != nil {
				t.log.Error("a file that was being written cannot be resumed", "path", h.path, "error", err)
				continue
			}
		} else {
			h.entry = dataset.Entry{Name: n.name, Kind: n.kind, Size: n.size, Version: n.version}
			h.object = t.names.Object(h.path, h.entry)
			t.resumeObject(h, o)
		}
		t.handles.put(fh, h)
	}
	return nil
}

// resumeObject counts a handle in as it was: the kernel has its mode.
func (t *tree) resumeObject(h *handle, o imageOpen) {
	in := h.inode
	in.mu.Lock()
	defer in.mu.Unlock()
	if !o.passed {
		in.cached++
		return
	}
	if in.backing == nil {
		// Its file serves fadvise(WILLNEED) alone; the kernel has its own.
		f, err := t.blocks.OpenWhole(h.object)
		if err != nil {
			f = nil
		}
		in.backing = &backing{id: o.backing, file: f, size: o.size}
	}
	in.passed++
	h.backing = in.backing
}

// closeStrays takes registrations back that no open handle has.
func (t *tree) closeStrays(im *image) {
	used := map[int32]bool{}
	for _, o := range im.open {
		if o.passed {
			used[o.backing] = true
		}
	}
	for id := range im.backed {
		if !used[id] {
			t.passthrough.close(id)
			t.ledger.unbacked(id)
		}
	}
}

// restore fills an empty table.
func (t *nodes) restore(im *image) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range im.nodes {
		if _, err := t.restoreNode(im, id, 0); err != nil {
			return err
		}
	}
	t.byID.restored(uint32(im.number))
	return nil
}

// maxDepth is how many directories can be on top of each other in a key.
const maxDepth = 1024

func (t *nodes) restoreNode(im *image, id uint64, depth int) (*node, error) {
	if id == t.root.id {
		return t.root, nil
	}
	if n := t.byID.get(id); n != nil {
		return n, nil
	}
	r := im.nodes[id]
	if r == nil || depth > maxDepth {
		return nil, fmt.Errorf("node %d has no parent: %w", id, errLedger)
	}
	parent, err := t.restoreNode(im, r.parent, depth+1)
	if err != nil {
		return nil, err
	}
	n := &node{
		parent: parent, id: id, ino: inoOf(parent.ino, r.name), kind: r.kind, mode: r.mode,
		size: r.size, mtime: r.mtime, name: r.name, version: r.version, lookups: r.lookups,
	}
	t.byID.placed(n)
	// Of several versions the one made last is the one that was seen last.
	if old := t.byName.find(parent, n.ino, n.name); old == nil {
		t.byName.add(n)
	} else if old.id>>32 < id>>32 {
		t.byName.remove(old)
		t.byName.add(n)
	}
	return n, nil
}

// placed puts a node where its ID says.
func (s *nodeSlab) placed(n *node) {
	at := int(uint32(n.id))
	for len(s.places) <= at {
		s.places = append(s.places, nil)
	}
	s.places[at] = n
	s.used++
}

// restored makes every place that has no node free, and goes on counting behind
// the highest number.
func (s *nodeSlab) restored(number uint32) {
	s.number = max(s.number, number+1)
	s.free = s.free[:0]
	for at := len(s.places) - 1; at > 1; at-- {
		if s.places[at] == nil {
			s.free = append(s.free, uint32(at))
		}
	}
}

// put stores v under a number that was given out before.
func (s *shards[T]) put(id uint64, v T) {
	p := &s.parts[id%shardCount]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[uint64]T{}
	}
	p.m[id] = v
}
