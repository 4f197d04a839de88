package peer

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/covey-cache/covey/gateway"
)

// door is a listener that the agent's API answers on.
type door struct {
	listener net.Listener
	handler  http.Handler
}

// openDoors listens on the control socket and the HTTP address, so that one that
// is taken is told before the agent does anything else.
func (a *Agent) openDoors() error {
	if a.opts.API != "" {
		l, err := gateway.ListenUnix(a.opts.API)
		if err != nil {
			return err
		}
		a.addDoor(l, true)
	}
	if a.opts.HTTP != "" {
		l, err := net.Listen("tcp", a.opts.HTTP)
		if err != nil {
			return fmt.Errorf("listen on %s for HTTP: %w; choose another address with --http, or --http off", a.opts.HTTP, err)
		}
		a.http = l.Addr().String()
		a.addDoor(l, false)
	}
	return nil
}

func (a *Agent) addDoor(l net.Listener, socket bool) {
	a.doors = append(a.doors, door{listener: l, handler: gateway.NewHandler(a, gateway.HandlerOptions{
		Gatherer: a.registry, Log: a.log, Socket: socket,
	})})
}

func (a *Agent) serveDoors(ctx context.Context) error {
	serving, ctx := errgroup.WithContext(ctx)
	for _, d := range a.doors {
		serving.Go(func() error { return gateway.Serve(ctx, d.listener, d.handler, a.log) })
	}
	return serving.Wait()
}
