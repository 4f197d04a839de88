package origin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/covey-cache/covey"
)

const (
	// minPart is the size of a part, and the most that goes in one request: a
	// part that breaks off is sent again whole, 16 MiB are 130 ms at 1 Gb/s.
	minPart = 16 << 20
	// maxParts is S3's own limit; larger objects get larger parts.
	maxParts = 10_000
	// partsInFlight fills a far link, at 16 MiB and 100 MB/s each, to 3 Gb/s.
	partsInFlight = 4
	// copyPart is how much a server copies within one request. Its answer comes
	// at the end, and with copyTimeout it may go at 4 MB/s.
	copyPart    = 256 << 20
	copyTimeout = time.Minute
	// abortTimeout bounds taking away what a failed upload sent.
	abortTimeout = 10 * time.Second
)

// s3Editor writes to a bucket.
type s3Editor struct {
	*s3Bucket
	sender
}

func (b *s3Editor) Upload(ctx context.Context, key string, body io.ReaderAt, size int64, o UploadOptions) (Info, error) {
	if err := b.checkKey("put", key); err != nil {
		return Info{}, err
	}
	if size <= minPart {
		return b.putOne(ctx, key, body, size, o)
	}
	return b.multipart(ctx, key, size, o, func(ctx context.Context, id *string, part int32, r covey.Range) (types.CompletedPart, error) {
		return b.sendPart(ctx, key, id, part, io.NewSectionReader(body, r.Off, r.Len))
	}, partSize(size, minPart))
}

// partSize returns the smallest part in whole MiB, and not below least, of which
// the object has no more than S3 takes.
func partSize(size, least int64) int64 {
	const mib = 1 << 20
	return max(least, (size/maxParts+mib)/mib*mib)
}

// absent is the value of If-None-Match that lets an upload only make an object.
func (o UploadOptions) absent() *string {
	if o.IfAbsent {
		return aws.String("*")
	}
	return nil
}

// failEdit is fail, but that a failed condition means that the object exists.
func (b *s3Editor) failEdit(ctx context.Context, w *watchdog, op, key string, o UploadOptions, err error) error {
	err = b.fail(ctx, w, op, key, err)
	if o.IfAbsent && errors.Is(err, covey.ErrStale) {
		return failure(op, key, b.Origin(), "an object was there first", ErrExists)
	}
	return err
}

// putOne sends the object in one request, with a checksum: some servers keep what
// they got of a body whose connection broke, and would show it as the object.
func (b *s3Editor) putOne(ctx context.Context, key string, body io.ReaderAt, size int64, o UploadOptions) (info Info, err error) {
	sum, err := checksum(io.NewSectionReader(body, 0, size), size)
	if err != nil {
		return Info{}, fmt.Errorf("put %q of %s: %w: %w", key, b.Origin(), err, covey.ErrInvalid)
	}
	err = b.do(ctx, opPut, key, func() error {
		w := watch(ctx, b.timeout)
		defer w.end()
		exact := &exactBody{r: io.NewSectionReader(body, 0, size), rest: size, w: w}
		out, err := b.client.PutObject(w.ctx, &s3.PutObjectInput{
			Bucket: &b.name, Key: &key, Body: exact, ContentLength: &size, IfNoneMatch: o.absent(),
			ChecksumCRC32C: &sum,
		}, unsignedPayload)
		if bad := exact.seal(); bad != nil && ctx.Err() == nil {
			return fmt.Errorf("put %q of %s: %w: %w", key, b.Origin(), bad, covey.ErrInvalid)
		}
		if err != nil {
			return b.failEdit(ctx, w, "put", key, o, err)
		}
		info = s3Info(key, size, aws.ToString(out.ETag), answerDate(out.ResultMetadata))
		return nil
	})
	return info, err
}

// checksum is a body's CRC32C as S3 writes it.
func checksum(r io.Reader, size int64) (string, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, err := io.Copy(h, r)
	if err == nil && n != size {
		err = fmt.Errorf("the body ended %d bytes early", size-n)
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil)), err
}

var unsignedPayload = s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)

// partFunc makes one part of an upload out of a range of the whole.
type partFunc func(ctx context.Context, id *string, part int32, r covey.Range) (types.CompletedPart, error)

