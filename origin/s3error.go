package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/covey-cache/covey"
)

// errNoBucket tells a missing bucket from a missing key.
var errNoBucket = errors.New("the bucket does not exist")

// s3Codes are the error codes that mean more than their HTTP status. Servers
// disagree about the status of some of them.
var s3Codes = map[string]error{
	"AccessDenied":               covey.ErrDenied,
	"AccountProblem":             covey.ErrDenied,
	"AllAccessDisabled":          covey.ErrDenied,
	"ExpiredToken":               covey.ErrDenied,
	"ExpiredTokenException":      covey.ErrDenied,
	"InvalidAccessKeyId":         covey.ErrDenied,
	"InvalidSecurity":            covey.ErrDenied,
	"InvalidToken":               covey.ErrDenied,
	"NotSignedUp":                covey.ErrDenied,
	"RequestExpired":             covey.ErrDenied,
	"RequestTimeTooSkewed":       covey.ErrDenied,
	"SignatureDoesNotMatch":      covey.ErrDenied,
	"TokenRefreshRequired":       covey.ErrDenied,
	"XAdminUserNotFound":         covey.ErrDenied, // versitygw's word for an unknown access key, as a 404
	"BandwidthLimitExceeded":     covey.ErrThrottled,
	"RequestLimitExceeded":       covey.ErrThrottled,
	"SlowDown":                   covey.ErrThrottled,
	"SlowDownRead":               covey.ErrThrottled,
	"SlowDownWrite":              covey.ErrThrottled,
	"Throttling":                 covey.ErrThrottled,
	"ThrottlingException":        covey.ErrThrottled,
	"TooManyRequests":            covey.ErrThrottled,
	"ConditionalRequestConflict": covey.ErrUnavailable,
	"IncompleteBody":             covey.ErrUnavailable,
	"OperationAborted":           covey.ErrUnavailable,
	"RequestTimeout":             covey.ErrUnavailable,
	"NoSuchBucket":               covey.ErrNotFound,
	"NoSuchKey":                  covey.ErrNotFound,
}

// expiredCodes are refusals that other credentials of the same chain may undo.
var expiredCodes = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "TokenRefreshRequired": true, "RequestExpired": true,
}

// advice is what a person can do about a code.
var advice = map[string]string{
	"AccessDenied":          "the credentials lack the right; grant s3:ListBucket and s3:GetObject on it",
	"ExpiredToken":          "the session ended; renew the credentials",
	"ExpiredTokenException": "the session ended; renew the credentials",
	"InvalidAccessKeyId":    "the access key is unknown; check AWS_ACCESS_KEY_ID or the profile",
	"XAdminUserNotFound":    "the access key is unknown; check AWS_ACCESS_KEY_ID or the profile",
	"SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile",
	"RequestTimeTooSkewed":  "set this machine's clock",
	"NoSuchBucket":          "check its name and the endpoint",
}

// statusKind is the kind of an HTTP status whose code says nothing more.
func statusKind(status int) error {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return covey.ErrDenied
	case status == http.StatusNotFound:
		return covey.ErrNotFound
	case status == http.StatusPreconditionFailed:
		return covey.ErrStale
	case status == http.StatusRequestedRangeNotSatisfiable:
		// Who asks for a range knows the size of the version it wants, so the
		// object has become shorter.
		return covey.ErrStale
	case status == http.StatusTooManyRequests:
		return covey.ErrThrottled
	case status == http.StatusRequestTimeout || status >= 500:
		return covey.ErrUnavailable
	}
	return covey.ErrInvalid
}

// fail turns an error of the SDK into ours. The SDK's text is not passed on: it
// is long, and what a server echoes in it is not ours to log.
func (b *s3Bucket) fail(ctx context.Context, w *watchdog, op, key string, err error) error {
	if ctx.Err() != nil {
		return ctxError(ctx, op, key, b.Origin())
	}
	if w.barked() {
		detail := fmt.Sprintf("%s was silent for %v", b.where(), b.timeout)
		return failure(op, key, b.Origin(), detail, covey.ErrUnavailable)
	}
	if errors.Is(err, errNoCredentials) {
		return failure(op, key, b.Origin(),
			"no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE", covey.ErrDenied)
	}
	var answer *smithyhttp.ResponseError
	if errors.As(err, &answer) && answer.HTTPStatusCode() != 0 {
		return b.failAnswer(op, key, answer, err)
	}
	return failure(op, key, b.Origin(), b.connection(err), covey.ErrUnavailable)
}

func (b *s3Bucket) failAnswer(op, key string, answer *smithyhttp.ResponseError, err error) error {
	status := answer.HTTPStatusCode()
	if status/100 == 2 {
		// A body that broke off or was no XML.
		return failure(op, key, b.Origin(), b.where()+" sent an answer that cannot be read", covey.ErrUnavailable)
	}
	code := ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	if status/100 == 3 {
		return failure(op, key, b.Origin(), b.moved(answer), covey.ErrInvalid)
	}
	kind, ok := s3Codes[code]
	if !ok {
		kind = statusKind(status)
	}
	detail := fmt.Sprintf("%s answered %d %s", b.where(), status, oneWord(code))
	if hint := advice[code]; hint != "" {
		detail += " (" + hint + ")"
	} else if status == http.StatusForbidden {
		// An answer to HEAD has no code.
		detail += " (" + advice["AccessDenied"] + ")"
	}
	switch {
	case code == "NoSuchBucket":
		return fmt.Errorf("%s %q of %s: %s: bucket %q: %w: %w", op, key, b.Origin(), detail, b.name, errNoBucket, kind)
	case expiredCodes[code] && b.credentials.forget():
		return fmt.Errorf("%s %q of %s: %s: %w: %w", op, key, b.Origin(), detail, errFreshCredentials, kind)
	}
	return failure(op, key, b.Origin(), detail, kind)
}

// moved explains a redirect, which is not followed: it means another region, or
// an endpoint that is not S3.
func (b *s3Bucket) moved(answer *smithyhttp.ResponseError) string {
	if region := answer.Response.Header.Get("X-Amz-Bucket-Region"); regionForm.MatchString(region) {
		return fmt.Sprintf("bucket %q is in another region; use region=%s", b.name, region)
	}
	return fmt.Sprintf("%s answered with a redirect, which is not followed; check the endpoint and the region", b.where())
}

// connection tells why no answer came.
func (b *s3Bucket) connection(err error) string {
	var dns *net.DNSError
	var reason *url.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("connection refused by %s; check that the server runs and the endpoint is right", b.where())
	case errors.As(err, &dns):
		return fmt.Sprintf("no address found for the host of %s; check the endpoint", b.where())
	case errors.As(err, &reason):
		return fmt.Sprintf("request to %s: %s", b.where(), oneLine(reason.Err.Error()))
	}
	return fmt.Sprintf("request to %s: %s", b.where(), oneLine(err.Error()))
}

// oneWord keeps a server's error code if it looks like one.
func oneWord(code string) string {
	if len(code) > 64 || strings.ContainsFunc(code, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "with an odd code"
	}
	return code
}

// oneLine makes a foreign text fit into one line of ours.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return s
}
