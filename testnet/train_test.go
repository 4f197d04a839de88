package testnet_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/covey-cache/covey/loaders/train"
	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// far puts an S3 server at a distance: each request takes so much longer. The
// Host header stays, since it is signed.
func far(tb testing.TB, s3 *origintest.S3, latency time.Duration) (source string) {
	tb.Helper()
	to, err := url.Parse(s3.Endpoint())
	if err != nil {
		tb.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
		FlushInterval: -1,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(latency)
		proxy.ServeHTTP(w, r)
	}))
	tb.Cleanup(server.Close)
	return strings.ReplaceAll(s3.URL(bucket, ""), url.QueryEscape(s3.Endpoint()), url.QueryEscape(server.URL))
}

// trainRun is what covey bench train prints of a run.
type trainRun struct {
	Epochs []struct {
		train.Epoch
		OriginBytes int64 `json:"origin_bytes"`
	}
	FloorBytes int64 `json:"floor_bytes"`
}

// trained runs covey bench train on an agent that has nothing cached.
func trained(tb testing.TB, c *testnet.Cluster, dir, source, cache string, args ...string) trainRun {
	tb.Helper()
	p, err := c.Start(tb.Context(), testnet.AgentSpec{
		Mounts: []peer.MountSpec{{Source: source, Dir: filepath.Join(dir, fmt.Sprint("m", time.Now().UnixNano()))}},
		Join:   []string{}, CacheSize: cache,
	})
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(tb.Context(), coveyBinary, append([]string{"bench", "train", "--json", "--api", "unix://" + p.Client().Socket(), p.Mount()}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("covey bench train: %v", err)
	}
	var r trainRun
	if err := json.Unmarshal(out, &r); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	if err := p.Stop(); err != nil {
		tb.Error(err)
	}
	return r
}

// BenchmarkTrain runs MLPerf Storage's loads, scaled down, over a real S3 server
// that is 20 ms away, with nothing cached: told what will be read, and not. Both
// have a second between the plan and the first batch, as a job has.
func BenchmarkTrain(b *testing.B) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		b.Skip("/dev/fuse is missing; load the module (modprobe fuse), as .ci/run does")
	}
	for _, l := range []struct {
		name  string
		scale float64
		files int
	}{{"resnet50", .05, 8}, {"unet3d", .02, 84}, {"cosmoflow", .05, 1200}} {
		dir, err := os.MkdirTemp("", "cv")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		s3 := origintest.StartS3(b)
		source := filepath.Join(dir, "source")
		if err := train.Loads[l.name].Scaled(l.scale).Generate(source, l.files); err != nil {
			b.Fatal(err)
		}
		tree, err := testnet.ReadTree(source)
		if err != nil {
			b.Fatal(err)
		}
		if err := s3.CreateBucket(bucket); err != nil {
			b.Fatal(err)
		}
		if err := tree.Upload(b.Context(), s3, bucket); err != nil {
			b.Fatal(err)
		}
		at := far(b, s3, 20*time.Millisecond)
		for _, kind := range []string{"hint-free", "planned"} {
			b.Run(l.name+"/"+kind, func(b *testing.B) {
				for b.Loop() {
					// A directory of its own: the cache of the run before is in the last.
					own, err := os.MkdirTemp(dir, "a")
					if err != nil {
						b.Fatal(err)
					}
					c, err := testnet.NewCluster(testnet.ClusterOptions{Binary: coveyBinary, Dir: own, Env: s3.Env()})
					if err != nil {
						b.Fatal(err)
					}
					args := []string{"--load", l.name, "--scale", fmt.Sprint(l.scale), "--epochs", "2"}
					if kind == "planned" {
						args = append(args, "--plan")
					}
					r := trained(b, c, own, at, "4GiB", args...)
					cold, warm := r.Epochs[0], r.Epochs[1]
					if cold.OriginBytes < tree.Bytes/2 {
						b.Fatalf("the cold epoch read %d bytes of the origin's %d: it was not cold", cold.OriginBytes, tree.Bytes)
					}
					b.ReportMetric(100*cold.Utilisation, "%-cold")
					b.ReportMetric(100*warm.Utilisation, "%-warm")
					b.ReportMetric(float64(cold.FirstBatch.Microseconds())/1000, "ms-first-batch")
					b.ReportMetric(float64(cold.Samples)/cold.Took.Seconds(), "samples/s-cold")
					b.ReportMetric(float64(cold.OriginBytes+warm.OriginBytes)/float64(r.FloorBytes), "origin/floor")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
