package origin_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// faultRig is a bucket with one object behind a proxy that breaks answers.
type faultRig struct {
	server *origintest.S3
	fault  *origintest.Fault
	// direct goes past the proxy.
	direct  origin.Bucket
	content []byte
	version string
}

// quick keeps the pauses of retries short.
var quick = origin.Retry{Tries: 4, Base: time.Millisecond, Max: 5 * time.Millisecond, Total: 10 * time.Second}

func newFaultRig(t *testing.T) *faultRig {
	t.Helper()
	r := &faultRig{server: origintest.StartS3(t)}
	r.fault = origintest.StartFault(t, r.server)
	if err := r.server.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	r.direct = openSource(t, r.server.URL("bucket", ""), r.server.Options()).Bucket
	r.content = make([]byte, 3<<20)
	for i := range r.content {
		r.content[i] = byte(i * i >> 7)
	}
	info, err := r.direct.Put(t.Context(), "dir/object", bytes.NewReader(r.content), int64(len(r.content)))
	if err != nil {
		t.Fatal(err)
	}
	r.version = info.Version
	return r
}

// open returns a bucket through the proxy, and its counts.
func (r *faultRig) open(t *testing.T, retry origin.Retry, timeout time.Duration) (origin.Bucket, *origin.Metrics) {
	t.Helper()
	opts := r.server.Options()
	opts.Retry, opts.Timeout, opts.Metrics, opts.SkipCheck = retry, timeout, origin.NewMetrics(nil), true
	return openSource(t, r.fault.URL("bucket", ""), opts).Bucket, opts.Metrics
}

// readAll reads a range of the object and returns what came.
func (r *faultRig) readAll(t *testing.T, b origin.Bucket, off, n int64) ([]byte, error) {
	t.Helper()
	body, err := b.Get(t.Context(), "dir/object", r.version, covey.Range{Off: off, Len: n})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// patience is the timeout of a case: short where it has to pass, and too long to
// pass by itself on a busy machine where it must not.
func patience(name string) time.Duration {
	if strings.HasPrefix(name, "hang") {
		return time.Second
	}
	return 20 * time.Second
}

// TestFaultsRiddenOut: faults after which a read succeeds, and how many
// requests it takes.
func TestFaultsRiddenOut(t *testing.T) {
	rig := newFaultRig(t)
	for name, c := range map[string]struct {
		acts []origintest.Act
		gets int64
	}{
		"500 and 503":     {[]origintest.Act{origintest.Answer(500, "InternalError"), origintest.Answer(503, "ServiceUnavailable")}, 3}, // fault 18
		"SlowDown":        {[]origintest.Act{origintest.Answer(503, "SlowDown")}, 2},                                                    // fault 18
		"429":             {[]origintest.Act{origintest.Answer(429, "TooManyRequests")}, 2},                                             // fault 19
		"early close":     {[]origintest.Act{origintest.EarlyClose}, 2},                                                                 // fault 21
		"short body":      {[]origintest.Act{origintest.ShortBody(100_000)}, 2},                                                         // fault 21
		"short twice":     {[]origintest.Act{origintest.ShortBody(1), origintest.ShortBody(1 << 20)}, 3},                                // fault 21
		"hang":            {[]origintest.Act{origintest.Hang}, 2},                                                                       // fault 20
		"hang in body":    {[]origintest.Act{origintest.HangBody(1 << 20)}, 2},                                                          // fault 20
		"wrong range":     {[]origintest.Act{origintest.WrongRange}, 2},                                                                 // fault 22
		"200 for 206":     {[]origintest.Act{origintest.WholeObject}, 2},                                                                // fault 22
		"no range header": {[]origintest.Act{origintest.SetHeader("Content-Range", "")}, 2},                                             // fault 22
	} {
		t.Run(name, func(t *testing.T) {
			b, metrics := rig.open(t, quick, patience(name))
			rig.fault.Script("get", c.acts...)
			const off, n = 1000, 2 << 20
			got, err := rig.readAll(t, b, off, n)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, rig.content[off:off+n]) {
				t.Error("wrong bytes")
			}
			if gets := metrics.Requests()["get"]; gets != c.gets {
				t.Errorf("%d GETs, want %d", gets, c.gets)
			}
		})
	}
}

