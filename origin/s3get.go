package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/covey-cache/covey"
)

// Get pins the version twice: the server is asked to refuse another one, and the
// answer must say that it is this one, because some servers and most proxies
// ignore conditions. An answer for another range is never used.
func (b *s3Bucket) Get(ctx context.Context, key, version string, r covey.Range) (io.ReadCloser, error) {
	if err := b.checkKey("get", key); err != nil {
		return nil, err
	}
	if r.Off < 0 || r.Len <= 0 || r.Off > covey.MaxObjectSize || r.Len > covey.MaxObjectSize {
		return nil, failure("get", key, b.Origin(), fmt.Sprintf("%d bytes from %d on", r.Len, r.Off), covey.ErrInvalid)
	}
	in := &s3.GetObjectInput{
		Bucket: &b.name, Key: &key,
		Range: aws.String(fmt.Sprintf("bytes=%d-%d", r.Off, r.End()-1)),
	}
	pinned, err := pin(in, version)
	if err != nil {
		return nil, failure("get", key, b.Origin(), err.Error(), covey.ErrInvalid)
	}
	w := watch(ctx, b.timeout)
	out, err := b.client.GetObject(w.ctx, in)
	if err != nil {
		defer w.end()
		return nil, b.fail(ctx, w, "get", key, err)
	}
	w.rest()
	if err := pinned.check(out, r); err != nil {
		// Closed without reading on: the connection is not worth the bytes that
		// a wrong answer may still hold.
		out.Body.Close()
		w.end()
		return nil, fmt.Errorf("get %q of %s: %s sent %w", key, b.Origin(), b.where(), err)
	}
	return &s3Body{bucket: b, ctx: ctx, w: w, key: key, body: out.Body, rest: r.Len}, nil
}

// pinnedVersion is a version in the terms of HTTP conditions.
type pinnedVersion struct {
	etag     string // without quotes; "" when the version is a time
	modified time.Time
	size     int64
}

// pin sets the condition of the request that only this version meets.
func pin(in *s3.GetObjectInput, version string) (pinnedVersion, error) {
	when, ok := strings.CutPrefix(version, "@")
	if !ok {
		if version == "" || strings.ContainsAny(version, "\"\r\n\x00") {
			return pinnedVersion{}, errors.New("a version that is no ETag")
		}
		in.IfMatch = aws.String(`"` + version + `"`)
		return pinnedVersion{etag: version}, nil
	}
	seconds, size, ok := strings.Cut(when, "-")
	unix, err1 := strconv.ParseInt(seconds, 10, 64)
	length, err2 := strconv.ParseInt(size, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return pinnedVersion{}, errors.New("a malformed version")
	}
	p := pinnedVersion{modified: time.Unix(unix, 0).UTC(), size: length}
	// One second later, because some servers take "since" to include the second
	// itself. What slips through by that, check finds.
	since := p.modified.Add(time.Second)
	in.IfUnmodifiedSince = &since
	return p, nil
}

// check returns nil if the answer holds exactly r of exactly this version.
func (p pinnedVersion) check(out *s3.GetObjectOutput, r covey.Range) error {
	if p.etag != "" {
		if got := strings.Trim(aws.ToString(out.ETag), `"`); got != p.etag {
			return fmt.Errorf("another version (%s, not %s): %w", oneWord(got), oneWord(p.etag), covey.ErrStale)
		}
	} else if got := aws.ToTime(out.LastModified); got.Unix() != p.modified.Unix() {
		return fmt.Errorf("a version of another time: %w", covey.ErrStale)
	}
	total, err := checkRange(out, r)
	if err != nil {
		return err
	}
	if p.etag == "" && total != p.size {
		return fmt.Errorf("a version of another size: %w", covey.ErrStale)
	}
	return nil
}

// checkRange returns the size of the whole object if the answer is for r.
func checkRange(out *s3.GetObjectOutput, r covey.Range) (total int64, err error) {
	status, length := 0, aws.ToInt64(out.ContentLength)
	if resp := rawResponse(out.ResultMetadata); resp != nil {
		status = resp.StatusCode
	}
	switch status {
	case http.StatusOK:
		if r.Off != 0 || out.ContentLength == nil || length != r.Len {
			return 0, fmt.Errorf("the whole object instead of a range: %w", covey.ErrUnavailable)
		}
		return length, nil
	case http.StatusPartialContent:
	default:
		return 0, fmt.Errorf("a body with status %d: %w", status, covey.ErrUnavailable)
	}
	start, end, total, ok := parseContentRange(aws.ToString(out.ContentRange))
	switch {
	case !ok:
		return 0, fmt.Errorf("a range without a valid Content-Range: %w", covey.ErrUnavailable)
	case start == r.Off && end == total && end < r.End():
		// The version is right, so it is the caller that asks for too much.
		return 0, fmt.Errorf("%d bytes, all from %d on, instead of %d: %w", end-start, start, r.Len, covey.ErrInvalid)
	case start != r.Off || end != r.End() || total < end:
		return 0, fmt.Errorf("bytes %d to %d instead of %d to %d: %w", start, end, r.Off, r.End(), covey.ErrUnavailable)
	case out.ContentLength != nil && length != r.Len:
		return 0, fmt.Errorf("a body of %d bytes for a range of %d: %w", length, r.Len, covey.ErrUnavailable)
	}
	return total, nil
}

// parseContentRange reads "bytes first-last/total"; end is last+1. A total of
// "*" is not accepted: it would leave the answer half checked.
func parseContentRange(s string) (start, end, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, size, ok1 := strings.Cut(s, "/")
	first, last, ok2 := strings.Cut(span, "-")
	start, err1 := parseSize(first)
	end, err2 := parseSize(last)
	total, err3 := parseSize(size)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || err3 != nil || end < start {
		return 0, 0, 0, false
	}
	return start, end + 1, total, true
}

// parseSize reads a number of digits only, up to MaxObjectSize.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err == nil && n > uint64(covey.MaxObjectSize) {
		err = strconv.ErrRange
	}
	return int64(n), err
}

// s3Body is the body of one GET. It ends with io.EOF after exactly the bytes
// that were asked for, whatever the server sends.
type s3Body struct {
	bucket *s3Bucket
	ctx    context.Context // the caller's
	w      *watchdog
	key    string
	body   io.ReadCloser
	rest   int64
}

func (s *s3Body) Read(p []byte) (int, error) {
	if s.rest == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.w.pet()
	n, err := s.body.Read(p[:min(int64(len(p)), s.rest)])
	s.w.rest()
	s.rest -= int64(n)
	if s.rest == 0 || err == nil {
		return n, nil
	}
	return n, s.broken(err)
}

func (s *s3Body) broken(err error) error {
	b := s.bucket
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("get %q of %s: the body from %s ended %d bytes early: %w: %w",
			s.key, b.Origin(), b.where(), s.rest, io.ErrUnexpectedEOF, covey.ErrUnavailable)
	}
	return b.fail(s.ctx, s.w, "get", s.key, err)
}

// Close drains a body that was read to its end, so that the connection is kept
// for the next request, and cuts off one that was not.
func (s *s3Body) Close() error {
	if s.rest == 0 {
		// Only the end of the message is left; a server that sends more than
		// it announced loses the connection.
		_, _ = io.CopyN(io.Discard, s.body, 1)
	}
	err := s.body.Close()
	s.w.end()
	return err
}
