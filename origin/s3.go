package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/covey-cache/covey"
)

// s3Bucket is a bucket of any server that speaks S3.
//
// Versions are ETags without their quotes. A server that sends none, or only a
// weak one, which If-Match must not accept, gets versions of the form
// "@seconds-size" from Last-Modified, pinned with If-Unmodified-Since: as exact
// as the server's clock, which ticks in seconds.
type s3Bucket struct {
	client      *s3.Client
	credentials *credentialSource
	name        string
	endpoint    string // canonical; "" is AWS
	region      string
	timeout     time.Duration
	log         *slog.Logger
	closeIdle   func()
	// escapeKeys is set once a listing has shown that it cannot do without.
	escapeKeys atomic.Bool
}

// maxPut is the largest object that S3 takes in one request.
const maxPut = 5 << 30

func (b *s3Bucket) Origin() string {
	if b.endpoint == "" {
		return "s3://" + b.name
	}
	return "s3://" + b.name + "?endpoint=" + b.endpoint
}

// where names the server in errors.
func (b *s3Bucket) where() string {
	if b.endpoint == "" {
		return "AWS S3 in " + b.region
	}
	return b.endpoint
}

func (b *s3Bucket) checkKey(op, key string) error {
	if key == "" || len(key) > covey.MaxKeyLen {
		return failure(op, key, b.Origin(), fmt.Sprintf("a key of %d bytes", len(key)), covey.ErrInvalid)
	}
	return nil
}

func (b *s3Bucket) Stat(ctx context.Context, key string) (Info, error) {
	if err := b.checkKey("stat", key); err != nil {
		return Info{}, err
	}
	w := watch(ctx, b.timeout)
	defer w.end()
	out, err := b.client.HeadObject(w.ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return Info{}, b.fail(ctx, w, "stat", key, err)
	}
	if out.ContentLength == nil {
		return Info{}, failure("stat", key, b.Origin(), "an answer without a size", covey.ErrUnavailable)
	}
	return s3Info(key, *out.ContentLength, aws.ToString(out.ETag), aws.ToTime(out.LastModified)), nil
}

// s3Info makes an Info of what every kind of answer has. Listings tell
// milliseconds and headers only seconds, so times are cut to seconds, lest an
// object seem to change when it is looked at another way.
func s3Info(key string, size int64, etag string, modified time.Time) Info {
	modified = modified.Truncate(time.Second)
	return Info{Key: key, Size: size, Version: s3Version(etag, modified, size), ModTime: modified}
}

func s3Version(etag string, modified time.Time, size int64) string {
	if tag := strings.Trim(etag, `"`); tag != "" && !strings.HasPrefix(etag, "W/") {
		return tag
	}
	return fmt.Sprintf("@%d-%d", modified.Unix(), size)
}

// Put sends the object in one request, which bounds it at 5 GiB. ModTime of the
// result is the server's date of the answer.
func (b *s3Bucket) Put(ctx context.Context, key string, body io.Reader, size int64) (Info, error) {
	if err := b.checkKey("put", key); err != nil {
		return Info{}, err
	}
	if size < 0 || size > maxPut {
		return Info{}, failure("put", key, b.Origin(), fmt.Sprintf("%d bytes; one request takes at most %d", size, int64(maxPut)), covey.ErrInvalid)
	}
	w := watch(ctx, b.timeout)
	defer w.end()
	exact := &exactBody{r: body, rest: size, w: w}
	out, err := b.client.PutObject(w.ctx, &s3.PutObjectInput{
		Bucket: &b.name, Key: &key, Body: exact, ContentLength: &size,
	}, s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
	if bad := exact.seal(); bad != nil && ctx.Err() == nil {
		return Info{}, fmt.Errorf("put %q of %s: %w: %w", key, b.Origin(), bad, covey.ErrInvalid)
	}
	if err != nil {
		return Info{}, b.fail(ctx, w, "put", key, err)
	}
	return s3Info(key, size, aws.ToString(out.ETag), answerDate(out.ResultMetadata)), nil
}

func answerDate(m middleware.Metadata) time.Time {
	if resp := rawResponse(m); resp != nil {
		if t, err := time.Parse(time.RFC1123, resp.Header.Get("Date")); err == nil {
			return t
		}
	}
	return time.Now()
}

func (b *s3Bucket) Delete(ctx context.Context, key string) error {
	if err := b.checkKey("delete", key); err != nil {
		return err
	}
	w := watch(ctx, b.timeout)
	defer w.end()
	_, err := b.client.DeleteObject(w.ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key})
	if err == nil {
		return nil
	}
	err = b.fail(ctx, w, "delete", key, err)
	if errors.Is(err, covey.ErrNotFound) && !errors.Is(err, errNoBucket) {
		return nil // some servers say so, AWS does not
	}
	return err
}

// exactBody passes on exactly the announced bytes of a body and keeps the watch
// of the request awake while they flow. The HTTP transport reads it from its own
// goroutine, and may do so for a moment after the request has failed.
type exactBody struct {
	w *watchdog

	// mu guards the rest, and r is read under it: a leaf lock.
	mu   sync.Mutex
	r    io.Reader // nil once sealed
	rest int64
	err  error // what was wrong with the body itself
}

func (e *exactBody) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.r == nil {
		return 0, errBodyClosed
	}
	e.w.pet()
	if e.rest == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.rest)])
	e.rest -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && e.rest > 0:
		e.err = fmt.Errorf("the body ended %d bytes early", e.rest)
		return n, e.err
	case err != nil && !errors.Is(err, io.EOF):
		e.err = fmt.Errorf("read the body: %w", err)
		return n, e.err
	}
	return n, nil
}

// seal ends the use of the caller's reader and returns what was wrong with it. A
// Read under way is waited for, which for a file or a buffer is no time.
func (e *exactBody) seal() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.r = nil
	return e.err
}

// rawResponse returns the HTTP response under an SDK result, or nil.
func rawResponse(m middleware.Metadata) *smithyhttp.Response {
	resp, _ := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response)
	return resp
}
