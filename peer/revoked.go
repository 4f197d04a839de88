package peer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer/internal/member"
	"github.com/covey-cache/covey/peer/internal/wire"
)

const (
	// revokedEvery is how often the file of revoked peers is looked at; with the
	// seconds that news takes through the mesh, well within the minute that is
	// promised.
	revokedEvery = 5 * time.Second
	// maxRevokedFile bounds the file: MaxRevoked peer IDs with a comment each.
	maxRevokedFile = 1 << 20
)

// revokedFile is the list of expelled peers that an operator keeps: a peer ID a
// line, and comments behind "#". Only the goroutine of Run uses it.
type revokedFile struct {
	looked time.Time
	stamp  string // of the version that was read
}

// readRevoked reads a list of peers.
func readRevoked(name string) ([]peer.ID, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read revoked peers: %w", err)
	}
	defer f.Close()
	return parseRevoked(name, f)
}

func parseRevoked(name string, r io.Reader) ([]peer.ID, error) {
	var list []peer.ID
	lines := bufio.NewScanner(io.LimitReader(r, maxRevokedFile))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		id, err := peer.Decode(text)
		if err != nil {
			return nil, fmt.Errorf("read revoked peers %s: line %d is no peer ID: %w", name, n, covey.ErrInvalid)
		}
		if list = append(list, id); len(list) > member.MaxRevoked {
			return nil, fmt.Errorf("read revoked peers %s: more than %d: %w", name, member.MaxRevoked, covey.ErrInvalid)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read revoked peers %s: %w", name, err)
	}
	return list, nil
}

// reloadRevoked reads the file when it has changed, and expels who is new in it. A
// file that cannot be read, or is in the middle of being written, changes nothing.
func (n *Network) reloadRevoked() {
	now := time.Now()
	if n.opts.Revoked == "" || now.Sub(n.revoked.looked) < revokedEvery {
		return
	}
	n.revoked.looked = now
	info, err := os.Stat(n.opts.Revoked)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) || n.revoked.stamp != "" {
			n.log.Warn("list of revoked peers cannot be read; who was expelled stays so", "error", err)
		}
		return
	}
	stamp := fmt.Sprint(info.ModTime().UnixNano(), info.Size())
	if stamp == n.revoked.stamp {
		return
	}
	n.revoked.stamp = stamp
	list, err := readRevoked(n.opts.Revoked)
	if err != nil {
		n.log.Warn("list of revoked peers not accepted; who was expelled stays so", "error", err)
		return
	}
	var signed []*wire.SignedRevocation
	for _, p := range list {
		if !n.table.Revoked(p) {
			signed = append(signed, n.signer.Revoke(p, now))
		}
	}
	if err := n.expel(signed, ""); err != nil {
		n.log.Warn("revocation not accepted", "error", err)
	}
}

// expel takes in revocations that from sent, cuts off who they name, and passes on
// what is news. The error is that of the last one refused.
func (n *Network) expel(list []*wire.SignedRevocation, from peer.ID) error {
	var news []*wire.SignedRevocation
	var refused error
	for _, m := range list {
		p, isNews, was, err := n.table.Revoke(m)
		if err != nil {
			refused = err
			continue
		}
		if !isNews {
			continue
		}
		news = append(news, m)
		n.log.Warn("peer expelled", "peer", p.String(), "member", was)
		if p == n.id {
			n.log.Error("this agent was expelled from its cluster; it goes on alone")
			continue
		}
		n.dropped(p)
		if n.plain != nil {
			n.plain.expel(p)
		}
		// Closing waits for the other side's streams to be told.
		n.spawn(func() { _ = n.host.swarm.ClosePeer(p) })
	}
	if len(news) > 0 {
		n.metrics.setLive(n.table)
		for len(news) > 0 {
			k := min(len(news), maxFlood)
			n.pushPart(n.targets(floodWidth, from), &wire.Push{Revocations: news[:k]})
			news = news[k:]
		}
	}
	return refused
}

// expel closes the plain connections of a peer.
func (p *plainPlane) expel(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, of := range p.conns {
		if of == id {
			c.Close()
		}
	}
}
