package mount

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// complaintInterval is how far apart warnings of a mount are: an origin that is
// away fails thousands of requests a second, all for one reason.
const complaintInterval = 10 * time.Second

// complaints limits the warnings of a mount to one each complaintInterval.
//
// mu is a leaf lock and guards both.
type complaints struct {
	mu     sync.Mutex
	next   time.Time // before which nothing is warned of
	silent int       // failures since the last warning
}

// take reports whether a failure is to be warned of now, and how many were not
// since the last warning.
func (c *complaints) take(now time.Time) (silent int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.next) {
		c.silent++
		return 0, false
	}
	silent, c.silent = c.silent, 0
	c.next = now.Add(complaintInterval)
	return silent, true
}

// complain logs a request that failed. What the reader sees as EIO or EACCES says
// nothing of its reason, so that is a warning, of which there are few; the rest
// is what programs ask in vain every day.
func (t *tree) complain(ctx context.Context, message, path string, status fuse.Status, err error) {
	level, attrs := slog.LevelDebug, []slog.Attr{
		slog.String("path", path), slog.Int("errno", int(status)), slog.Any("error", err),
	}
	if (status == fuse.EIO || status == fuse.EACCES) && t.ctx.Err() == nil {
		if silent, ok := t.complaints.take(time.Now()); ok {
			level, attrs = slog.LevelWarn, append(attrs, slog.Int("silent_before", silent))
		}
	}
	t.log.LogAttrs(ctx, level, message, attrs...)
}
