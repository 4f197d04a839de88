package fetch

import (
	"fmt"

	"github.com/covey-cache/covey"
)

// Manifest says what blocks must hash to, by somebody who is trusted more than the
// mesh and the origin are.
type Manifest interface {
	// Digest returns a block's digest; false when the manifest does not list it.
	Digest(l covey.Locator) (covey.Digest, bool)
}

// expected returns what the manifest says of a block. ok is false when there is no
// manifest.
func (f *Fetcher) expected(l covey.Locator) (d covey.Digest, ok bool, err error) {
	if f.opts.Manifest == nil {
		return d, false, nil
	}
	if d, ok = f.opts.Manifest.Digest(l); !ok {
		return d, false, fmt.Errorf("%s is not in the manifest: %w", l, covey.ErrCorrupt)
	}
	return d, true, nil
}

// Vouch checks a block's digest against the manifest: ErrCorrupt when that does not
// list the block, or lists another digest. Without a manifest all is well.
func (f *Fetcher) Vouch(l covey.Locator, d covey.Digest) error {
	want, ok, err := f.expected(l)
	if err != nil {
		return err
	}
	if ok && want != d {
		return fmt.Errorf("%s is %s and the manifest has %s: %w", l, d, want, covey.ErrCorrupt)
	}
	return nil
}

// vouchLocal is Vouch for what the store gave. Bytes that are not the manifest's
// are dropped, so that the right ones can be fetched.
func (f *Fetcher) vouchLocal(l covey.Locator, d covey.Digest) error {
	err := f.Vouch(l, d)
	if err == nil {
		return nil
	}
	f.log.Warn("cached block dropped: it is not the manifest's", "block", l, "error", err)
	f.opts.OnCorrupt("disk", l, "")
	if derr := f.store.Drop(l); derr != nil {
		f.log.Warn("block not dropped", "block", l, "error", derr)
	}
	return err
}
