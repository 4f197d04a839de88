package origin

import (
	"context"
	"errors"
	"fmt"

	"github.com/covey-cache/covey"
)

// failure wraps kind with what was tried on what. detail is one line for people
// and holds no credential.
func failure(op, key, origin, detail string, kind error) error {
	return fmt.Errorf("%s %q of %s: %s: %w", op, key, origin, detail, kind)
}

// ctxError tells that the caller's context ended first. It wraps the context's
// error and, since nobody answered in time, ErrUnavailable.
func ctxError(ctx context.Context, op, key, origin string) error {
	return fmt.Errorf("%s %q of %s: %w: %w", op, key, origin, covey.ErrUnavailable, ctx.Err())
}

// errSilent is the cause of a try that was given up after Options.Timeout.
var errSilent = errors.New("no answer in time")
