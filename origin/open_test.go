package origin_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// secretCanary must never show up in an error.
const secretCanary = "s3cr3tCanary"

func TestOpenRefusesBadURLs(t *testing.T) {
	long := strings.Repeat("p", 1024)
	for raw, says := range map[string]string{
		"":                            "empty",
		"ftp://host/x":                `unknown scheme "ftp"`,
		"gs://bucket/x":               "not built",
		"az://account/container":      "not built",
		"hdfs://host:9000/x":          "not built",
		"s3:/bucket/x":                "write s3://",
		"S3:bucket":                   "write s3://",
		"file:/x":                     "write file://",
		"file://host/x":               "three slashes",
		"file:///x?y":                 "%3F",
		"s3://":                       "no bucket",
		"s3:///x":                     "no bucket",
		"s3://a":                      "malformed",
		"s3://under score%/x":         "malformed",
		"s3://bucket:9000/x":          "malformed",
		"s3://bucket/%zz":             "malformed",
		"s3://bucket/../x":            "..",
		"s3://bucket/a/%2e%2e/x":      "..",
		"s3://bucket/a//b":            "empty",
		"s3://bucket//b":              "empty",
		"s3://bucket/a%00b":           "NUL",
		"s3://bucket/a\x00b":          "NUL",
		"s3://bucket/a%ffb":           "UTF-8",
		"s3://bucket/" + long:         "at most",
		"s3://bucket/a#b":             "%23",
		"s3://bucket/a?colour=blue":   `"colour"`,
		"s3://bucket?region=A%20B":    "region",
		"s3://bucket?endpoint=h:1":    "endpoint",
		"s3://bucket?endpoint=ftp://": "endpoint",
		"s3://bucket?endpoint=http://a&endpoint=http://b":            "twice",
		"s3://bucket?endpoint=http://169.254.169.254":                "link-local",
		"s3://AKIA:" + secretCanary + "@bucket/x":                    "credentials",
		"s3://AKIA:" + secretCanary + "/x@bucket/x":                  "malformed",
		"s3://" + secretCanary + "@bucket/x":                         "credentials",
		"s3://bucket/x?access_key=" + secretCanary:                   "credentials",
		"s3://bucket/x?X-Amz-Signature=" + secretCanary:              "credentials",
		"s3://bucket/x?" + secretCanary + "=1":                       "unknown parameter",
		"s3://bucket?endpoint=http://k:" + secretCanary + "@host":    "credentials",
		"s3://bucket?endpoint=http://h%zz:" + secretCanary + "@host": "malformed",
		"file://u:" + secretCanary + "@/x":                           "credentials",
	} {
		_, err := origin.Open(t.Context(), raw, origin.Options{})
		if !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%.80q: error %v, want ErrInvalid", raw, err)
			continue
		}
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%.80q: error %q does not say %q", raw, err, says)
		}
		checkErrorText(t, err)
	}
}

func checkErrorText(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); strings.Contains(text, secretCanary) || strings.ContainsAny(text, "\n\x00") || len(text) > 600 {
		t.Errorf("error text %q", text)
	}
}

