package mount

import (
	"container/list"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
)

// maxUnopened bounds the files that are being read without having been opened.
// Each may hold blocks, so they are few; more streams than these at once get
// their blocks from the store again for each read.
const maxUnopened = 32

// unopened holds the read state of files that the kernel reads without telling
// of their open or close (profile small): made by the first read, gone with the
// read of the file's end, or when others need the place.
//
// mu is a leaf lock and guards both.
type unopened struct {
	mu     sync.Mutex
	order  list.List // of *handle, least recently read in front
	byNode map[*node]*list.Element
}

// unopenedHandle returns the read state of a node, with first saying that it was
// made by this call.
func (t *tree) unopenedHandle(id uint64) (h *handle, first bool, status fuse.Status) {
	n := t.nodes.get(id)
	if n == nil || n.kind != dataset.File {
		return nil, false, fuse.Status(unix.ESTALE)
	}
	u := &t.unopened
	u.mu.Lock()
	if el := u.byNode[n]; el != nil {
		u.order.MoveToBack(el)
		u.mu.Unlock()
		return el.Value.(*handle), false, fuse.OK
	}
	u.mu.Unlock()
	e := dataset.Entry{Name: n.name, Kind: dataset.File, Size: n.size, Version: n.version}
	path := n.path()
	h = &handle{node: n, path: path, entry: e, object: t.names.Object(path, e)}
	if h.object.Blocks() > 1 {
		h.streams = &streams{}
		t.followerOf(n.parent).opened(path)
	}
	return h, true, fuse.OK
}

// keep stores the state of a file that will be read on.
func (u *unopened) keep(h *handle) {
	u.mu.Lock()
	if u.byNode == nil {
		u.byNode = map[*node]*list.Element{}
	}
	if u.byNode[h.node] != nil { // another first read was faster
		u.mu.Unlock()
		h.dropBlocks(true)
		return
	}
	u.byNode[h.node] = u.order.PushBack(h)
	var old *handle
	if u.order.Len() > maxUnopened {
		old = u.removeLocked(u.order.Front())
	}
	u.mu.Unlock()
	if old != nil {
		old.dropBlocks(true)
	}
}

// drop ends the state of a file, if there is any.
func (u *unopened) drop(n *node) {
	u.mu.Lock()
	var old *handle
	if el := u.byNode[n]; el != nil {
		old = u.removeLocked(el)
	}
	u.mu.Unlock()
	if old != nil {
		old.dropBlocks(true)
	}
}

func (u *unopened) removeLocked(el *list.Element) *handle {
	h := u.order.Remove(el).(*handle)
	delete(u.byNode, h.node)
	return h
}

// drain ends all.
func (u *unopened) drain() {
	u.mu.Lock()
	var all []*handle
	for u.order.Len() > 0 {
		all = append(all, u.removeLocked(u.order.Front()))
	}
	u.mu.Unlock()
	for _, h := range all {
		h.dropBlocks(true)
	}
}

// readUnopened answers a read in profile small.
func (t *tree) readUnopened(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, first, status := t.unopenedHandle(in.NodeId)
	if status != fuse.OK {
		return nil, status
	}
	if first {
		t.pusher.missed(h, t.metrics)
		t.begun(cancel, in, h)
	}
	res, status := t.serve(cancel, in, h, buf)
	end := int64(in.Offset)+int64(in.Size) >= h.object.Size
	switch {
	case end || status != fuse.OK:
		h.dropBlocks(true)
		if !first {
			t.unopened.drop(h.node)
		}
	case first:
		t.unopened.keep(h)
	}
	return res, status
}

// begun has the files behind a small one asked for, when a directory is being
// read in the order of its listing.
func (t *tree) begun(cancel <-chan struct{}, in *fuse.ReadIn, h *handle) {
	if h.object.Size > t.completeAtOpen {
		return
	}
	ctx := t.begin(cancel, &in.InHeader)
	defer ctx.end()
	// Where the file is not known to be is for the read to report.
	if e, slot, err := h.place(ctx, t.names, 0); err == nil {
		t.askAhead(ctx, h, e, slot)
	}
}
