package peer

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
)

// The layout of a cursor file, as gateway/openapi.yaml describes it.
const (
	cursorMagic   = "COVEYCUR"
	cursorVersion = 1
	cursorHeader  = 64
	cursorState   = 16 // where the state is
)

// cursorFile is the file in which a loader says how far its ranks are. The agent
// reads it through its descriptor and does not map it: were a job to truncate a
// file that is mapped, the agent would die of it.
type cursorFile struct {
	path string
	file *os.File
	buf  []byte
	last []uint64
}

// newCursorFile makes the file, with every counter 0.
func newCursorFile(dir, name string, ranks int) (*cursorFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of cursor files: %w", err)
	}
	path := filepath.Join(dir, name+cursorSuffix)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a cursor file: %w", err)
	}
	c := &cursorFile{path: path, file: f, buf: make([]byte, 8*ranks), last: make([]uint64, ranks)}
	b := append(make([]byte, 0, cursorHeader+8*ranks), cursorMagic...)
	for _, v := range [...]uint32{cursorVersion, uint32(ranks), 0, cursorHeader} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	if _, err := f.Write(b[:cap(b)]); err != nil {
		c.end()
		return nil, fmt.Errorf("write the cursor file %s: %w", path, err)
	}
	return c, nil
}

const cursorSuffix = ".cursor"

// read brings the counters up to date and reports whether any has moved on. What
// went backwards, or a file that was cut short, counts as no movement.
func (c *cursorFile) read() (moved bool) {
	if _, err := c.file.ReadAt(c.buf, cursorHeader); err != nil {
		return false
	}
	for i := range c.last {
		if v := binary.LittleEndian.Uint64(c.buf[8*i:]); v > c.last[i] {
			c.last[i], moved = v, true
		}
	}
	return moved
}

// end marks the file as ended, for who has it mapped, and removes it.
func (c *cursorFile) end() {
	_, _ = c.file.WriteAt([]byte{1}, cursorState) // whoever maps it learns the same from renew
	_ = os.Remove(c.path)
	c.file.Close()
}

// removeCursors removes what an agent that died has left.
func removeCursors(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, "*"+cursorSuffix)) // the pattern is right
	for _, f := range left {
		_ = os.Remove(f)
	}
}
