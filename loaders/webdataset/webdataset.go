// Package webdataset finds the samples in a tar file as WebDataset has them:
// members that follow each other and have the same name up to the first dot of
// its last part.
package webdataset

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/covey-cache/covey"
)

// Sample is the members of one key, which lie side by side.
type Sample struct {
	Key string
	// Range is from the header of the first member to the end of the last, the
	// padding behind it included.
	covey.Range
	// Members are their extensions, in the order of the file.
	Members []string
}

// maxMembers bounds the members of one sample: WebDataset's users have a few.
const maxMembers = 1024

// Index returns the samples of a tar file of the given size, in order. Only the
// headers are read. Members that WebDataset leaves out (directories and others
// that are no files, names without a dot, names in __…__) are none of a sample's.
// A file that is no tar, is cut off, or has more than most samples is
// covey.ErrInvalid.
func Index(r io.ReaderAt, size int64, most int) ([]Sample, error) {
	section := &counted{SectionReader: io.NewSectionReader(r, 0, size)}
	t := tar.NewReader(section)
	var found []Sample
	var open *Sample
	for from := int64(0); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, section.explain(err, from)
		}
		data := section.at()
		end := data + (h.Size+511)&^511
		if h.Size < 0 || data+h.Size > size {
			return nil, fmt.Errorf("tar member %q of %d bytes ends behind the file's %d: %w", h.Name, h.Size, size, covey.ErrInvalid)
		}
		key, ext, ok := split(h)
		switch {
		case !ok:
			open = nil
		case open != nil && open.Key == key && len(open.Members) < maxMembers:
			open.Members = append(open.Members, ext)
			open.Len = end - open.Off
		case len(found) == most:
			return nil, fmt.Errorf("tar file with more than %d samples: %w", most, covey.ErrInvalid)
		default:
			found = append(found, Sample{Key: key, Range: covey.Range{Off: from, Len: end - from}, Members: []string{ext}})
			open = &found[len(found)-1]
		}
		from = end
	}
}

// split returns the key and the extension of a member.
func split(h *tar.Header) (key, ext string, ok bool) {
	if h.Typeflag != tar.TypeReg || h.Name == "" {
		return "", "", false
	}
	dir, base := path.Split(h.Name)
	name, ext, found := strings.Cut(base, ".")
	if !found || name == "" || strings.HasPrefix(base, "__") && strings.HasSuffix(base, "__") {
		return "", "", false
	}
	return dir + name, strings.ToLower(ext), true
}

// counted knows how far a section was read, so that package tar passes over
// members by seeking and the place of each is known.
type counted struct {
	*io.SectionReader
	failed error // the error of the file beneath, if any
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.SectionReader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		c.failed = err
	}
	return n, err
}

// at is the offset behind what was read.
func (c *counted) at() int64 {
	at, _ := c.Seek(0, io.SeekCurrent) // a section tells where it is
	return at
}

// explain says whether the file could not be read or is no tar.
func (c *counted) explain(err error, from int64) error {
	if c.failed != nil {
		return fmt.Errorf("read the tar header at %d: %w", from, c.failed)
	}
	return fmt.Errorf("tar header at %d: %w: %w", from, err, covey.ErrInvalid)
}
