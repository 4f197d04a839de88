package origin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/origin"
)

// scripted is a bucket whose answers are given in order: each call takes the
// next error, nil and the end of the list mean success. Time, not storage, is
// what these tests are about.
type scripted struct {
	mu    sync.Mutex
	errs  []error
	calls []time.Time
	// bodies are what the next Gets return; then whole ones.
	bodies  []io.Reader
	content []byte
	gate    chan struct{} // when not nil, calls wait for it
}

func (s *scripted) next(ctx context.Context) error {
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, time.Now())
	if len(s.errs) == 0 {
		return nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

func (s *scripted) Origin() string { return "test://" }

func (s *scripted) Stat(ctx context.Context, key string) (origin.Info, error) {
	return origin.Info{Key: key}, s.next(ctx)
}

func (s *scripted) List(ctx context.Context, _ origin.ListRequest) (origin.Page, error) {
	return origin.Page{}, s.next(ctx)
}

func (s *scripted) Get(ctx context.Context, _, _ string, r covey.Range) (io.ReadCloser, error) {
	if err := s.next(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.bodies) > 0 {
		body := s.bodies[0]
		s.bodies = s.bodies[1:]
		return io.NopCloser(body), nil
	}
	return io.NopCloser(bytes.NewReader(s.content[r.Off:r.End()])), nil
}

func (s *scripted) Put(ctx context.Context, key string, body io.Reader, size int64) (origin.Info, error) {
	if _, err := io.Copy(io.Discard, body); err != nil {
		return origin.Info{}, err
	}
	return origin.Info{Key: key, Size: size}, s.next(ctx)
}

func (s *scripted) Delete(ctx context.Context, _ string) error { return s.next(ctx) }

func fails(kind error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = fmt.Errorf("try %d: %w", i, kind)
	}
	return errs
}

