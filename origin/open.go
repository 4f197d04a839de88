package origin

import (
	"context"
)

// Source is what a source URL names: a bucket and the prefix in it that the data
// set begins at.
type Source struct {
	Bucket Bucket
	// Editor changes the bucket for mounts that may write; nil where the driver
	// only reads. It shares the bucket's limit on requests.
	Editor Editor
	// Prefix is "" or ends with "/". Every key of the data set begins with it.
	Prefix string
	// URL is the source in its canonical spelling, for people and logs.
	URL string

	// close gives back what the driver holds, nil for nothing.
	close func() error
}

// Close gives back idle connections or descriptors. Requests under way are not
// disturbed; nothing may be asked of the bucket afterwards.
func (s *Source) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// Open parses a source URL (or a plain path) and returns what it names. Unless
// Options.SkipCheck is set it checks that the place exists and may be listed, so
// that a wrong bucket, path or credential is told at once; the check takes at
// most openTimeout. Errors are one line that names the URL, never a credential,
// and wrap ErrInvalid for one that is malformed or of an unknown scheme.
//
// The bucket is decorated: retries outside, so that one that waits for its turn
// to try again holds no slot; then the limit; then the counting, so that each
// request that is really sent counts, a retry too.
func Open(ctx context.Context, rawURL string, opts Options) (*Source, error) {
	return open(ctx, rawURL, opts.withDefaults())
}
