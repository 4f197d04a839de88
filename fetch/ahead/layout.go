package ahead

import (
	"context"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/fetch/plan"
)

const (
	// maxFiles bounds a manifest's files: at about 150 bytes each, 600 MB, which
	// is what an agent of the largest data sets can spare.
	maxFiles = 4 << 20
	// maxNames bounds their paths and versions together. Offsets into them are
	// 32 bits.
	maxNames = 1 << 30
)

// Span is where a sample lies: Len bytes of a file from Off on.
type Span struct {
	File     int
	Off, Len int64
}

// Layout is a manifest with every file looked up: the blocks behind each sample.
// It is immutable, and its methods may be called concurrently.
type Layout struct {
	ds     *dataset.Dataset
	digest [32]byte
	bytes  int64

	// names holds each file's path and then its version; ends are where they end.
	names string
	ends  []uint32
	sizes []int64
	// first is the first sample of each file, and the number of samples behind
	// it; nil when each file is one sample.
	first  []uint64
	ranges *ranges // nil when the samples of a file are of one length
	// keys are the hashes of the objects' keys, sorted.
	keys []uint64
}

// Indexer finds the samples in a file, by looking into it: it returns for each
// where it begins and how long it is, in order.
type Indexer func(ctx context.Context, file string, e dataset.Entry) ([]covey.Range, error)

// Resolve looks up every file of a manifest. index is needed when the manifest
// has a Format. A file that does not exist, a directory in a file's place, or
// counts that are not the files' are ErrInvalid.
func Resolve(ctx context.Context, ds *dataset.Dataset, m *Manifest, index Indexer) (*Layout, error) {
	b := builder{l: &Layout{ds: ds, digest: m.Digest(ds.Name())}, m: m}
	var err error
	if len(m.Files) > 0 {
		err = b.named(ctx)
	} else {
		err = b.listed(ctx)
	}
	if err == nil {
		err = b.samples(ctx, index)
	}
	if err != nil {
		return nil, err
	}
	return b.l, nil
}

// builder makes a layout.
type builder struct {
	l     *Layout
	m     *Manifest
	names strings.Builder
}

func (b *builder) add(file string, e dataset.Entry) error {
	l := b.l
	if len(l.sizes) == maxFiles || b.names.Len()+len(file)+len(e.Version) > maxNames {
		return fmt.Errorf("manifest of more than %d files, or %d bytes of names: %w", maxFiles, maxNames, covey.ErrInvalid)
	}
	for _, s := range [...]string{file, e.Version} {
		b.names.WriteString(s)
		l.ends = append(l.ends, uint32(b.names.Len()))
	}
	l.sizes = append(l.sizes, e.Size)
	l.keys = append(l.keys, xxhash.Sum64String(l.ds.Prefix()+file))
	l.bytes += e.Size
	return nil
}

func (b *builder) named(ctx context.Context) error {
	for _, name := range b.m.Files {
		file := join(b.m.Root, name)
		real, e, err := b.follow(ctx, file)
		if err != nil {
			return fmt.Errorf("manifest file %q: %w", name, err)
		}
		if err := b.add(real, e); err != nil {
			return err
		}
	}
	return nil
}

// maxLinks is how many links in a row are followed, as Linux does.
const maxLinks = 40

// follow looks a file up, through links within the data set.
func (b *builder) follow(ctx context.Context, file string) (string, dataset.Entry, error) {
	for range maxLinks {
		e, err := b.l.ds.Lookup(ctx, file)
		switch {
		case err != nil:
			return "", e, err
		case e.Kind == dataset.File:
			return file, e, nil
		case e.Kind != dataset.Symlink || path.IsAbs(e.Link):
			return "", e, fmt.Errorf("a %s: %w", e.Kind, covey.ErrInvalid)
		}
		if file = path.Join(path.Dir(file), e.Link); file == ".." || strings.HasPrefix(file, "../") {
			break
		}
	}
	return "", dataset.Entry{}, fmt.Errorf("a link that leads nowhere: %w", covey.ErrInvalid)
}

func (b *builder) listed(ctx context.Context) error {
	var endings []string
	for _, s := range b.m.Suffixes {
		endings = append(endings, strings.ToLower(s))
	}
	for f, err := range b.l.ds.Walk(ctx, b.m.Root) {
		if err != nil {
			return fmt.Errorf("list the manifest's files: %w", err)
		}
		if !endsIn(f.Path, endings) {
			continue
		}
		file, e := f.Path, f.Entry
		if e.Kind == dataset.Symlink {
			// The loader's listing has links to files and leaves out others.
			if file, e, err = b.follow(ctx, file); err != nil {
				continue
			}
		}
		if err := b.add(file, e); err != nil {
			return err
		}
	}
	return nil
}

func endsIn(name string, endings []string) bool {
	name = strings.ToLower(name)
	return len(endings) == 0 || slices.ContainsFunc(endings, func(s string) bool { return strings.HasSuffix(name, s) })
}

func join(root, name string) string {
	if root == "" {
		return name
	}
	return root + "/" + name
}