func TestRetryBounds(t *testing.T) {
	for _, c := range []struct {
		name  string
		kind  error
		fails int
		retry origin.Retry
		calls int
		ok    bool
	}{
		{"rides out", covey.ErrUnavailable, 3, origin.Retry{}, 4, true},
		{"gives up after the tries", covey.ErrUnavailable, 100, origin.Retry{Tries: 3}, 3, false},
		{"not found is final", covey.ErrNotFound, 100, origin.Retry{}, 1, false},
		{"stale is final", covey.ErrStale, 100, origin.Retry{}, 1, false},
		{"denied is final", covey.ErrDenied, 100, origin.Retry{}, 1, false},
		{"invalid is final", covey.ErrInvalid, 100, origin.Retry{}, 1, false},
		{"unknown is final", errors.New("odd"), 100, origin.Retry{}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{errs: fails(c.kind, c.fails)}
				_, err := origin.WithRetry(s, c.retry, nil).Stat(t.Context(), "key")
				if (err == nil) != c.ok || len(s.calls) != c.calls {
					t.Errorf("%d calls, error %v", len(s.calls), err)
				}
				if !c.ok && !errors.Is(err, c.kind) {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

// fault 18: the pauses are random, and bounded singly and in total.
func TestRetryPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retry := origin.Retry{Tries: 1000, Base: 100 * time.Millisecond, Max: time.Second, Total: 20 * time.Second}
		s := &scripted{errs: fails(covey.ErrUnavailable, 10_000)}
		began := time.Now()
		_, err := origin.WithRetry(s, retry, nil).Stat(t.Context(), "key")
		if !errors.Is(err, covey.ErrUnavailable) {
			t.Error(err)
		}
		if took := time.Since(began); took < 10*time.Second || took > retry.Total {
			t.Errorf("gave up after %v", took)
		}
		pauses := map[time.Duration]bool{}
		for i := 1; i < len(s.calls); i++ {
			pause := s.calls[i].Sub(s.calls[i-1])
			pauses[pause] = true
			if limit := min(retry.Max, retry.Base<<min(i-1, 20)) + 1; pause <= 0 || pause > limit {
				t.Errorf("pause %d of %v, limit %v", i, pause, limit)
			}
		}
		if len(pauses) < len(s.calls)/2 {
			t.Errorf("%d different pauses between %d calls", len(pauses), len(s.calls))
		}
	})
}

// fault 19: one throttled request holds the others back too.
func TestThrottleHoldsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{errs: fails(covey.ErrThrottled, 1)}
		b := origin.WithRetry(s, origin.Retry{Base: time.Hour, Max: time.Hour, Total: 2 * time.Hour}, nil)
		var all sync.WaitGroup
		all.Go(func() {
			if err := b.Delete(t.Context(), "first"); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		began := time.Now()
		for range 10 {
			all.Go(func() {
				if _, err := b.Stat(t.Context(), "other"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if len(s.calls) != 1 {
			t.Errorf("%d calls during the hold", len(s.calls))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		defer cancel()
		if _, err := b.Stat(ctx, "impatient"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		all.Wait()
		if len(s.calls) != 12 || s.calls[1].Equal(began) {
			t.Errorf("%d calls", len(s.calls))
		}
	})
}

func TestRetryEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{errs: fails(covey.ErrUnavailable, 100)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err := origin.WithRetry(s, origin.Retry{Tries: 1000, Base: time.Hour, Max: time.Hour, Total: 10000 * time.Hour}, nil).Stat(ctx, "key")
		if !errors.Is(err, covey.ErrUnavailable) || time.Since(began) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestRetryPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{errs: fails(covey.ErrUnavailable, 2)}
		b := origin.WithRetry(s, origin.Retry{}, nil)
		if _, err := b.Put(t.Context(), "key", strings.NewReader("body"), 4); err != nil || len(s.calls) != 3 {
			t.Errorf("%d calls, %v", len(s.calls), err)
		}
		// A stream cannot be sent twice.
		s.errs, s.calls = fails(covey.ErrUnavailable, 2), nil
		_, err := b.Put(t.Context(), "key", struct{ io.Reader }{strings.NewReader("body")}, 4)
		if !errors.Is(err, covey.ErrUnavailable) || len(s.calls) != 1 {
			t.Errorf("%d calls, %v", len(s.calls), err)
		}
	})
}

// fault 21: a body that breaks off again and again goes on as long as it
// advances, and no longer.
func TestResume(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	broken := iotest.ErrReader(fmt.Errorf("cut: %w", covey.ErrUnavailable))
	piece := func(from, n int) io.Reader {
		return io.MultiReader(bytes.NewReader(content[from:from+n]), broken)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{content: content}
		const mib = 1 << 20
		for i := range 15 {
			s.bodies = append(s.bodies, piece(i*mib, mib))
		}
		got, err := readBody(t, origin.WithRetry(s, origin.Retry{Tries: 2}, nil), int64(len(content)))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}

		s = &scripted{content: content}
		for i := range 100 {
			s.bodies = append(s.bodies, piece(i*10, 10))
		}
		got, err = readBody(t, origin.WithRetry(s, origin.Retry{Tries: 5}, nil), int64(len(content)))
		if !errors.Is(err, covey.ErrUnavailable) || !bytes.Equal(got, content[:len(got)]) || len(s.calls) != 5 {
			t.Errorf("%d bytes in %d calls, %v", len(got), len(s.calls), err)
		}

		// A driver that ends early without saying so.
		s = &scripted{content: content, bodies: []io.Reader{bytes.NewReader(content[:100])}}
		got, err = readBody(t, origin.WithRetry(s, origin.Retry{}, nil), 1000)
		if err != nil || !bytes.Equal(got, content[:1000]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

func readBody(t *testing.T, b origin.Bucket, n int64) ([]byte, error) {
	t.Helper()
	body, err := b.Get(t.Context(), "key", "v", covey.Range{Len: n})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{content: make([]byte, 10), gate: make(chan struct{}, 100)}
		b := origin.WithLimit(s, 2)
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := b.Delete(t.Context(), "key"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Stat(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, covey.ErrUnavailable) {
			t.Error(err)
		}
		for range 5 {
			s.gate <- struct{}{}
		}
		all.Wait()

		// A body keeps its slot until Close, and gives it back once.
		s.gate = nil
		var bodies []io.ReadCloser
		for range 2 {
			body, err := b.Get(t.Context(), "key", "v", covey.Range{Len: 10})
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, body)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.List(ctx, origin.ListRequest{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		for range 3 {
			bodies[0].Close()
		}
		if _, err := b.List(t.Context(), origin.ListRequest{}); err != nil {
			t.Error(err)
		}
		// A Get that fails leaves no slot taken.
		s.errs = fails(covey.ErrNotFound, 3)
		for range 3 {
			if _, err := b.Get(t.Context(), "key", "v", covey.Range{Len: 10}); !errors.Is(err, covey.ErrNotFound) {
				t.Error(err)
			}
		}
		bodies[1].Close()
	})
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := origin.NewMetrics(reg)
	s := &scripted{content: make([]byte, 1000), errs: fails(covey.ErrNotFound, 1)}
	b := origin.WithMetrics(s, m)
	_, _ = b.Stat(t.Context(), "key") // fails, and counts
	_, _ = b.Stat(t.Context(), "key")
	_, _ = b.List(t.Context(), origin.ListRequest{})
	if _, err := readBody(t, b, 1000); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			name := f.GetName()
			for _, l := range metric.GetLabel() {
				name += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			got[name] = metric.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"covey_origin_bytes_total":                 1000,
		`covey_origin_requests_total{op="get"}`:    1,
		`covey_origin_requests_total{op="list"}`:   1,
		`covey_origin_requests_total{op="stat"}`:   2,
		`covey_origin_requests_total{op="put"}`:    0,
		`covey_origin_requests_total{op="delete"}`: 0,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if m.Bytes() != 1000 || m.Requests()["stat"] != 2 {
		t.Errorf("%d bytes, %v", m.Bytes(), m.Requests())
	}
}