// TestFaultsThatStay: a fault that does not go away ends in the right kind after
// a bounded number of requests.
func TestFaultsThatStay(t *testing.T) {
	rig := newFaultRig(t)
	for name, c := range map[string]struct {
		act  origintest.Act
		kind error
		gets int64
	}{
		"500":           {origintest.Answer(500, "InternalError"), covey.ErrUnavailable, 4}, // fault 18
		"429":           {origintest.Answer(429, ""), covey.ErrThrottled, 4},                // fault 19
		"hang":          {origintest.Hang, covey.ErrUnavailable, 4},                         // fault 20
		"short body":    {origintest.ShortBody(10), covey.ErrUnavailable, 4},                // fault 21
		"wrong range":   {origintest.WrongRange, covey.ErrUnavailable, 4},                   // fault 22
		"200 for 206":   {origintest.WholeObject, covey.ErrUnavailable, 4},                  // fault 22
		"other ETag":    {origintest.SetHeader("ETag", `"other"`), covey.ErrStale, 1},       // fault 24
		"no ETag":       {origintest.SetHeader("ETag", ""), covey.ErrStale, 1},              // fault 24
		"deleted":       {origintest.Answer(404, "NoSuchKey"), covey.ErrNotFound, 1},        // fault 25
		"forbidden":     {origintest.Answer(403, "AccessDenied"), covey.ErrDenied, 1},       // fault 26
		"expired":       {origintest.Answer(400, "ExpiredToken"), covey.ErrDenied, 2},       // fault 26
		"precondition":  {origintest.Answer(412, "PreconditionFailed"), covey.ErrStale, 1},
		"bucket gone":   {origintest.Answer(404, "NoSuchBucket"), covey.ErrNotFound, 1},
		"bad request":   {origintest.Answer(400, "InvalidArgument"), covey.ErrInvalid, 1},
		"not modified":  {origintest.Answer(304, ""), covey.ErrInvalid, 1},
		"status 204":    {origintest.Edit(func(r *http.Response, _ []byte) []byte { r.StatusCode = 204; return nil }), covey.ErrUnavailable, 4},
		"huge total":    {origintest.SetHeader("Content-Range", "bytes 1000-2099151/99999999999999999999"), covey.ErrUnavailable, 4},
		"negative span": {origintest.SetHeader("Content-Range", "bytes -1-5/10"), covey.ErrUnavailable, 4},
	} {
		t.Run(name, func(t *testing.T) {
			b, metrics := rig.open(t, quick, patience(name))
			rig.fault.Always("get", c.act)
			defer rig.fault.Always("get", nil)
			got, err := rig.readAll(t, b, 1000, 2<<20)
			if !errors.Is(err, c.kind) {
				t.Errorf("error %v, want %v", err, c.kind)
			}
			if !bytes.Equal(got, rig.content[1000:1000+len(got)]) {
				t.Error("wrong bytes")
			}
			if gets := metrics.Requests()["get"]; gets != c.gets {
				t.Errorf("%d GETs, want %d", gets, c.gets)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "canary") {
				t.Errorf("error text %q", err)
			}
		})
	}
}