// samples cuts the files into samples.
func (b *builder) samples(ctx context.Context, index Indexer) (err error) {
	l, m := b.l, b.m
	l.names = b.names.String()
	slices.Sort(l.keys)
	switch {
	case m.Format != "":
		l.ranges, err = b.indexed(ctx, index)
	case len(m.Ranges) > 0:
		l.ranges, err = parseRanges(m.Ranges, len(l.sizes))
	case len(m.Counts) > 0:
		if len(m.Counts) != len(l.sizes) {
			return fmt.Errorf("manifest with %d counts for %d files: %w", len(m.Counts), len(l.sizes), covey.ErrInvalid)
		}
		l.first = make([]uint64, 1, len(m.Counts)+1)
		for i, n := range m.Counts {
			l.first = append(l.first, l.first[i]+uint64(n))
		}
	}
	if err != nil {
		return err
	}
	if l.ranges != nil {
		l.first = l.ranges.first
		for i := range l.sizes {
			if last := l.first[i+1]; last > l.first[i] && l.ranges.off[last-1]+int64(l.ranges.len[last-1]) > l.sizes[i] {
				return fmt.Errorf("manifest ranges: samples of %q lie behind its end: %w", l.path(i), covey.ErrInvalid)
			}
		}
	}
	if l.Samples() > plan.MaxSamples {
		return fmt.Errorf("manifest of %d samples, more than %d: %w", l.Samples(), uint64(plan.MaxSamples), covey.ErrInvalid)
	}
	return nil
}

// indexed looks into every file.
func (b *builder) indexed(ctx context.Context, index Indexer) (*ranges, error) {
	r := &ranges{first: []uint64{0}}
	for i := range b.l.sizes {
		spans, err := index(ctx, b.l.path(i), b.l.entry(i))
		if err != nil {
			return nil, fmt.Errorf("find the samples of %q: %w", b.l.path(i), err)
		}
		for _, s := range spans {
			if s.Len > 1<<32-1 {
				return nil, fmt.Errorf("find the samples of %q: one of %d bytes: %w", b.l.path(i), s.Len, covey.ErrInvalid)
			}
			r.off, r.len = append(r.off, s.Off), append(r.len, uint32(s.Len))
		}
		if len(r.off) > maxIndexed {
			return nil, fmt.Errorf("more than %d samples in the files: %w", maxIndexed, covey.ErrInvalid)
		}
		r.first = append(r.first, uint64(len(r.off)))
	}
	return r, nil
}

// maxIndexed bounds the samples whose places are kept, at 12 bytes each.
const maxIndexed = 64 << 20

func (l *Layout) part(i int) string {
	from := uint32(0)
	if i > 0 {
		from = l.ends[i-1]
	}
	return l.names[from:l.ends[i]]
}

func (l *Layout) path(file int) string { return l.part(2 * file) }

func (l *Layout) entry(file int) dataset.Entry {
	_, name := path.Split(l.path(file))
	return dataset.Entry{Name: name, Kind: dataset.File, Size: l.sizes[file], Version: l.part(2*file + 1)}
}

// Digest is the manifest's.
func (l *Layout) Digest() [32]byte { return l.digest }

// Files is the number of files.
func (l *Layout) Files() int { return len(l.sizes) }

// Bytes is the length of all files together.
func (l *Layout) Bytes() int64 { return l.bytes }

// Samples is the number of samples.
func (l *Layout) Samples() uint64 {
	if l.first == nil {
		return uint64(len(l.sizes))
	}
	return l.first[len(l.sizes)]
}

// Whole says that each sample is a whole file.
func (l *Layout) Whole() bool { return l.first == nil }

// Span returns where a sample below Samples lies.
func (l *Layout) Span(sample uint32) Span {
	if l.first == nil {
		return Span{File: int(sample), Len: l.sizes[sample]}
	}
	s := uint64(sample)
	file := sort.Search(len(l.sizes), func(i int) bool { return l.first[i+1] > s })
	if l.ranges != nil {
		return Span{File: file, Off: l.ranges.off[s], Len: int64(l.ranges.len[s])}
	}
	n, at := int64(l.first[file+1]-l.first[file]), int64(s-l.first[file])
	off := share(l.sizes[file], at, n)
	return Span{File: file, Off: off, Len: share(l.sizes[file], at+1, n) - off}
}

// share is size*at/n, which may overflow.
func share(size, at, n int64) int64 { return size/n*at + size%n*at/n }

// Object is one of the files, below Files.
func (l *Layout) Object(file int) covey.Object { return l.ds.Object(l.path(file), l.entry(file)) }

// Extent returns where a block of a file is advertised.
func (l *Layout) Extent(ctx context.Context, file, block int) (*covey.Extent, int, error) {
	return l.ds.Extent(ctx, l.path(file), l.entry(file), block)
}

// Has reports whether an object is one of the files, or was in another version:
// by a hash, so that one in 2^40 others passes for one.
func (l *Layout) Has(o covey.Object) bool {
	if o.Origin != l.ds.Bucket().Origin() {
		return false
	}
	_, ok := slices.BinarySearch(l.keys, xxhash.Sum64String(o.Key))
	return ok
}
