package gateway

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/covey-cache/covey"
)

// MountOptions are what one mount may have that others have not. The zero value
// is a mount that only reads, for the user that mounts.
type MountOptions struct {
	// RW lets programs write: mount/SEMANTICS.md says what.
	RW bool `json:"rw,omitempty"`
	// AllowOther lets other users than the agent's in; the permission bits count.
	AllowOther bool `json:"allow_other,omitempty"`
	// UID and GID own every entry; nil means the agent's.
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
	// XAttr gives files extended attributes (user.covey.*); not with RW.
	XAttr bool `json:"xattr,omitempty"`
	// Umask takes permissions from what its origin has none for; nil means 022.
	Umask *uint32 `json:"umask,omitempty"`
}

// ParseMountOptions reads options as mount(8) writes them: rw, ro, allow_other,
// xattr, uid=N, gid=N and umask=OCTAL, with commas in between. A later one wins.
func ParseMountOptions(text string) (MountOptions, error) {
	var o MountOptions
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		if err := o.set(word); err != nil {
			return MountOptions{}, err
		}
	}
	return o, nil
}

func (o *MountOptions) set(word string) error {
	name, value, valued := strings.Cut(word, "=")
	numbers := map[string]struct {
		to   **uint32
		base int
		most uint64
	}{"uid": {&o.UID, 10, 1<<32 - 2}, "gid": {&o.GID, 10, 1<<32 - 2}, "umask": {&o.Umask, 8, 0o777}}
	if n, ok := numbers[name]; ok && valued {
		v, err := strconv.ParseUint(value, n.base, 32)
		if err != nil || v > n.most {
			return fmt.Errorf("mount option %q: it takes a number, base %d, up to %s: %w", word, n.base, strconv.FormatUint(n.most, n.base), covey.ErrInvalid)
		}
		*n.to = new(uint32)
		**n.to = uint32(v)
		return nil
	}
	switch word {
	case "rw":
		o.RW = true
	case "ro":
		o.RW = false
	case "allow_other":
		o.AllowOther = true
	case "xattr":
		o.XAttr = true
	default:
		return fmt.Errorf("mount option %q is not known; rw, ro, allow_other, xattr, uid=N, gid=N and umask=OCTAL are: %w", word, covey.ErrInvalid)
	}
	return nil
}

// String is the inverse of ParseMountOptions.
func (o MountOptions) String() string {
	words := []string{"ro"}
	if o.RW {
		words[0] = "rw"
	}
	if o.AllowOther {
		words = append(words, "allow_other")
	}
	if o.XAttr {
		words = append(words, "xattr")
	}
	for _, n := range []struct {
		name, format string
		v            *uint32
	}{{"uid", "%d", o.UID}, {"gid", "%d", o.GID}, {"umask", "%03o", o.Umask}} {
		if n.v != nil {
			words = append(words, n.name+"="+fmt.Sprintf(n.format, *n.v))
		}
	}
	return strings.Join(words, ",")
}