func TestOpenCanonical(t *testing.T) {
	noAWSEnvironment(t)
	dir := t.TempDir()
	t.Chdir(dir)
	for raw, want := range map[string]origin.Source{
		"s3://bucket":                                             {URL: "s3://bucket/"},
		"s3://bucket/a/b":                                         {URL: "s3://bucket/a/b/", Prefix: "a/b/"},
		"S3://bucket/a%20b/%3F/":                                  {URL: "s3://bucket/a%20b/%3F/", Prefix: "a b/?/"},
		"s3://Bucket_x/a?region=x":                                {URL: "s3://Bucket_x/a/?region=x", Prefix: "a/"},
		"s3://bucket?endpoint=HTTP://LocalHost:80/":               {URL: "s3://bucket/?endpoint=http%3A%2F%2Flocalhost"},
		"s3://bucket?endpoint=https://[::1]:9000":                 {URL: "s3://bucket/?endpoint=https%3A%2F%2F%5B%3A%3A1%5D%3A9000"},
		"s3://bucket?endpoint=https://s3.eu-west-1.amazonaws.com": {URL: "s3://bucket/?endpoint=https%3A%2F%2Fs3.eu-west-1.amazonaws.com"},
		"file:///a/b%20c/../d/":                                   {URL: "file:///a/d"},
		"/a//b/./c/":                                              {URL: "file:///a/b/c"},
		"rel/x y":                                                 {URL: "file://" + dir + "/rel/x%20y"},
		".":                                                       {URL: "file://" + dir},
	} {
		got, err := origin.Open(t.Context(), raw, origin.Options{SkipCheck: true})
		if err != nil {
			t.Errorf("%q: %v", raw, err)
			continue
		}
		if got.URL != want.URL || got.Prefix != want.Prefix {
			t.Errorf("%q: URL %q prefix %q, want %q and %q", raw, got.URL, got.Prefix, want.URL, want.Prefix)
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The origin's name is the same however a peer came to know the endpoint.
func TestOriginName(t *testing.T) {
	for _, c := range []struct{ raw, env, want string }{
		{"s3://bucket/a", "", "s3://bucket"},
		{"s3://bucket/a?region=eu-west-1", "", "s3://bucket"},
		{"s3://bucket?endpoint=https://s3.eu-west-1.amazonaws.com", "", "s3://bucket"},
		{"s3://bucket?endpoint=http://H:9000/", "", "s3://bucket?endpoint=http://h:9000"},
		{"s3://bucket", "http://H:9000/", "s3://bucket?endpoint=http://h:9000"},
		{"s3://bucket?endpoint=https://h:443", "http://other:1", "s3://bucket?endpoint=https://h"},
		{"/data/set", "", "file:///data/set"},
	} {
		noAWSEnvironment(t)
		t.Setenv("AWS_ENDPOINT_URL_S3", c.env)
		source, err := origin.Open(t.Context(), c.raw, origin.Options{SkipCheck: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := source.Bucket.Origin(); got != c.want {
			t.Errorf("%s with endpoint %q: origin %q, want %q", c.raw, c.env, got, c.want)
		}
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://u:"+secretCanary+"@host")
	_, err := origin.Open(t.Context(), "s3://bucket", origin.Options{SkipCheck: true})
	if !errors.Is(err, covey.ErrInvalid) {
		t.Fatalf("error %v", err)
	}
	checkErrorText(t, err)
}

// noAWSEnvironment keeps this machine's configuration out of a test.
func noAWSEnvironment(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func TestOpenS3Errors(t *testing.T) {
	noAWSEnvironment(t)
	server := origintest.StartS3(t)
	fault := origintest.StartFault(t, server)
	if err := server.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	wrong := func(access, secret string) origin.Options {
		return origin.Options{Credentials: &origin.Credentials{AccessKey: access, SecretKey: secret}}
	}
	right := server.Options()
	refused := "s3://bucket/?endpoint=" + refusedEndpoint(t)
	for _, c := range []struct {
		name, url string
		opts      origin.Options
		list      origintest.Act
		kind      error
		says      string
	}{
		{"missing bucket", server.URL("missing", ""), right, nil, covey.ErrNotFound, `bucket "missing"`},
		{"wrong secret", server.URL("bucket", ""), wrong(right.Credentials.AccessKey, secretCanary), nil, covey.ErrDenied, "secret key is wrong"},
		{"unknown key", server.URL("bucket", ""), wrong("AKIAUNKNOWN", secretCanary), nil, covey.ErrDenied, "AWS_ACCESS_KEY_ID"},
		{"no credentials", server.URL("bucket", ""), origin.Options{}, nil, covey.ErrDenied, "no credentials found"},
		{"refused", refused, right, nil, covey.ErrUnavailable, "connection refused"},
		{"forbidden bucket", fault.URL("bucket", ""), right, origintest.Answer(403, "AccessDenied"), covey.ErrDenied, "s3:ListBucket"},
		{"expired", fault.URL("bucket", ""), right, origintest.Answer(400, "ExpiredToken"), covey.ErrDenied, "renew"},
		{"silent", fault.URL("bucket", ""), origin.Options{Credentials: right.Credentials, Timeout: 200 * time.Millisecond}, origintest.Hang, covey.ErrUnavailable, "silent"},
		{"no S3", fault.URL("bucket", ""), right, origintest.Edit(noXML), covey.ErrUnavailable, "cannot be read"},
		{"missing prefix is empty", server.URL("bucket", "missing"), right, nil, nil, ""},
		{"works", fault.URL("bucket", ""), right, nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			fault.Always("list", c.list)
			began := time.Now()
			source, err := origin.Open(t.Context(), c.url, c.opts)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			if c.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				if err := source.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "open s3://") {
				t.Errorf("error %v; want kind %q and text %q", err, c.kind, c.says)
			}
			checkErrorText(t, err)
		})
	}
}

func noXML(*http.Response, []byte) []byte { return []byte("<html>hello") }

func TestOpenPosixErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		filepath.Join(dir, "missing"): "no such directory",
		file:                          "not a directory",
	} {
		_, err := origin.Open(t.Context(), path, origin.Options{})
		if !errors.Is(err, covey.ErrNotFound) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// With the check skipped, the directory may come later.
	late := filepath.Join(dir, "late")
	source := openSource(t, late, origin.Options{SkipCheck: true, Retry: quick})
	if _, err := source.Bucket.List(t.Context(), origin.ListRequest{}); !errors.Is(err, covey.ErrNotFound) {
		t.Error(err)
	}
	if err := os.Mkdir(late, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Bucket.List(t.Context(), origin.ListRequest{}); err != nil {
		t.Error(err)
	}
}
