package peer

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/board"
	"github.com/covey-cache/covey/peer/internal/mux"
)

// plansProtocol carries what members read of which manifest.
const plansProtocol protocol.ID = "/covey/plans/1"

// servePlans takes in a member's notice and answers with the others' of the same
// manifest.
func (n *Network) servePlans(_ context.Context, from peer.ID, body []byte) (mux.Answer, error) {
	notice, err := board.ParseNotice(body)
	if err != nil {
		return mux.Answer{}, err
	}
	reply, err := board.AppendNodes(nil, n.board.Pin(covey.PeerID(from), notice, time.Now()))
	if err != nil || len(reply) > MaxMessage {
		return mux.Answer{}, fmt.Errorf("answer a plan notice with %d bytes: %w", len(reply), covey.ErrUnavailable)
	}
	return mux.Answer{Size: len(reply), Body: bytes.NewReader(reply)}, nil
}

// notify tells a member what this node reads, and returns what others have told
// it of the same manifest. This node itself is told without a network.
func (n *Network) notify(ctx context.Context, to covey.PeerID, notice *board.Notice) ([]board.Node, error) {
	if to == n.Self() {
		return n.board.Pin(to, notice, time.Now()), nil
	}
	body, err := board.AppendNotice(nil, notice)
	if err != nil {
		return nil, err
	}
	var reply []byte
	err = n.do(ctx, peer.ID(to), plansProtocol, body, func(size uint64) (_ []byte, err error) {
		reply, err = discardReply(size)
		return reply, err
	})
	if err != nil {
		return nil, fmt.Errorf("tell %w", err)
	}
	return board.ParseNodes(reply)
}