// fault 23: without a checksum that covers the range, corruption on the way is
// not the driver's to see. It is the mesh's digests that find it.
func TestCorruptBodyIsPassedOn(t *testing.T) {
	rig := newFaultRig(t)
	b, _ := rig.open(t, quick, time.Second)
	rig.fault.Script("get", origintest.CorruptBody)
	got, err := rig.readAll(t, b, 0, 4096)
	if err != nil || len(got) != 4096 || bytes.Equal(got, rig.content[:4096]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if covey.Sum(got) == covey.Sum(rig.content[:4096]) {
		t.Error("the digest does not tell")
	}
}

// fault 24: the object is overwritten while the body is broken off; the rest
// must not come from the new version.
func TestOverwrittenDuringResume(t *testing.T) {
	rig := newFaultRig(t)
	b, _ := rig.open(t, quick, time.Second)
	rig.fault.Script("get", origintest.ShortBody(1<<20))
	body, err := b.Get(t.Context(), "dir/object", rig.version, covey.Range{Len: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := rig.direct.Put(t.Context(), "dir/object", bytes.NewReader(make([]byte, 3<<20)), 3<<20); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(body)
	if !errors.Is(err, covey.ErrStale) {
		t.Errorf("error %v", err)
	}
	if !bytes.Equal(rest, rig.content[100:100+len(rest)]) {
		t.Error("bytes of two versions")
	}
}

// fault 27
func TestListingInACircle(t *testing.T) {
	rig := newFaultRig(t)
	for _, key := range []string{"a", "b", "c", "d", "e"} {
		if _, err := rig.direct.Put(t.Context(), key, strings.NewReader(key), 1); err != nil {
			t.Fatal(err)
		}
	}
	var first []byte
	repeat := origintest.Edit(func(_ *http.Response, body []byte) []byte {
		if first == nil {
			first = body
		}
		return first
	})
	ownToken := origintest.Edit(func(r *http.Response, _ []byte) []byte {
		token := r.Request.URL.Query().Get("continuation-token")
		return []byte(`<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>` + token + `x</NextContinuationToken></ListBucketResult>`)
	})
	noToken := origintest.Edit(func(*http.Response, []byte) []byte {
		return []byte(`<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>`)
	})
	outside := origintest.Edit(func(*http.Response, []byte) []byte {
		return []byte(`<ListBucketResult><Contents><Key>../x</Key><Size>1</Size></Contents></ListBucketResult>`)
	})
	for name, c := range map[string]struct {
		act    origintest.Act
		prefix string
		pages  int // at most
	}{
		"page repeats":       {repeat, "", 2},
		"pages without end":  {ownToken, "", 1002},
		"no next token":      {noToken, "", 1},
		"outside the prefix": {outside, "dir/", 1},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := rig.open(t, quick, time.Second)
			rig.fault.Always("list", c.act)
			defer rig.fault.Always("list", nil)
			req := origin.ListRequest{Prefix: c.prefix, Limit: 2}
			for n := 1; ; n++ {
				page, err := b.List(t.Context(), req)
				if err != nil {
					if !errors.Is(err, covey.ErrInvalid) {
						t.Errorf("error %v", err)
					}
					return
				}
				if n >= c.pages || page.Next == "" {
					t.Fatalf("page %d is taken: %+v", n, page)
				}
				req.Token = page.Next
			}
		})
	}
}

// A server that leaves control characters in its XML is asked for escaped keys.
func TestListControlCharacters(t *testing.T) {
	rig := newFaultRig(t)
	b, _ := rig.open(t, quick, time.Second)
	rig.fault.Always("list", origintest.Edit(func(r *http.Response, _ []byte) []byte {
		if r.Request.URL.Query().Get("encoding-type") == "url" {
			return []byte(`<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>a%01+b%2B</Key><Size>1</Size></Contents></ListBucketResult>`)
		}
		return []byte("<ListBucketResult><Contents><Key>a&#x1; b+</Key><Size>1</Size></Contents></ListBucketResult>")
	}))
	page, err := b.List(t.Context(), origin.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Objects) != 1 || page.Objects[0].Key != "a\x01 b+" {
		t.Errorf("%+v", page)
	}
}

// A redirect must not carry the signed request to another host.
func TestRedirectIsNotFollowed(t *testing.T) {
	rig := newFaultRig(t)
	var hits atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer other.Close()
	b, _ := rig.open(t, quick, time.Second)
	for _, op := range []string{"get", "stat", "list"} {
		rig.fault.Always(op, origintest.Redirect(other.URL))
	}
	_, err := rig.readAll(t, b, 0, 10)
	if !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("get: %v", err)
	}
	if _, err := b.Stat(t.Context(), "dir/object"); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("stat: %v", err)
	}
	if _, err := b.List(t.Context(), origin.ListRequest{}); !errors.Is(err, covey.ErrInvalid) {
		t.Errorf("list: %v", err)
	}
	if hits.Load() != 0 {
		t.Error("the redirect was followed")
	}
}

// A server that stops fails reads within the bounds, and they go on when it is
// back.
func TestServerStopsAndComesBack(t *testing.T) {
	rig := newFaultRig(t)
	b, _ := rig.open(t, quick, 500*time.Millisecond)
	if err := rig.server.Stop(); err != nil {
		t.Fatal(err)
	}
	_, err := rig.readAll(t, b, 0, 10)
	if !errors.Is(err, covey.ErrUnavailable) {
		t.Errorf("stopped: %v", err)
	}
	if err := rig.server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := rig.readAll(t, b, 5, 10)
	if err != nil || !bytes.Equal(got, rig.content[5:15]) {
		t.Errorf("back: %q, %v", got, err)
	}
}

// A bandwidth of one does not lend its slot: a body keeps it until Close.
func TestBodyOfBrokenOffReadFreesItsSlot(t *testing.T) {
	rig := newFaultRig(t)
	opts := rig.server.Options()
	opts.Retry, opts.Timeout, opts.InFlight = quick, time.Second, 1
	b := openSource(t, rig.fault.URL("bucket", ""), opts).Bucket
	rig.fault.Script("get", origintest.ShortBody(10), origintest.ShortBody(10))
	if got, err := rig.readAll(t, b, 0, 1<<20); err != nil || !bytes.Equal(got, rig.content[:1<<20]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := b.Stat(t.Context(), "dir/object"); err != nil {
		t.Error(err)
	}
}

// refusedEndpoint returns an endpoint where nobody listens.
func refusedEndpoint(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}
