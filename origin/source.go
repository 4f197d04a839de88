package origin

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/covey-cache/covey"
)

// openTimeout bounds the check of Open. A person waits for it, and an agent that
// mounts several sources at start does, one after the other.
const openTimeout = 9 * time.Second

// openRetry makes the check ride out a single failed request and no more.
var openRetry = Retry{Tries: 3, Base: 100 * time.Millisecond, Max: time.Second, Total: 5 * time.Second}

func open(ctx context.Context, rawURL string, opts Options) (*Source, error) {
	loc, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	driver, closeDriver, err := openDriver(ctx, loc, opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", loc.url(), err)
	}
	sent := WithLimit(WithMetrics(driver, opts.Metrics), opts.InFlight)
	source := &Source{
		Bucket: WithRetry(sent, opts.Retry, opts.Log),
		Prefix: loc.prefix,
		URL:    loc.url(),
		close:  closeDriver,
	}
	source.Editor = editorOf(driver, source.Bucket, opts.Metrics)
	if opts.SkipCheck {
		return source, nil
	}
	if err := check(ctx, WithRetry(sent, openRetry, opts.Log), loc); err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return source, nil
}

func openDriver(ctx context.Context, loc location, opts Options) (Bucket, func() error, error) {
	if loc.scheme == "file" {
		b := newPosix(loc.path, opts)
		return b, b.close, nil
	}
	b, err := newS3(ctx, loc, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", err, covey.ErrInvalid)
	}
	if len(b.Origin()) > covey.MaxOriginLen {
		return nil, nil, fmt.Errorf("an origin name of %d bytes: %w", len(b.Origin()), covey.ErrInvalid)
	}
	return b, func() error { b.closeIdle(); return nil }, nil
}

// check lists one entry, which needs the same place and the same rights as the
// mount that follows.
func check(ctx context.Context, b Bucket, loc location) error {
	limited, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	_, err := b.List(limited, ListRequest{Prefix: loc.prefix, Delimiter: "/", Limit: 1})
	if err == nil {
		return nil
	}
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("open %s: no answer within %v; check the endpoint, the network and the credentials: %w", loc.url(), openTimeout, covey.ErrUnavailable)
	}
	return fmt.Errorf("open %s: %w", loc.url(), err)
}

// url returns the canonical spelling.
func (l location) url() string {
	if l.scheme == "file" {
		return (&url.URL{Scheme: "file", Path: l.path}).String()
	}
	params := url.Values{}
	if l.endpoint != "" {
		params.Set("endpoint", l.endpoint)
	}
	if l.region != "" {
		params.Set("region", l.region)
	}
	u := url.URL{Scheme: "s3", Host: l.bucket, Path: "/" + l.prefix, RawQuery: params.Encode()}
	return u.String()
}
