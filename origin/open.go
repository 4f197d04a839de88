package origin

import (
	"context"
	"log/slog"
	"net/http"
)

// Options are what a driver needs from its surroundings. The zero value works.
type Options struct {
	// HTTP carries the requests of HTTP drivers; nil means a client with
	// keep-alive connections and without a proxy. It is the seam for
	// simulation.
	HTTP *http.Client
	// Log hears of retries and odd answers. Nil discards.
	Log *slog.Logger
}

// Source is what a source URL names: a bucket and the prefix in it that the data
// set begins at.
type Source struct {
	Bucket Bucket
	// Prefix is "" or ends with "/". Every key of the data set begins with it.
	Prefix string
	// URL is the source in its canonical spelling, for people and logs.
	URL string
}

// Open parses a source URL (or a plain path) and returns what it names. It
// checks that the place exists and may be listed, so that a wrong bucket, path
// or credential is told at once. Errors are one line that names the URL, and
// wrap ErrInvalid for one that is malformed or of an unknown scheme.
func Open(ctx context.Context, rawURL string, opts Options) (*Source, error) {
	return open(ctx, rawURL, opts)
}