// multipart makes an object of parts, in parallel, and takes them away when it
// does not come to its end.
func (b *s3Editor) multipart(ctx context.Context, key string, size int64, o UploadOptions, part partFunc, length int64) (Info, error) {
	id, err := b.begin(ctx, key)
	if err != nil {
		return Info{}, err
	}
	parts := make([]types.CompletedPart, (size+length-1)/length)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(partsInFlight)
	for i := range parts {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() (err error) {
			off := int64(i) * length
			parts[i], err = part(gctx, id, int32(i+1), covey.Range{Off: off, Len: min(length, size-off)})
			return err
		})
	}
	if err = g.Wait(); err == nil {
		err = ctx.Err()
	}
	if err != nil {
		b.abort(ctx, key, id)
		return Info{}, err
	}
	info, err := b.complete(ctx, key, id, size, parts, o)
	if err != nil {
		b.abort(ctx, key, id)
	}
	return info, err
}

func (b *s3Editor) begin(ctx context.Context, key string) (id *string, err error) {
	err = b.do(ctx, opPut, key, func() error {
		w := watch(ctx, b.timeout)
		defer w.end()
		out, err := b.client.CreateMultipartUpload(w.ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: &key})
		if err != nil {
			return b.fail(ctx, w, "put", key, err)
		}
		id = out.UploadId
		return nil
	})
	return id, err
}

func (b *s3Editor) sendPart(ctx context.Context, key string, id *string, number int32, body *io.SectionReader) (part types.CompletedPart, err error) {
	size := body.Size()
	err = b.do(ctx, opPut, key, func() error {
		w := watch(ctx, b.timeout)
		defer w.end()
		exact := &exactBody{r: io.NewSectionReader(body, 0, size), rest: size, w: w}
		out, err := b.client.UploadPart(w.ctx, &s3.UploadPartInput{
			Bucket: &b.name, Key: &key, UploadId: id, PartNumber: &number, Body: exact, ContentLength: &size,
		}, unsignedPayload)
		if bad := exact.seal(); bad != nil && ctx.Err() == nil {
			return fmt.Errorf("put %q of %s: %w: %w", key, b.Origin(), bad, covey.ErrInvalid)
		}
		if err != nil {
			return b.fail(ctx, w, "put", key, err)
		}
		part = types.CompletedPart{PartNumber: &number, ETag: out.ETag}
		return nil
	})
	return part, err
}

// complete makes the object of the parts. A try whose answer was lost may have
// done it: then the upload is unknown to the next try, and what the key has now
// tells.
func (b *s3Editor) complete(ctx context.Context, key string, id *string, size int64, parts []types.CompletedPart, o UploadOptions) (info Info, err error) {
	tries := 0
	err = b.do(ctx, opPut, key, func() error {
		tries++
		w := watch(ctx, max(b.timeout, copyTimeout))
		defer w.end()
		out, err := b.client.CompleteMultipartUpload(w.ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &b.name, Key: &key, UploadId: id, IfNoneMatch: o.absent(),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
		if err == nil {
			info = s3Info(key, size, aws.ToString(out.ETag), answerDate(out.ResultMetadata))
			return nil
		}
		err = b.failEdit(ctx, w, "put", key, o, err)
		if tries > 1 && (errors.Is(err, covey.ErrNotFound) || errors.Is(err, ErrExists)) {
			if now, statErr := b.Stat(ctx, key); statErr == nil && now.Size == size {
				info = now
				return nil
			}
		}
		return err
	})
	return info, err
}

// abort takes the parts of an upload away. What cannot be reached now stays at
// the origin until its own rules for unfinished uploads remove it.
func (b *s3Editor) abort(ctx context.Context, key string, id *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: id})
	if err != nil {
		b.log.Warn("parts of a failed upload may be left at the origin", "origin", b.Origin(), "key", key)
	}
}

// Move copies within the server, under the version, and deletes.
func (b *s3Editor) Move(ctx context.Context, key, version, to string, noReplace bool) (Info, error) {
	if err := errors.Join(b.checkKey("put", key), b.checkKey("put", to)); err != nil {
		return Info{}, err
	}
	var now Info
	err := b.do(ctx, opStat, key, func() (err error) {
		now, err = b.Stat(ctx, key)
		return err
	})
	if err == nil && now.Version != version {
		err = failure("put", to, b.Origin(), "its source is another version by now", covey.ErrStale)
	}
	if err == nil && noReplace {
		err = b.do(ctx, opStat, to, func() error { return b.vacant(ctx, to) })
	}
	if err != nil {
		return Info{}, err
	}
	info, err := b.copy(ctx, now, to)
	if err != nil {
		return Info{}, err
	}
	return info, b.Delete(ctx, key)
}

// vacant is ErrExists when the key has an object. S3 has no conditional copy.
func (b *s3Editor) vacant(ctx context.Context, key string) error {
	_, err := b.Stat(ctx, key)
	switch {
	case err == nil:
		return failure("put", key, b.Origin(), "an object is there", ErrExists)
	case errors.Is(err, covey.ErrNotFound) && !errors.Is(err, errNoBucket):
		return nil
	}
	return err
}

