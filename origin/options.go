package origin

import (
	"log/slog"
	"net/http"
	"time"
)

// Options are what a driver needs from its surroundings. The zero value works.
type Options struct {
	// HTTP carries the requests of HTTP drivers; nil means a client with
	// keep-alive connections and without a proxy. It is the seam for
	// simulation. Redirects are not followed, whatever its CheckRedirect says:
	// they would carry the request to a host that nobody configured.
	HTTP *http.Client
	// Log hears of retries and odd answers. Nil discards.
	Log *slog.Logger
	// Metrics counts requests and bytes, nil does not. One serves all sources
	// of an agent.
	Metrics *Metrics
	// InFlight is the most requests to this source that are unanswered or have
	// their body unread, 0 for DefaultInFlight.
	InFlight int
	// Retry bounds how a request that failed is tried again.
	Retry Retry
	// Timeout is how long the origin may stay silent (no header, no next byte
	// of a body) before the try is given up with ErrUnavailable, 0 for
	// DefaultTimeout. A transfer that advances may take as long as it takes.
	Timeout time.Duration
	// SkipCheck makes Open parse the URL and build the driver, without a
	// request to the origin, for an agent that must start while its origin is
	// away. A directory that is not there is then found at the first use.
	SkipCheck bool
	// Credentials are for tests and simulation. Nil means the standard chain of
	// the driver's SDK: environment, profiles, workload identity.
	Credentials *Credentials
}

// Credentials are an S3 key pair.
type Credentials struct {
	AccessKey, SecretKey, Token string
}

const (
	// DefaultInFlight lets 64 reads of 4 MiB wait on a far origin: at 40 ms to
	// the first byte and 100 MB/s each that is 50 Gb/s, more than one node's
	// share of any origin, and 64 sockets.
	DefaultInFlight = 64
	// DefaultTimeout is well above the p99.9 of S3's first byte (about 1 s) and
	// below the 30 s at which training frameworks call a rank stuck.
	DefaultTimeout = 10 * time.Second
)

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.InFlight <= 0 {
		o.InFlight = DefaultInFlight
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	o.Retry = o.Retry.withDefaults()
	return o
}
