package origin_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openSource opens what the test needs and closes it afterwards.
func openSource(t *testing.T, url string, opts origin.Options) *origin.Source {
	t.Helper()
	source, err := origin.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
	return source
}

func TestSuitePosix(t *testing.T) {
	origintest.Suite(t, func(t *testing.T) (origin.Bucket, string) {
		return openSource(t, t.TempDir(), origin.Options{}).Bucket, ""
	})
}

func TestSuiteS3(t *testing.T) {
	server := origintest.StartS3(t)
	if err := server.CreateBucket("suite"); err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	origintest.Suite(t, func(t *testing.T) (origin.Bucket, string) {
		prefix := fmt.Sprintf("part %d/", n.Add(1))
		source := openSource(t, server.URL("suite", prefix), server.Options())
		return source.Bucket, source.Prefix
	})
}
