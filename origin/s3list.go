package origin

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/covey-cache/covey"
)

// maxListLimit is the most that S3 returns in a page.
const maxListLimit = 1000

// maxEmptyPages is how many pages without an entry may follow each other. A
// server sends some where many objects were deleted; one that sends them for
// ever would keep the caller listing for ever.
const maxEmptyPages = 1000

// listCursor is what Page.Next of this driver says: where the server goes on,
// and what was last seen, so that each page can be held against the one before.
type listCursor struct {
	empty int // pages without an entry up to here
	last  string
	token string
}

func (c listCursor) String() string {
	return fmt.Sprintf("%d:%d:%s%s", c.empty, len(c.last), c.last, c.token)
}

func parseCursor(s string) (c listCursor, err error) {
	empty, rest, ok1 := strings.Cut(s, ":")
	size, rest, ok2 := strings.Cut(rest, ":")
	c.empty, err = strconv.Atoi(empty)
	n, err2 := strconv.Atoi(size)
	if !ok1 || !ok2 || err != nil || err2 != nil || n < 0 || n > len(rest) {
		return listCursor{}, errors.New("a token that no page gave")
	}
	c.last, c.token = rest[:n], rest[n:]
	return c, nil
}

func (b *s3Bucket) List(ctx context.Context, req ListRequest) (Page, error) {
	var at listCursor
	if req.Token != "" {
		var err error
		if at, err = parseCursor(req.Token); err != nil {
			return Page{}, failure("list", req.Prefix, b.Origin(), err.Error(), covey.ErrInvalid)
		}
	}
	limit := int32(maxListLimit)
	if req.Limit > 0 && req.Limit < maxListLimit {
		limit = int32(req.Limit)
	}
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &req.Prefix, MaxKeys: &limit}
	if req.Delimiter != "" {
		in.Delimiter = &req.Delimiter
	}
	if at.token != "" {
		in.ContinuationToken = &at.token
	}
	if b.escapeKeys.Load() {
		in.EncodingType = types.EncodingTypeUrl
	}
	w := watch(ctx, b.timeout)
	defer w.end()
	out, err := b.client.ListObjectsV2(w.ctx, in)
	if err != nil {
		b.noteUnreadable(err)
		return Page{}, b.fail(ctx, w, "list", req.Prefix, err)
	}
	if out.EncodingType == types.EncodingTypeUrl {
		err = unescapeKeys(out)
	}
	var page Page
	if err == nil {
		page, err = readPage(out, req, at)
	}
	if err != nil {
		return Page{}, fmt.Errorf("list %q of %s: %s sent %w: %w", req.Prefix, b.Origin(), b.where(), err, covey.ErrInvalid)
	}
	return page, nil
}

// noteUnreadable asks for escaped keys from now on if a page was no XML, because
// keys may hold control characters, which XML cannot carry. Escaped keys are not
// the default, because servers disagree about the escapes. The page itself fails
// with ErrUnavailable, so that the next try brings it.
func (b *s3Bucket) noteUnreadable(err error) {
	var syntax *xml.SyntaxError
	if errors.As(err, &syntax) {
		b.escapeKeys.Store(true)
	}
}

func unescapeKeys(out *s3.ListObjectsV2Output) error {
	unescape := func(s **string) (err error) {
		key, err := url.QueryUnescape(aws.ToString(*s))
		*s = &key
		return err
	}
	var errs []error
	for i := range out.Contents {
		errs = append(errs, unescape(&out.Contents[i].Key))
	}
	for i := range out.CommonPrefixes {
		errs = append(errs, unescape(&out.CommonPrefixes[i].Prefix))
	}
	return errors.Join(errs...)
}

// readPage checks that the answer continues the listing: every name begins with
// the prefix and comes after all that came before. A server that repeats a page
// or goes in circles is found out by that, at once.
func readPage(out *s3.ListObjectsV2Output, req ListRequest, at listCursor) (Page, error) {
	var page Page
	last := at.last
	after := func(name, before string) error {
		switch {
		case !strings.HasPrefix(name, req.Prefix):
			return fmt.Errorf("the name %q outside of the prefix", name)
		case name <= before && before != "":
			return fmt.Errorf("%q after %q: a listing out of order or in a circle", name, before)
		}
		last = max(last, name)
		return nil
	}
	before := at.last
	for _, o := range out.Contents {
		key := aws.ToString(o.Key)
		if err := after(key, before); err != nil {
			return Page{}, err
		}
		before = key
		page.Objects = append(page.Objects, s3Info(key, aws.ToInt64(o.Size), aws.ToString(o.ETag), aws.ToTime(o.LastModified)))
	}
	before = at.last
	for _, p := range out.CommonPrefixes {
		prefix := aws.ToString(p.Prefix)
		if err := after(prefix, before); err != nil {
			return Page{}, err
		}
		before = prefix
		page.Prefixes = append(page.Prefixes, prefix)
	}
	if !aws.ToBool(out.IsTruncated) {
		return page, nil
	}
	next := listCursor{last: last, token: aws.ToString(out.NextContinuationToken)}
	if len(out.Contents)+len(out.CommonPrefixes) == 0 {
		next.empty = at.empty + 1
	}
	switch {
	case next.token == "":
		return Page{}, errors.New("a page that is not the last and names no next one")
	case next.token == at.token:
		return Page{}, errors.New("a page that names itself as the next: a listing in a circle")
	case next.empty > maxEmptyPages:
		return Page{}, fmt.Errorf("%d pages without an entry", next.empty)
	}
	page.Next = next.String()
	return page, nil
}
