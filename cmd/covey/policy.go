package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/covey-cache/covey/fetch"
	"github.com/covey-cache/covey/mount"
)

// policy is how data sets are kept fresh and how long a read may wait. Zero
// values mean the defaults of packages dataset and mount.
type policy struct {
	maxAge      time.Duration // negative: ask the origin at each open
	immutable   bool
	readTimeout time.Duration
	profile     mount.Profile
	// verifyManifest is a file, or ""; audit is one in how many blocks.
	verifyManifest string
	audit          int
	// strict refuses reads of the origin that no home has granted.
	strict bool
}

// minReadTimeout is two round trips to a far origin; less would fail reads that
// were about to succeed.
const minReadTimeout = 100 * time.Millisecond

func (p *policy) parse(l layer, _ func(string) string) error {
	if err := p.parseTrust(l); err != nil {
		return err
	}
	if v, ok := l["max-age"]; ok {
		age, err := time.ParseDuration(v.words[0])
		if err != nil || age < 0 {
			return l.fault("max-age", fmt.Errorf("%q is not a time: write it like 30s, 5m or 0s", v.words[0]))
		}
		if p.maxAge = age; age == 0 {
			p.maxAge = -1
		}
	}
	if v, ok := l["immutable"]; ok {
		b, err := strconv.ParseBool(v.words[0])
		if err != nil {
			return l.fault("immutable", fmt.Errorf("%q: say true or false", v.words[0]))
		}
		p.immutable = b
	}
	if v, ok := l["origin"]; ok {
		if p.strict = v.words[0] == "strict"; !p.strict && v.words[0] != "granted" {
			return l.fault("origin", fmt.Errorf("%q: say granted or strict", v.words[0]))
		}
	}
	if v, ok := l["origin-strict"]; ok {
		b, err := strconv.ParseBool(v.words[0])
		if err != nil {
			return l.fault("origin-strict", fmt.Errorf("%q: say true or false", v.words[0]))
		}
		p.strict = p.strict || b
	}
	if v, ok := l["profile"]; ok {
		profile, err := mount.ParseProfile(v.words[0])
		if err != nil {
			return l.fault("profile", err)
		}
		if profile == mount.Small && !p.immutable {
			return l.fault("profile", fmt.Errorf("small is for immutable data sets: say immutable too, or auto"))
		}
		p.profile = profile
	}
	if v, ok := l["read-timeout"]; ok {
		d, err := time.ParseDuration(v.words[0])
		if err != nil || d < minReadTimeout {
			return l.fault("read-timeout", fmt.Errorf("%q: write a time of at least %v, like 30s", v.words[0], minReadTimeout))
		}
		p.readTimeout = d
	}
	return nil
}

// parseTrust is the part of parse that concerns whose bytes are believed.
func (p *policy) parseTrust(l layer) error {
	if file := l.one("verify-manifest", ""); file != "" {
		var err error
		if p.verifyManifest, err = filepath.Abs(file); err != nil {
			return l.fault("verify-manifest", err)
		}
	}
	p.audit = fetch.DefaultAudit
	if v, ok := l["audit"]; ok {
		n, err := strconv.Atoi(v.words[0])
		if err != nil || n < 0 {
			return l.fault("audit", fmt.Errorf("%q: write a number of blocks, or 0", v.words[0]))
		}
		p.audit = n
	}
	return nil
}
