package origin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/covey-cache/covey"
)

// Retry bounds how often and how long a failed request is tried again. Zero
// fields mean the defaults.
type Retry struct {
	// Tries is the most tries of one request, the first included.
	Tries int
	// Base and Max bound the pause before a further try: a random part of
	// Base, doubled with each try, up to Max.
	Base, Max time.Duration
	// Total is how long after the first try a last one may begin.
	Total time.Duration
	// Throttled, if set, hears of every refusal of the origin for being asked too
	// much, with the origin's name, though the request may be tried again. It must
	// not block.
	Throttled func(origin string)
}

// Six tries with these pauses span 100 ms + 200 + 400 + 800 + 1,600 at most,
// half of it on average: longer than a server's restart of a connection pool or
// a burst of 503, shorter than the 10 s a reader accepts.
const (
	defaultTries      = 6
	defaultRetryBase  = 100 * time.Millisecond
	defaultRetryMax   = 5 * time.Second
	defaultRetryTotal = 30 * time.Second
)

func (r Retry) withDefaults() Retry {
	if r.Tries <= 0 {
		r.Tries = defaultTries
	}
	if r.Base <= 0 {
		r.Base = defaultRetryBase
	}
	if r.Max <= 0 {
		r.Max = defaultRetryMax
	}
	if r.Total <= 0 {
		r.Total = defaultRetryTotal
	}
	return r
}

// errFreshCredentials marks a refusal after which the driver threw its cached
// credentials away, so that one more try is worth it.
var errFreshCredentials = errors.New("credentials were renewed")

// WithRetry tries again what failed with ErrUnavailable or ErrThrottled, with
// exponential pauses and full jitter, so that the peers that saw one fault do
// not come back together. ErrThrottled also holds back every other request of
// this bucket: it is the origin that is short of capacity, not one request.
//
// A Get whose body breaks off is resumed at the offset reached, with the same
// version; an object that changed meanwhile makes the reader fail with ErrStale.
// A Put is tried again only if its body is an io.Seeker. A nil log discards.
func WithRetry(b Bucket, r Retry, log *slog.Logger) Bucket {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &retried{Bucket: b, retry: r.withDefaults(), log: log, base: time.Now()}
}

type retried struct {
	Bucket
	retry Retry
	log   *slog.Logger

	// heldUntil is when requests may go out again after a throttle, as the
	// time since base (monotonic).
	base      time.Time
	heldUntil atomic.Int64
}

// attempt is the state of one request over its tries.
type attempt struct {
	*retried
	op, key   string
	tries     int
	began     time.Time
	refreshed bool
}

func (r *retried) attempt(op, key string) *attempt {
	return &attempt{retried: r, op: op, key: key, began: time.Now()}
}

// do calls try until it succeeds or its failure is final, and returns the last
// error.
func (a *attempt) do(ctx context.Context, try func() error) error {
	for {
		if err := a.awaitThrottle(ctx); err != nil {
			return err
		}
		err := try()
		if err == nil {
			return nil
		}
		if err := a.pause(ctx, err); err != nil {
			return err
		}
	}
}

// pause decides about a failure: it returns err when it is final, and nil after
// the pause when another try is due.
func (a *attempt) pause(ctx context.Context, err error) error {
	if errors.Is(err, errFreshCredentials) && !a.refreshed {
		a.refreshed = true
		return nil
	}
	throttled := errors.Is(err, covey.ErrThrottled)
	if !throttled && !errors.Is(err, covey.ErrUnavailable) {
		return err
	}
	a.tries++
	pause := a.backoff()
	if throttled {
		a.hold(pause)
		if a.retry.Throttled != nil {
			a.retry.Throttled(a.Origin())
		}
	}
	if a.tries >= a.retry.Tries || ctx.Err() != nil || time.Since(a.began)+pause > a.retry.Total {
		return err
	}
	a.log.LogAttrs(ctx, slog.LevelDebug, "origin request is tried again",
		slog.String("origin", a.Origin()), slog.String("op", a.op), slog.String("key", a.key),
		slog.Int("try", a.tries), slog.Duration("pause", pause), slog.Any("error", err))
	if !sleep(ctx, pause) {
		return err
	}
	return nil
}

// backoff returns a random pause whose bound doubles with each try.
func (a *attempt) backoff() time.Duration {
	bound := a.retry.Max
	if shift := a.tries - 1; shift < 30 {
		bound = min(bound, a.retry.Base<<shift)
	}
	return rand.N(bound) + 1
}

