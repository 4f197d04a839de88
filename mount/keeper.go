package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// Keeper is an agent's side of its holder: the process that has the descriptors of
// the agent's mounts, so that they survive the agent. All methods may be called
// concurrently.
//
// mu lets one exchange be under way at a time and guards conn.
type Keeper struct {
	socket string
	start  func() error
	log    *slog.Logger

	mu   sync.Mutex
	conn *net.UnixConn
}

const (
	// holderWait is how long a holder that was started may take to listen.
	holderWait = 5 * time.Second
	holderPoll = 2 * time.Millisecond
	// holderPatience bounds one exchange with it, which is a copy in memory.
	holderPatience = 5 * time.Second
)

// Kept is a mount that an agent before this one had.
type Kept struct {
	Source, Dir string
	// Extra is what the agent gave along, Options.Extra.
	Extra json.RawMessage

	meta           keptMeta
	device, ledger *os.File
}

// keptMeta is what is needed to serve a mount again, beside its ledger.
type keptMeta struct {
	Format  int             `json:"format"`
	Source  string          `json:"source"`
	Dir     string          `json:"dir"`
	Init    []byte          `json:"init"` // the kernel's first message
	Profile Profile         `json:"profile"`
	Write   bool            `json:"write"`
	Extra   json.RawMessage `json:"extra,omitempty"`
}

// keptFormat is the version of the meta data and of the ledger. A mount of another
// version is not resumed but mounted anew.
const keptFormat = 1

// OpenKeeper connects to the holder on the socket, or has one started, and returns
// it with the mounts that it holds from an agent before. Each of those is to be
// given to [Resume] or [Keeper.Forget].
func OpenKeeper(ctx context.Context, socket string, start func() error, log *slog.Logger) (*Keeper, []*Kept, error) {
	k := &Keeper{socket: socket, start: start, log: log}
	kept, err := k.connect(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("ask the holder of mounts at %s: %w", socket, err)
	}
	return k, kept, nil
}

func (k *Keeper) connect(ctx context.Context) ([]*Kept, error) {
	addr := &net.UnixAddr{Name: k.socket, Net: "unixpacket"}
	c, err := net.DialUnix("unixpacket", nil, addr)
	if err != nil {
		_ = os.Remove(k.socket) // nobody listens: it is a dead holder's
		if startErr := k.start(); startErr != nil {
			return nil, fmt.Errorf("%w (%w)", startErr, err)
		}
		for began := time.Now(); ; {
			if c, err = net.DialUnix("unixpacket", nil, addr); err == nil {
				break
			}
			if ctx.Err() != nil || time.Since(began) > holderWait {
				return nil, err
			}
			time.Sleep(holderPoll)
		}
	}
	kept, err := hello(c)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	k.conn = c
	return kept, nil
}

func hello(c *net.UnixConn) (all []*Kept, err error) {
	if err := c.SetDeadline(time.Now().Add(holderPatience)); err != nil {
		return nil, err
	}
	if err := send(c, &packet{Op: "hello"}); err != nil {
		return nil, err
	}
	for {
		p, err := receive(c)
		switch {
		case err != nil:
			return nil, err
		case p.Op == "end":
			return all, c.SetDeadline(time.Time{})
		case p.Op != "kept" || len(p.files) != 2:
			return nil, fmt.Errorf("it answered %q", p.Op)
		}
		m := &Kept{Dir: p.Name, device: p.files[0], ledger: p.files[1]}
		if err := json.Unmarshal(p.Meta, &m.meta); err != nil {
			m.meta = keptMeta{} // of no format that is known
		}
		m.Source, m.Extra = m.meta.Source, m.meta.Extra
		all = append(all, m)
	}
}

// ask makes one exchange. A holder that died is started again, and is told all
// anew by who kept it: see onRestart.
func (k *Keeper) ask(p *packet) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == nil {
		return errHolderGone
	}
	err := k.conn.SetDeadline(time.Now().Add(holderPatience))
	if err == nil {
		err = send(k.conn, p)
	}
	var answer *packet
	if err == nil {
		answer, err = receive(k.conn)
	}
	if err == nil && answer.Op != "ok" {
		err = fmt.Errorf("the holder answered %q", answer.Op)
	}
	if err != nil {
		_ = k.conn.Close()
		k.conn = nil
		k.log.Error("the holder of mounts is lost; the mounts end with this agent", "error", err)
	}
	return err
}

// Forget lets a kept mount go: its connection ends.
func (k *Keeper) Forget(m *Kept) error {
	err := k.ask(&packet{Op: "drop", Name: m.Dir})
	m.close()
	return err
}

func (m *Kept) close() {
	m.device.Close()
	m.ledger.Close()
}

// Close ends the connection. What is still held stays so for the holder's grace.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn != nil {
		_ = k.conn.Close()
		k.conn = nil
	}
}

var errNotResumable = errors.New("it was mounted by another version of covey, or its ledger was lost")
