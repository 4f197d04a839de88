package origin

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
)

// ops are the values of the op label, one for each method of Bucket that sends.
var ops = [...]string{"get", "list", "stat", "put", "delete"}

const (
	opGet = iota
	opList
	opStat
	opPut
	opDelete
)

// Metrics counts what is asked of origins. Make one for an agent and give it to
// every Open. Its methods may be called concurrently.
type Metrics struct {
	requests [len(ops)]atomic.Int64
	bytes    atomic.Int64
}

// NewMetrics returns counters that reg exposes as covey_origin_requests_total
// and covey_origin_bytes_total. A nil reg exposes nothing. It panics when reg
// has them already, as prometheus.MustRegister does.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{}
	if reg == nil {
		return m
	}
	for i, op := range ops {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "covey_origin_requests_total",
			Help:        "Requests sent to under-storage, retries included.",
			ConstLabels: prometheus.Labels{"op": op},
		}, func() float64 { return float64(m.requests[i].Load()) }))
	}
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "covey_origin_bytes_total",
		Help: "Object bytes received from under-storage.",
	}, func() float64 { return float64(m.bytes.Load()) }))
	return m
}

// Requests returns the requests sent so far by op.
func (m *Metrics) Requests() map[string]int64 {
	counts := make(map[string]int64, len(ops))
	for i, op := range ops {
		counts[op] = m.requests[i].Load()
	}
	return counts
}

// Bytes returns the object bytes received so far.
func (m *Metrics) Bytes() int64 { return m.bytes.Load() }

// WithMetrics counts each call of b as a request of its op, and the bytes that
// are read from bodies. A nil m counts nothing.
func WithMetrics(b Bucket, m *Metrics) Bucket {
	if m == nil {
		return b
	}
	return &counted{Bucket: b, m: m}
}

type counted struct {
	Bucket
	m *Metrics
}

func (c *counted) Stat(ctx context.Context, key string) (Info, error) {
	c.m.requests[opStat].Add(1)
	return c.Bucket.Stat(ctx, key)
}

func (c *counted) List(ctx context.Context, req ListRequest) (Page, error) {
	c.m.requests[opList].Add(1)
	return c.Bucket.List(ctx, req)
}

func (c *counted) Get(ctx context.Context, key, version string, r covey.Range) (io.ReadCloser, error) {
	c.m.requests[opGet].Add(1)
	body, err := c.Bucket.Get(ctx, key, version, r)
	if err != nil {
		return nil, err
	}
	return &countedBody{ReadCloser: body, m: c.m}, nil
}

func (c *counted) Put(ctx context.Context, key string, body io.Reader, size int64) (Info, error) {
	c.m.requests[opPut].Add(1)
	return c.Bucket.Put(ctx, key, body, size)
}

func (c *counted) Delete(ctx context.Context, key string) error {
	c.m.requests[opDelete].Add(1)
	return c.Bucket.Delete(ctx, key)
}

type countedBody struct {
	io.ReadCloser
	m *Metrics
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.m.bytes.Add(int64(n))
	return n, err
}
