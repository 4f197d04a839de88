package gateway

import (
	"errors"
	"testing"

	"github.com/covey-cache/covey"
)

func TestMountOptions(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "ro",
		"rw":                                "rw",
		"xattr,rw":                          "rw,xattr",
		"rw,ro":                             "ro",
		" allow_other , rw,":                "rw,allow_other",
		"uid=0,gid=1000,umask=27,rw":        "rw,uid=0,gid=1000,umask=027",
		"umask=0777,uid=4294967294,uid=007": "ro,uid=7,umask=777",
	} {
		o, err := ParseMountOptions(text)
		if err != nil || o.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, o, err, want)
		}
		if again, err := ParseMountOptions(o.String()); err != nil || again.String() != want {
			t.Errorf("%q does not read itself: %q, %v", want, again, err)
		}
	}
	for _, text := range []string{"rwx", "uid", "uid=", "uid=-1", "uid=4294967295", "gid=x", "umask=9", "umask=1000", "rw=1", "allow_other=no"} {
		if o, err := ParseMountOptions(text); !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("%q: %q, %v", text, o, err)
		}
	}
}
