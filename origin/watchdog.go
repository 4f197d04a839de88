package origin

import (
	"context"
	"errors"
	"time"
)

// watchdog gives up a try during which the origin is silent for too long. Its
// ctx ends with the cause errSilent then.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// watch starts a watch over one try.
func watch(parent context.Context, limit time.Duration) *watchdog {
	w := &watchdog{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errSilent) })
	return w
}

// pet starts the limit anew.
func (w *watchdog) pet() { w.timer.Reset(w.limit) }

// rest suspends the watch, while it is the caller who is slow.
func (w *watchdog) rest() { w.timer.Stop() }

// end frees the watch and its context.
func (w *watchdog) end() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// barked reports whether the watch ended the try.
func (w *watchdog) barked() bool { return errors.Is(context.Cause(w.ctx), errSilent) }