// hold keeps all requests back for the pause from now on; a longer hold stays.
func (r *retried) hold(pause time.Duration) {
	until := int64(time.Since(r.base) + pause)
	for {
		old := r.heldUntil.Load()
		if old >= until || r.heldUntil.CompareAndSwap(old, until) {
			return
		}
	}
}

// awaitThrottle waits for the end of a hold. Each request adds up to an eighth
// of the hold, lest all of them start in the same instant.
func (a *attempt) awaitThrottle(ctx context.Context) error {
	wait := time.Duration(a.heldUntil.Load()) - time.Since(a.base)
	if wait <= 0 {
		return nil
	}
	if !sleep(ctx, wait+rand.N(wait/8+1)) {
		return ctxError(ctx, a.op, a.key, a.Origin())
	}
	return nil
}

// sleep returns false when the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *retried) Stat(ctx context.Context, key string) (info Info, err error) {
	err = r.attempt("stat", key).do(ctx, func() (err error) {
		info, err = r.Bucket.Stat(ctx, key)
		return err
	})
	return info, err
}

func (r *retried) List(ctx context.Context, req ListRequest) (page Page, err error) {
	err = r.attempt("list", req.Prefix).do(ctx, func() (err error) {
		page, err = r.Bucket.List(ctx, req)
		return err
	})
	return page, err
}

func (r *retried) Delete(ctx context.Context, key string) error {
	return r.attempt("delete", key).do(ctx, func() error { return r.Bucket.Delete(ctx, key) })
}

func (r *retried) Put(ctx context.Context, key string, body io.Reader, size int64) (info Info, err error) {
	seeker, ok := body.(io.Seeker)
	if !ok {
		return r.Bucket.Put(ctx, key, body, size)
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		return r.Bucket.Put(ctx, key, body, size)
	}
	err = r.attempt("put", key).do(ctx, func() (err error) {
		if _, err := seeker.Seek(start, io.SeekStart); err != nil {
			return err
		}
		info, err = r.Bucket.Put(ctx, key, body, size)
		return err
	})
	return info, err
}

func (r *retried) Get(ctx context.Context, key, version string, rng covey.Range) (io.ReadCloser, error) {
	b := &resumingBody{ctx: ctx, attempt: r.attempt("get", key), version: version, rest: rng}
	if err := b.do(ctx, b.open); err != nil {
		return nil, err
	}
	return b, nil
}

// resumeProgress is how much must have arrived since the last break for the
// count of tries to start again. A link that breaks every MiB still makes
// headway; one that breaks after a few bytes each time is given up.
const resumeProgress = 1 << 20

// resumingBody is the body of a Get over as many requests as it takes.
//
// INVARIANT: rest is what the caller has not read yet; body, when not nil, is
// at its start.
type resumingBody struct {
	*attempt
	ctx     context.Context // of the Get, which covers its body
	version string
	rest    covey.Range
	body    io.ReadCloser
	since   int64 // bytes since the last break
}

func (b *resumingBody) open() (err error) {
	b.body, err = b.Bucket.Get(b.ctx, b.key, b.version, b.rest)
	return err
}

func (b *resumingBody) Read(p []byte) (int, error) {
	if b.body == nil {
		return 0, errBodyClosed
	}
	n, err := b.body.Read(p)
	b.rest.Off += int64(n)
	b.rest.Len -= int64(n)
	b.since += int64(n)
	if err == nil || b.rest.Len == 0 {
		return n, err
	}
	if errors.Is(err, io.EOF) {
		err = failure("get", b.key, b.Origin(), "the body ended early", errShort)
	}
	return n, b.resume(err)
}

// resume returns nil when the body goes on at rest.
func (b *resumingBody) resume(broken error) error {
	// First, so that the slot is free while this waits.
	b.body.Close()
	b.body = nil
	if b.since >= resumeProgress {
		b.tries, b.began = 0, time.Now()
	}
	b.since = 0
	if err := b.pause(b.ctx, broken); err != nil {
		b.body = failedBody{err}
		return err
	}
	if err := b.do(b.ctx, b.open); err != nil {
		b.body = failedBody{err}
		return err
	}
	return nil
}

func (b *resumingBody) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

var errBodyClosed = errors.New("read of a closed body")

// failedBody repeats the error that ended a body.
type failedBody struct{ err error }

func (f failedBody) Read([]byte) (int, error) { return 0, f.err }
func (f failedBody) Close() error             { return nil }
