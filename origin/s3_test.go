package origin_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// Objects that the server has no ETag for: files put into its directory.
func TestS3WithoutETag(t *testing.T) {
	server := origintest.StartS3(t)
	if err := server.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(server.BucketDir("bucket"), "file")
	if err := os.WriteFile(path, []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	when := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
	opts := server.Options()
	opts.Retry = quick
	b := openSource(t, server.URL("bucket", ""), opts).Bucket
	info, err := b.Stat(t.Context(), "file")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(info.Version, "@") || !info.ModTime.Equal(when) {
		t.Fatalf("%+v", info)
	}
	page, err := b.List(t.Context(), origin.ListRequest{})
	if err != nil || len(page.Objects) != 1 || page.Objects[0].Version != info.Version {
		t.Errorf("listed %+v, %v; stat %+v", page, err, info)
	}
	read := func(version string) error {
		body, err := b.Get(t.Context(), "file", version, covey.Range{Off: 2, Len: 3})
		if err != nil {
			return err
		}
		return body.Close()
	}
	if err := read(info.Version); err != nil {
		t.Error(err)
	}
	// Another size at the same time, then another time.
	if err := os.WriteFile(path, []byte("01234567890"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
	if err := read(info.Version); !errors.Is(err, covey.ErrStale) {
		t.Errorf("other size: %v", err)
	}
	for _, shift := range []time.Duration{-time.Minute, time.Minute} {
		if err := os.WriteFile(path, []byte("0123456789"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when.Add(shift)); err != nil {
			t.Fatal(err)
		}
		if err := read(info.Version); !errors.Is(err, covey.ErrStale) {
			t.Errorf("time shifted by %v: %v", shift, err)
		}
	}
	for _, version := range []string{"", "@", "@1", "@1-", "@x-1", "a\"b", "a\nb"} {
		if err := read(version); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

// Credentials come by the SDK's standard chain when none are given.
func TestS3StandardChain(t *testing.T) {
	noAWSEnvironment(t)
	server := origintest.StartS3(t)
	if err := server.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	for _, kv := range server.Env() {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	t.Setenv("AWS_ENDPOINT_URL", server.Endpoint()+"/")
	source := openSource(t, "s3://bucket/x", origin.Options{})
	if got, want := source.Bucket.Origin(), "s3://bucket?endpoint="+server.Endpoint(); got != want {
		t.Errorf("origin %q, want %q", got, want)
	}
}
