package ahead

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/covey-cache/covey"
)

// Manifest says which samples a data set has, and where they lie.
type Manifest struct {
	// Root is the directory in the data set that all paths are below; "" is the
	// data set's own.
	Root string
	// Files are paths below Root in the order of their samples; none means all
	// files, in ascending order of their paths' bytes.
	Files []string
	// Suffixes keep of a listing the files that end so, in any case.
	Suffixes []string
	// Counts has the number of samples of each file; none means one each.
	Counts []uint32
	// Ranges are the samples' places as [AppendRange] writes them; none means
	// that the samples of one file are of one length.
	Ranges []byte
	// Format names the way in which a file's samples are found by looking into
	// it; the empty one is not to look.
	Format string
}

// manifestDomain is hashed in front, so that a later encoding can have its own.
const manifestDomain = "covey/manifest/1\n"

// Digest names a manifest of a data set: nodes that have the same one read the
// same samples. source is the data set's canonical name.
func (m *Manifest) Digest(source string) [32]byte {
	h := blake3.New()
	b := append([]byte(manifestDomain), binary.AppendUvarint(nil, uint64(len(source)))...)
	b = append(b, source...)
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
		if len(b) > 32<<10 {
			_, _ = h.Write(b) // a hash takes everything
			b = b[:0]
		}
	}
	list := func(all []string) {
		b = binary.AppendUvarint(b, uint64(len(all)))
		for _, s := range all {
			text(s)
		}
	}
	text(m.Root)
	text(m.Format)
	list(m.Files)
	list(m.Suffixes)
	b = binary.AppendUvarint(b, uint64(len(m.Counts)))
	for _, n := range m.Counts {
		b = binary.AppendUvarint(b, uint64(n))
	}
	b = binary.AppendUvarint(b, uint64(len(m.Ranges)))
	_, _ = h.Write(b)
	_, _ = h.Write(m.Ranges)
	return [32]byte(h.Sum(nil))
}

// AppendRange appends where the next sample lies: skip is how many files to go
// on from the one of the sample before (from the first file, for the first
// sample), gap how many bytes to pass over from the end of the sample before in
// the same file or from the start of a new one, and length the sample's.
func AppendRange(b []byte, skip uint32, gap, length uint64) []byte {
	b = binary.AppendUvarint(b, uint64(skip))
	b = binary.AppendUvarint(b, gap)
	return binary.AppendUvarint(b, length)
}

// ranges are the places of samples within files.
type ranges struct {
	first []uint64 // the first sample of each file, and the end
	off   []int64
	len   []uint32
}

// parseRanges reads what AppendRange wrote, for files of the given number, into
// samples of at most 4 GiB. Bytes that say something else are ErrInvalid.
func parseRanges(b []byte, files int) (*ranges, error) {
	r := &ranges{first: make([]uint64, 1, files+1)}
	var end int64
	for len(b) > 0 {
		var v [3]uint64
		for i := range v {
			x, n := binary.Uvarint(b)
			if n <= 0 || x > uint64(covey.MaxObjectSize) {
				return nil, fmt.Errorf("manifest ranges: sample %d is malformed: %w", len(r.off), covey.ErrInvalid)
			}
			v[i], b = x, b[n:]
		}
		skip, gap, length := v[0], v[1], v[2]
		if skip > 0 {
			end = 0
		}
		if length > 1<<32-1 || uint64(len(r.first))+skip > uint64(files) || uint64(end)+gap+length > uint64(covey.MaxObjectSize) {
			return nil, fmt.Errorf("manifest ranges: sample %d lies outside its file or the %d files: %w", len(r.off), files, covey.ErrInvalid)
		}
		for range skip {
			r.first = append(r.first, uint64(len(r.off)))
		}
		end += int64(gap)
		r.off, r.len = append(r.off, end), append(r.len, uint32(length))
		end += int64(length)
	}
	for len(r.first) < files+1 {
		r.first = append(r.first, uint64(len(r.off)))
	}
	return r, nil
}