// copySource names an object in the header of a copy.
func (b *s3Editor) copySource(key string) *string {
	parts := strings.Split(key, "/")
	for i := range parts {
		// Servers disagree about a plus sign, which PathEscape leaves as it is.
		parts[i] = strings.ReplaceAll(url.QueryEscape(parts[i]), "+", "%20")
	}
	return aws.String(b.name + "/" + strings.Join(parts, "/"))
}

// ifMatch pins the source of a copy, where it has an ETag.
func ifMatch(version string) *string {
	if strings.HasPrefix(version, "@") {
		return nil
	}
	return aws.String(`"` + version + `"`)
}

func (b *s3Editor) copy(ctx context.Context, from Info, to string) (info Info, err error) {
	if from.Size > copyPart {
		return b.multipart(ctx, to, from.Size, UploadOptions{}, func(ctx context.Context, id *string, part int32, r covey.Range) (types.CompletedPart, error) {
			return b.copyRange(ctx, from, to, id, part, r)
		}, partSize(from.Size, copyPart))
	}
	err = b.do(ctx, opPut, to, func() error {
		w := watch(ctx, max(b.timeout, copyTimeout))
		defer w.end()
		out, err := b.client.CopyObject(w.ctx, &s3.CopyObjectInput{
			Bucket: &b.name, Key: &to, CopySource: b.copySource(from.Key), CopySourceIfMatch: ifMatch(from.Version),
		})
		if err != nil {
			return b.fail(ctx, w, "put", to, err)
		}
		if out.CopyObjectResult == nil {
			return failure("put", to, b.Origin(), "an answer without a result", covey.ErrUnavailable)
		}
		info = s3Info(to, from.Size, aws.ToString(out.CopyObjectResult.ETag), answerDate(out.ResultMetadata))
		return nil
	})
	return info, err
}

func (b *s3Editor) copyRange(ctx context.Context, from Info, to string, id *string, number int32, r covey.Range) (part types.CompletedPart, err error) {
	err = b.do(ctx, opPut, to, func() error {
		w := watch(ctx, max(b.timeout, copyTimeout))
		defer w.end()
		out, err := b.client.UploadPartCopy(w.ctx, &s3.UploadPartCopyInput{
			Bucket: &b.name, Key: &to, UploadId: id, PartNumber: &number,
			CopySource: b.copySource(from.Key), CopySourceIfMatch: ifMatch(from.Version),
			CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", r.Off, r.End()-1)),
		})
		if err != nil {
			return b.fail(ctx, w, "put", to, err)
		}
		if out.CopyPartResult == nil {
			return failure("put", to, b.Origin(), "an answer without a result", covey.ErrUnavailable)
		}
		part = types.CompletedPart{PartNumber: &number, ETag: out.CopyPartResult.ETag}
		return nil
	})
	return part, err
}

// MoveDir is not to be had: it would be one copy an object, in no single step.
func (b *s3Editor) MoveDir(_ context.Context, key, to string) error {
	return failure("rename", key, b.Origin(), fmt.Sprintf("S3 cannot rename a directory to %q in one step", to), ErrUnsupported)
}

// SetMode is not to be had.
func (b *s3Editor) SetMode(_ context.Context, key string, _ fs.FileMode) error {
	return failure("put", key, b.Origin(), "S3 keeps no permissions", ErrUnsupported)
}

// MakeDir stores a marker, an empty object whose key ends with a slash.
func (b *s3Editor) MakeDir(ctx context.Context, key string) error {
	if err := b.checkKey("put", key+"/"); err != nil {
		return err
	}
	_, err := b.putOne(ctx, key+"/", strings.NewReader(""), 0, UploadOptions{})
	return err
}

// RemoveDir removes the marker when nothing else has the prefix.
func (b *s3Editor) RemoveDir(ctx context.Context, key string) error {
	marker := key + "/"
	var page Page
	err := b.do(ctx, opList, marker, func() (err error) {
		page, err = b.List(ctx, ListRequest{Prefix: marker, Limit: 2})
		return err
	})
	if err != nil {
		return err
	}
	for _, o := range page.Objects {
		if o.Key != marker {
			return failure("delete", marker, b.Origin(), "keys begin with it", ErrNotEmpty)
		}
	}
	return b.Delete(ctx, marker)
}

// Delete is the bucket's, tried again.
func (b *s3Editor) Delete(ctx context.Context, key string) error {
	return b.do(ctx, opDelete, key, func() error { return b.s3Bucket.Delete(ctx, key) })
}
