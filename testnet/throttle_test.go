package testnet_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// narrow lets so many requests through in a second and answers the others 503
// with Retry-After, as S3 does with a prefix that is asked too much.
type narrow struct {
	perSecond int

	mu      sync.Mutex
	tokens  float64
	last    time.Time
	passed  int
	refused int
}

func (n *narrow) act(w http.ResponseWriter, r *http.Request, forward func() (*http.Response, error)) {
	n.mu.Lock()
	now := time.Now()
	if n.last.IsZero() {
		n.tokens = 1
	} else {
		n.tokens = min(n.tokens+now.Sub(n.last).Seconds()*float64(n.perSecond), 1)
	}
	n.last = now
	ok := n.tokens >= 1
	if ok {
		n.tokens--
		n.passed++
	} else {
		n.refused++
	}
	n.mu.Unlock()
	if ok {
		origintest.Pass(w, r, forward)
		return
	}
	w.Header().Set("Retry-After", "1")
	origintest.Answer(http.StatusServiceUnavailable, "SlowDown")(w, r, forward)
}

// fault 19: an origin that refuses what is too much fails no read of any agent, and
// each block still leaves it about once.
func TestThrottledOriginFailsNoRead(t *testing.T) {
	const nodes, blocks = 4, 24
	m := newMesh(t, map[string]int{"f": blocks * blockSize})
	proxy := origintest.StartFault(t, m.s3)
	var agents []*testnet.Process
	for i := range nodes {
		at := filepath.Join(m.dir, fmt.Sprintf("n%d", i))
		agents = append(agents, m.agentWith(t, testnet.AgentSpec{Mounts: []peer.MountSpec{{Source: proxy.URL(bucket, ""), Dir: at}}}))
	}
	limit := &narrow{perSecond: 4}
	proxy.Always("get", limit.act)
	want := content("f", blocks*blockSize)
	errs := make(chan error)
	began := time.Now()
	for _, p := range agents {
		go func() {
			got, err := os.ReadFile(filepath.Join(p.Mount(), "f"))
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("wrong bytes")
			}
			errs <- err
		}()
	}
	for range agents {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	took := time.Since(began)
	limit.mu.Lock()
	defer limit.mu.Unlock()
	t.Logf("%d blocks to %d agents at %d requests a second in %v: %d passed, %d refused", blocks, nodes, limit.perSecond, took, limit.passed, limit.refused)
	if limit.refused == 0 {
		t.Error("the origin refused nothing")
	}
	if limit.passed > blocks+blocks/2 {
		t.Errorf("%d reads of %d blocks", limit.passed, blocks)
	}
}
