package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
)

// HolderOptions are how an agent has its mounts kept by a holder process.
type HolderOptions struct {
	// Socket is where the holder listens; "" means that there is none.
	Socket string
	// Start starts a holder process that listens there.
	Start func() error
}

// openHolder connects to the holder, or has it started, and takes over what the
// agent before left there. An agent that cannot have one goes on: its mounts end
// with it.
func (a *Agent) openHolder(ctx context.Context) {
	if a.opts.Holder.Socket == "" {
		return
	}
	k, kept, err := mount.OpenKeeper(ctx, a.opts.Holder.Socket, a.opts.Holder.Start, a.log)
	if err != nil {
		a.log.Error("mounts will end with this agent", "error", err)
		return
	}
	a.keeper = k
	a.resuming.Store(true)
	defer a.resuming.Store(false)
	for _, m := range kept {
		if err := a.resume(ctx, m); err != nil {
			a.log.Error("a mount of the agent before cannot be resumed; its readers get ENOTCONN", "source", m.Source, "dir", m.Dir, "error", err)
			if err := k.Forget(m); err != nil {
				return // it is logged, and the holder gone
			}
		}
	}
}

// resume serves a mount of the agent before. It asks no origin and no peer, so
// that readers wait for nothing but this process's start.
func (a *Agent) resume(ctx context.Context, k *mount.Kept) error {
	var r gateway.MountRequest
	if err := json.Unmarshal(k.Extra, &r); err != nil || r.Dir != k.Dir {
		return fmt.Errorf("what it was mounted with is not known: %w", errors.Join(err, errNotKnown))
	}
	e, err := a.mounts.reserve(k.Dir)
	if err != nil {
		return err
	}
	m, release, err := a.attach(ctx, e, r, k)
	if err != nil {
		a.mounts.drop(e)
		return err
	}
	go a.runMount(e, m, release)
	a.log.Info("resumed", "source", r.Source, "dir", k.Dir)
	return nil
}

var errNotKnown = errors.New("no request of an agent")

// mounted reports whether a configured mount was resumed, and takes away one on
// its directory that is of something else.
func (a *Agent) mounted(ctx context.Context, m MountSpec) bool {
	e, ok := a.mounts.get(m.Dir)
	if !ok {
		return false
	}
	if slices.Contains([]string{e.request.Source, e.dataset.Name()}, m.Source) && e.request.Options.String() == m.Options.String() {
		return true
	}
	a.log.Warn("the mount there is not what is configured; it is unmounted", "dir", m.Dir)
	e.stop()
	select {
	case <-e.ended:
	case <-ctx.Done():
	}
	return false
}
