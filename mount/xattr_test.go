package mount

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/dataset"
)

// TestXAttr reads the attributes of a mount that has them, and of one that has not.
func TestXAttr(t *testing.T) {
	names := newFakeNames()
	names.file("d/f", "v1", 100)
	m := start(t, names, Options{Describe: func(_ context.Context, path string, e dataset.Entry) (int64, []string, error) {
		if path != "d/f" || e.Version != "v1" {
			return 0, nil, errors.New("asked for " + path)
		}
		return 64, []string{"a", "b"}, nil
	}})
	get := func(path, name string) (string, error) {
		p := make([]byte, 200)
		n, err := unix.Getxattr(m.path(path), name, p)
		return string(p[:max(n, 0)]), err
	}
	for name, want := range map[string]string{
		xattrSource: names.Name(), xattrVersion: "v1", xattrCached: "64", xattrHolders: "a,b",
	} {
		if got, err := get("d/f", name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
		if n, err := unix.Getxattr(m.path("d/f"), name, nil); err != nil || n != len(want) {
			t.Errorf("size of %s: %d, %v", name, n, err)
		}
		if _, err := unix.Getxattr(m.path("d/f"), name, make([]byte, 1)); !errors.Is(err, unix.ERANGE) {
			t.Errorf("%s into one byte: %v", name, err)
		}
	}
	for _, name := range []string{"user.covey.other", "user.x", "security.capability", "trusted.x"} {
		if got, err := get("d/f", name); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s: %q, %v; want ENODATA", name, got, err)
		}
	}
	p := make([]byte, 500)
	n, err := unix.Listxattr(m.path("d/f"), p)
	if err != nil || string(p[:n]) != strings.Join(xattrs, "\x00")+"\x00" {
		t.Errorf("list: %q, %v", p[:max(n, 0)], err)
	}
	if n, err = unix.Listxattr(m.path("d"), p); err != nil || string(p[:n]) != xattrSource+"\x00" {
		t.Errorf("list of a directory: %q, %v", p[:max(n, 0)], err)
	}
	if err := unix.Setxattr(m.path("d/f"), xattrVersion, []byte("x"), 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("set: %v, want EROFS", err)
	}
	without := start(t, names, Options{})
	if _, err := unix.Getxattr(without.path("d/f"), xattrVersion, p); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a mount without: %v, want EOPNOTSUPP", err)
	}
}
