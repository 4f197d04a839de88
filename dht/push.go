package dht

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

// push reads everything this peer holds and sends it to the homes that
// to accepts. A home that fails is left out and owed everything. Brief leaves out
// the digests, and sends those that a home turns out to lack: 55 bytes an extent
// instead of 2,120, which is what makes a full refresh every 5 min affordable.
func (a *announcer) push(ctx context.Context, r *ring, brief bool, to func(covey.ExtentID, covey.PeerID) bool) {
	if a.d.source == nil {
		return
	}
	p := pusher{ctx: ctx, d: a.d, brief: brief, frames: map[covey.PeerID]*frame{}, failed: map[covey.PeerID]struct{}{}}
	held := make([]covey.ExtentID, 0, 1024)
	for h := range a.d.source() {
		if ctx.Err() != nil {
			return
		}
		if h.Have == 0 || h.Have.Len() != len(h.Digests) {
			continue
		}
		if held = append(held, h.Extent); len(held) == cap(held) {
			a.d.advertise(held)
			held = held[:0]
		}
		for _, home := range r.homes(h.Extent) {
			if to(h.Extent, home) {
				p.add(r, home, h)
			}
		}
	}
	p.flushAll()
	a.d.advertise(held)
}

func (d *Directory) advertise(extents []covey.ExtentID) {
	if d.advertiser != nil && len(extents) > 0 {
		d.advertiser.Advertise(extents...)
	}
}

// pusher fills frames for many homes at once.
type pusher struct {
	ctx      context.Context
	d        *Directory
	brief    bool
	frames   map[covey.PeerID]*frame
	buffered int
	failed   map[covey.PeerID]struct{}
}

func (p *pusher) add(r *ring, home covey.PeerID, h Have) {
	if home == p.d.self {
		p.d.table.have(p.d.self, h, true, r)
		return
	}
	if _, bad := p.failed[home]; bad {
		return
	}
	f := p.frames[home]
	if f == nil {
		f = &frame{}
		p.frames[home] = f
	}
	if p.brief {
		p.buffered += f.add(h.Extent, briefMessage(h))
	} else {
		p.buffered += f.add(h.Extent, haveMessage(h, true))
	}
	if f.size >= maxFrame-maxExtentHave {
		p.buffered -= f.size
		delete(p.frames, home)
		p.note(home, p.d.sendFrame(p.ctx, home, f))
	}
	if p.buffered > maxBuffered {
		p.flushAll()
	}
}

func (p *pusher) note(home covey.PeerID, err error) {
	if err == nil {
		return
	}
	p.failed[home] = struct{}{}
	p.d.queue.owesAll(home, time.Now().Add(owedAgain))
	p.d.log.Debug("home did not take what is held here", "peer", printable(home), "err", err)
}

// flushAll sends the frames that are begun, several at once.
func (p *pusher) flushAll() {
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, sendAtOnce)
	for home, f := range p.frames {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := p.d.sendFrame(p.ctx, home, f)
			mu.Lock()
			defer mu.Unlock()
			p.note(home, err)
		})
	}
	wg.Wait()
	clear(p.frames)
	p.buffered = 0
}

// maxExtentHave is the longest element of a HAVE: 64 digests, the extent, two
// bitmaps and tags, 2,120 bytes, rounded up.
const maxExtentHave = 2200

// frame is a HAVE being filled.
type frame struct {
	have    wire.Have
	extents []covey.ExtentID
	size    int
}

// add puts an announcement into the frame and returns its size.
func (f *frame) add(e covey.ExtentID, m *wire.ExtentHave) int {
	n := proto.Size(m) + 4 // its tag and length
	f.have.Extents = append(f.have.Extents, m)
	f.extents = append(f.extents, e)
	f.size += n
	return n
}

// sendFrame sends a HAVE to a home, and the digests that it lacks. An empty frame
// is not sent.
func (d *Directory) sendFrame(ctx context.Context, home covey.PeerID, f *frame) error {
	if f.size == 0 {
		return nil
	}
	lack, err := d.sendHave(ctx, home, f)
	if err != nil || len(lack) == 0 {
		return err
	}
	var full frame
	for _, i := range lack {
		if int64(i) >= int64(len(f.extents)) || d.own == nil {
			return invalid("home %s lacks element %d of %d", printable(home), i, len(f.extents))
		}
		h, ok := d.own(f.extents[i])
		if !ok || h.Have == 0 || h.Have.Len() != len(h.Digests) {
			continue
		}
		full.add(f.extents[i], haveMessage(h, true))
		if full.size >= maxFrame-maxExtentHave {
			if _, err := d.sendHave(ctx, home, &full); err != nil {
				return err
			}
			full = frame{}
		}
	}
	if full.size > 0 {
		_, err = d.sendHave(ctx, home, &full)
	}
	return err
}

// sendHave sends one frame and returns what its receiver lacks.
func (d *Directory) sendHave(ctx context.Context, home covey.PeerID, f *frame) ([]uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, frameTimeout)
	defer cancel()
	f.have.Seq = d.haveSeq.Add(1)
	reply, err := d.call(ctx, home, &wire.Request{Body: &wire.Request_Have{Have: &f.have}})
	if err != nil {
		return nil, err
	}
	return reply.GetLack().GetElements(), nil
}
