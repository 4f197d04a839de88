package dht

import (
	"context"
	"errors"
	"fmt"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dht/internal/wire"
)

// Serve answers a directory message from a member. from must be authenticated:
// it is the only peer that the message can announce as a holder. Whatever the
// bytes are, there is an answer, at worst one that says that they are invalid;
// it is nil only when an answer could not be encoded. Serve may ask other homes,
// and wait up to a second for each that says nothing; a question that allows it
// is kept for up to a second.
func (d *Directory) Serve(ctx context.Context, from covey.PeerID, request []byte) (reply []byte) {
	answer := d.serve(ctx, from, request)
	answer.Version, answer.Incarnation = wire.Version, d.incarnation
	b, err := wire.EncodeReply(answer)
	if err != nil {
		d.log.Error("directory reply not sent", "peer", printable(from), "err", err)
		return nil
	}
	return b
}

func (d *Directory) serve(ctx context.Context, from covey.PeerID, request []byte) *wire.Reply {
	if len(from) == 0 || len(from) > maxPeerID {
		return refusal(invalid("peer ID of %d bytes", len(from)))
	}
	req, err := wire.DecodeRequest(request)
	if err != nil {
		return refusal(err)
	}
	if req.GetVersion() != wire.Version {
		return &wire.Reply{Code: wire.Code_UNSUPPORTED}
	}
	d.queue.met(from, req.GetIncarnation())
	answer := &wire.Reply{}
	switch body := req.GetBody().(type) {
	case *wire.Request_Want:
		answer, err = d.serveWant(ctx, from, body.Want)
	case *wire.Request_Done:
		err = d.serveDone(from, body.Done)
	case *wire.Request_Have:
		answer, err = d.serveHave(from, body.Have)
	case *wire.Request_Progress:
		err = d.serveProgress(from, body.Progress)
	case *wire.Request_Ask:
		answer, err = d.serveAsk(body.Ask)
	default:
		return &wire.Reply{Code: wire.Code_UNSUPPORTED}
	}
	if err != nil {
		d.log.Debug("directory request refused", "peer", printable(from), "err", err)
		return refusal(err)
	}
	answer.Code = wire.Code_OK
	return answer
}

func refusal(err error) *wire.Reply {
	if errors.Is(err, covey.ErrInvalid) {
		return &wire.Reply{Code: wire.Code_INVALID}
	}
	return &wire.Reply{Code: wire.Code_UNAVAILABLE}
}

func (d *Directory) serveWant(ctx context.Context, from covey.PeerID, m *wire.Want) (*wire.Reply, error) {
	w, asker, err := wantFrom(m)
	if err != nil {
		return nil, err
	}
	if asker != "" {
		return planReply(d.want(ctx, asker, w, true)), nil
	}
	return planReply(d.want(ctx, from, w, false)), nil
}

func (d *Directory) serveDone(from covey.PeerID, m *wire.Done) error {
	o, err := doneFrom(m)
	if err != nil {
		return err
	}
	d.table.done(from, o, d.view())
	return nil
}

func (d *Directory) serveHave(from covey.PeerID, m *wire.Have) (*wire.Reply, error) {
	if !d.queue.inOrder(from, m.GetSeq()) {
		d.m.haves.WithLabelValues("late").Add(float64(len(m.GetExtents())))
		return &wire.Reply{}, nil
	}
	r := d.view()
	lack := &wire.Lack{}
	for i, x := range m.GetExtents() {
		h, whole, err := haveFrom(x)
		if err != nil {
			return nil, err
		}
		if x.GetSum() == 0 {
			d.m.haves.WithLabelValues("full").Inc()
			d.table.have(from, h, whole, r)
			continue
		}
		d.m.haves.WithLabelValues("brief").Inc()
		if !d.table.refresh(from, h, x.GetSum(), r) {
			lack.Elements = append(lack.Elements, uint32(i))
		}
	}
	return &wire.Reply{Body: &wire.Reply_Lack{Lack: lack}}, nil
}

func (d *Directory) serveAsk(m *wire.Ask) (*wire.Reply, error) {
	e, err := extentFrom(m.GetExtent())
	if err != nil {
		return nil, err
	}
	d.learnOwn(e, d.view())
	k := d.table.tell(e)
	k.own = d.own != nil
	return knownReply(k), nil
}

// call sends a request and returns the reply of a home that understood it.
// Every other end is an error: ErrInvalid when the home or its answer made no
// sense, else ErrUnavailable.
func (d *Directory) call(ctx context.Context, to covey.PeerID, req *wire.Request) (*wire.Reply, error) {
	req.Version, req.Incarnation = wire.Version, d.incarnation
	b, err := wire.EncodeRequest(req)
	if err != nil {
		return nil, err
	}
	answer, err := d.caller.Call(ctx, to, b)
	if err != nil {
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			d.health.failed(to)
		}
		return nil, fmt.Errorf("ask home %s: %w: %w", printable(to), covey.ErrUnavailable, err)
	}
	reply, err := wire.DecodeReply(answer)
	if err == nil && reply.GetCode() != wire.Code_OK {
		err = fmt.Errorf("answer %s: %w", reply.GetCode(), covey.ErrUnavailable)
	}
	if err != nil {
		d.health.failed(to)
		return nil, fmt.Errorf("ask home %s: %w", printable(to), err)
	}
	d.health.answered(to)
	d.queue.met(to, reply.GetIncarnation())
	return reply, nil
}
