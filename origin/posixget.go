package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/covey-cache/covey"
)

// readChunk is how much is read from the file at a time: the largest read that
// NFS clients send (rsize), and 4 system calls for a block.
const readChunk = 1 << 20

// Get opens the file and compares its version before the first byte and after
// each read, before the bytes are given out. A file replaced by a rename is read
// on as it was; one changed in place is ErrStale at the first read that could
// have seen the change. On NFS the comparison is as good as its attribute cache,
// which opening the file has just renewed.
func (b *posixBucket) Get(ctx context.Context, key, version string, r covey.Range) (io.ReadCloser, error) {
	if err := b.checkKey(key); err != nil {
		return nil, b.fail(ctx, "get", key, err)
	}
	if r.Off < 0 || r.Len <= 0 || r.Off > covey.MaxObjectSize || r.Len > covey.MaxObjectSize {
		return nil, failure("get", key, b.Origin(), fmt.Sprintf("%d bytes from %d on", r.Len, r.Off), covey.ErrInvalid)
	}
	file, err := aside(ctx, b, nil, func() (*os.File, error) { return b.openVersion(key, version, r) },
		func(f *os.File) { f.Close() })
	if err != nil {
		return nil, b.fail(ctx, "get", key, err)
	}
	return &posixBody{bucket: b, ctx: ctx, key: key, version: version, file: file, off: r.Off, rest: r.Len}, nil
}

func (b *posixBucket) openVersion(key, version string, r covey.Range) (*os.File, error) {
	root, err := b.open()
	if err != nil {
		return nil, err
	}
	if err := checkParents(root, key); err != nil {
		return nil, err
	}
	info, err := root.Lstat(key)
	switch {
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, errLink
	case !info.Mode().IsRegular():
		return nil, fs.ErrNotExist
	}
	// Without O_NONBLOCK a fifo that took the file's place would hold the open.
	file, err := root.OpenFile(key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err = file.Stat(); err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil && posixVersion(info) != version {
		err = fmt.Errorf("it is another version now: %w", covey.ErrStale)
	}
	if err == nil && r.End() > info.Size() {
		err = fmt.Errorf("%d bytes from %d on of %d: %w", r.Len, r.Off, info.Size(), covey.ErrInvalid)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// posixBody reads a range of an open file.
type posixBody struct {
	bucket  *posixBucket
	ctx     context.Context
	key     string
	version string
	file    *os.File
	// off and rest are of the file; chunk is what was read and not given out.
	off, rest int64
	chunk     []byte
	buf       []byte
	err       error
}

func (p *posixBody) Read(dst []byte) (int, error) {
	if p.err == nil && len(p.chunk) == 0 && p.rest > 0 && len(dst) > 0 {
		p.fill()
	}
	if len(p.chunk) == 0 {
		switch {
		case p.err != nil:
			return 0, p.err
		case p.rest == 0:
			return 0, io.EOF
		}
		return 0, nil
	}
	n := copy(dst, p.chunk)
	p.chunk = p.chunk[n:]
	return n, nil
}

// fill reads the next chunk into a buffer of its own: dst belongs to the caller,
// who could not have it back from a read that hangs.
func (p *posixBody) fill() {
	if p.buf == nil {
		p.buf = make([]byte, min(readChunk, p.rest))
	}
	buf := p.buf[:min(int64(len(p.buf)), p.rest)]
	file, off, version := p.file, p.off, p.version
	// Left behind, the call keeps buf; the body has its error then and does not
	// fill again. os.File closes the descriptor once the call is over.
	n, err := aside(p.ctx, p.bucket, nil, func() (int, error) { return readVersion(file, buf, off, version) }, nil)
	if err != nil {
		p.err = p.bucket.fail(p.ctx, "get", p.key, err)
		return
	}
	p.chunk = buf[:n]
	p.off += int64(n)
	p.rest -= int64(n)
}

// readVersion fills buf from off on and makes sure that the file is still the
// same version after that.
func readVersion(file *os.File, buf []byte, off int64, version string) (int, error) {
	n, err := file.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		return 0, err
	case posixVersion(info) != version:
		return 0, fmt.Errorf("it changed while it was read: %w", covey.ErrStale)
	case n < len(buf):
		return 0, errShort
	}
	return n, nil
}

func (p *posixBody) Close() error {
	if p.err == nil {
		p.err = errBodyClosed
	}
	p.chunk = nil
	return p.file.Close()
}
