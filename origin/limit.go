package origin

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/covey-cache/covey"
)

// WithLimit lets at most n calls of b be under way at once; the others wait
// their turn, or until their context ends. A Get keeps its slot until its body
// is closed, because the transfer is what loads the origin and the socket.
func WithLimit(b Bucket, n int) Bucket {
	return &limited{Bucket: b, slots: make(chan struct{}, n)}
}

type limited struct {
	Bucket
	// slots holds one value for each request under way.
	slots chan struct{}
}

func (l *limited) acquire(ctx context.Context, op, key string) error {
	select {
	case l.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case l.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %q: wait for one of %d slots to %s: %w: %w",
			op, key, cap(l.slots), l.Origin(), covey.ErrUnavailable, ctx.Err())
	}
}

func (l *limited) release() { <-l.slots }

func (l *limited) Stat(ctx context.Context, key string) (Info, error) {
	if err := l.acquire(ctx, "stat", key); err != nil {
		return Info{}, err
	}
	defer l.release()
	return l.Bucket.Stat(ctx, key)
}

func (l *limited) List(ctx context.Context, req ListRequest) (Page, error) {
	if err := l.acquire(ctx, "list", req.Prefix); err != nil {
		return Page{}, err
	}
	defer l.release()
	return l.Bucket.List(ctx, req)
}

func (l *limited) Get(ctx context.Context, key, version string, r covey.Range) (io.ReadCloser, error) {
	if err := l.acquire(ctx, "get", key); err != nil {
		return nil, err
	}
	body, err := l.Bucket.Get(ctx, key, version, r)
	if err != nil {
		l.release()
		return nil, err
	}
	return &limitedBody{ReadCloser: body, release: sync.OnceFunc(l.release)}, nil
}

func (l *limited) Put(ctx context.Context, key string, body io.Reader, size int64) (Info, error) {
	if err := l.acquire(ctx, "put", key); err != nil {
		return Info{}, err
	}
	defer l.release()
	return l.Bucket.Put(ctx, key, body, size)
}

func (l *limited) Delete(ctx context.Context, key string) error {
	if err := l.acquire(ctx, "delete", key); err != nil {
		return err
	}
	defer l.release()
	return l.Bucket.Delete(ctx, key)
}

type limitedBody struct {
	io.ReadCloser
	release func()
}

func (b *limitedBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
