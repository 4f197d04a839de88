package origin

import (
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/covey-cache/covey"
)

// FuzzParse: a source is refused as invalid, or taken and then the same when its
// canonical spelling is taken; and a password never comes back in an error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"s3://bucket/a/b?endpoint=http://h:1&region=r", "file:///a/b", "/a", "s3://u:p@b/", "s3://b/%2f", "gs://x", "s3:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		loc, err := parse(raw)
		if err != nil {
			if !errors.Is(err, covey.ErrInvalid) || strings.ContainsRune(err.Error(), '\n') {
				t.Fatalf("error %q", err)
			}
			return
		}
		if loc.scheme == "s3" {
			if p := loc.prefix; p != "" && (!strings.HasSuffix(p, "/") || strings.HasPrefix(p, "/") || strings.Contains("/"+p, "/../")) {
				t.Fatalf("prefix %q", p)
			}
		}
		if again, err := parse(loc.url()); err != nil || again != loc {
			t.Fatalf("%q is %+v, its canonical %q is %+v, %v", raw, loc, loc.url(), again, err)
		}
		const secret = "s3cr3tCanary"
		for _, raw := range []string{"s3://key:" + secret + "@" + raw, "s3://b/?secret=" + secret + raw} {
			if _, err := parse(raw); err != nil && strings.Contains(err.Error(), secret) {
				t.Fatalf("%q: %v", raw, err)
			}
		}
	})
}

// FuzzContentRange: a header is refused or is a range inside of its total.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 0-9/*", "bytes */10", "bytes 9-0/10", "bytes -1-2/3", "bytes 0-18446744073709551615/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, ok := parseContentRange(s)
		if ok && (start < 0 || end <= start || total < 0 || total > covey.MaxObjectSize || end > covey.MaxObjectSize+1) {
			t.Fatalf("%q: %d %d %d", s, start, end, total)
		}
	})
}

// FuzzCursor: a token is refused or spelt the same again, and the page that it
// leads to never ends before it began.
func FuzzCursor(f *testing.F) {
	f.Add("0:3:keytoken", "next")
	f.Add("1:0:", "")
	f.Add("0:-1:x", "x")
	f.Fuzz(func(t *testing.T, s, next string) {
		c, err := parseCursor(s)
		if err != nil {
			return
		}
		if again, err := parseCursor(c.String()); err != nil || again != c {
			t.Fatalf("%q is %+v, then %+v, %v", s, c, again, err)
		}
		page, err := readPage(&s3.ListObjectsV2Output{IsTruncated: aws.Bool(true), NextContinuationToken: &next}, ListRequest{}, c)
		if err == nil && (page.Next == "" || page.Next == s) {
			t.Fatalf("%q leads to %q", s, page.Next)
		}
	})
}
