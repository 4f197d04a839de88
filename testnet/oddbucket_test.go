package testnet_test

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// oddPage is how many names the odd bucket lists at a time, few, so that every
// oddity comes at the edge of some page.
const oddPage = 3

// oddBucket answers as an S3 server does for a bucket whose keys no server over
// a file system can hold: "a//b", "../x", "a" beside "a/b", a name of 256 bytes.
// It reads, and refuses everything else.
type oddBucket struct {
	keys []string // sorted
	at   time.Time
}

// serveOddBucket returns the endpoint of a server with one bucket, named odd.
func serveOddBucket(t *testing.T, keys ...string) string {
	t.Helper()
	slices.Sort(keys)
	s := httptest.NewServer(&oddBucket{keys: keys, at: time.Unix(1700000000, 0)})
	t.Cleanup(s.Close)
	return s.URL
}

func (b *oddBucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, object := strings.CutPrefix(r.URL.Path, "/odd/")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "read only", http.StatusMethodNotAllowed)
	case !object || key == "":
		b.list(w, r.URL.Query())
	case !slices.Contains(b.keys, key):
		w.WriteHeader(http.StatusNotFound)
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
		}
	default:
		w.Header().Set("ETag", oddTag(key))
		http.ServeContent(w, r, "", b.at, strings.NewReader(oddContent(key)))
	}
}

func oddContent(key string) string { return strings.Repeat("content of "+key+"\n", 50) }

func oddTag(key string) string { return fmt.Sprintf(`"%x-%d"`, len(key), len(oddContent(key))) }

func (b *oddBucket) list(w http.ResponseWriter, q url.Values) {
	escape := func(s string) string {
		var text strings.Builder
		for _, r := range s {
			if r < ' ' {
				fmt.Fprintf(&text, "&#%d;", r) // as servers do, though XML 1.0 has none of them but three
			} else if err := xml.EscapeText(&text, []byte(string(r))); err != nil {
				panic(err) // a Builder takes everything
			}
		}
		return text.String()
	}
	encoding := ""
	if q.Get("encoding-type") == "url" {
		escape, encoding = url.QueryEscape, "<EncodingType>url</EncodingType>"
	}
	most := oddPage
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		most = min(most, n)
	}
	var body strings.Builder
	names, truncated := b.names(q.Get("prefix"), q.Get("delimiter"), q.Get("continuation-token"), most)
	for _, name := range names {
		if q.Get("delimiter") != "" && strings.HasSuffix(name, "/") && name != q.Get("prefix") {
			fmt.Fprintf(&body, "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>", escape(name))
			continue
		}
		fmt.Fprintf(&body, "<Contents><Key>%s</Key><Size>%d</Size><ETag>%s</ETag><LastModified>%s</LastModified></Contents>",
			escape(name), len(oddContent(name)), oddTag(name), b.at.UTC().Format(time.RFC3339))
	}
	next := ""
	if truncated {
		next = "<NextContinuationToken>" + url.QueryEscape(names[len(names)-1]) + "</NextContinuationToken>"
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprintf(w, `<?xml version="1.0"?><ListBucketResult>%s<IsTruncated>%v</IsTruncated>%s%s</ListBucketResult>`, encoding, truncated, next, &body)
}

// names lists keys and common prefixes behind the token, at most so many.
func (b *oddBucket) names(prefix, delimiter, token string, most int) (names []string, truncated bool) {
	after, err := url.QueryUnescape(token)
	if err != nil {
		panic(err) // the token is one of ours
	}
	for _, key := range b.keys {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		name := key
		if i := strings.Index(rest, "/"); delimiter != "" && i >= 0 {
			name = prefix + rest[:i+1]
		}
		if name <= after || (len(names) > 0 && names[len(names)-1] == name) {
			continue
		}
		if len(names) == most {
			return names, true
		}
		names = append(names, name)
	}
	return names, false
}
