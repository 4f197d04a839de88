package origintest_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The counts are of the GETs that brought bytes, exactly, over a restart too.
func TestS3Counts(t *testing.T) {
	server, err := origintest.RunS3(t.Context(), origintest.S3Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := server.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	source, err := origin.Open(t.Context(), server.URL("bucket", "pre/fix"), server.Options())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := source.Bucket
	const size = 1000
	info, err := b.Put(t.Context(), "pre/fix/a key 200 - ", strings.NewReader(strings.Repeat("x", size)), size)
	if err != nil {
		t.Fatal(err)
	}
	read := func(n int64) error {
		body, err := b.Get(t.Context(), info.Key, info.Version, covey.Range{Len: n})
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(io.Discard, body)
		return err
	}
	const rounds, workers = 300, 8
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range rounds {
				if err := read(int64(1 + i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if _, err := b.Get(t.Context(), info.Key, "0123", covey.Range{Len: 1}); err == nil {
		t.Error("another version was read")
	}
	wantGets, wantBytes := int64(rounds*workers), int64(workers*rounds*(rounds+1)/2)
	check := func() {
		t.Helper()
		gets, err := server.GetCount()
		if err != nil || gets != wantGets {
			t.Errorf("%d GETs, want %d, %v", gets, wantGets, err)
		}
		size, err := server.GetBytes()
		if err != nil || size != wantBytes {
			t.Errorf("%d bytes, want %d, %v", size, wantBytes, err)
		}
	}
	check()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := read(1); err == nil {
		t.Error("a stopped server answers")
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := read(7); err != nil {
		t.Fatal(err)
	}
	wantGets, wantBytes = wantGets+1, wantBytes+7
	check()
	log, err := server.Log()
	if err != nil {
		t.Fatal(err)
	}
	ops := map[string]int{}
	for _, e := range log {
		if e.Bucket != "bucket" {
			t.Errorf("%+v", e)
		}
		ops[fmt.Sprint(e.Op, " ", e.Status)]++
	}
	if ops["s3_PutObject 200"] != 1 || ops["s3_GetObject 412"] != 1 || ops["s3_ListObjectsV2 200"] != 1 {
		t.Errorf("%v", ops)
	}
}
