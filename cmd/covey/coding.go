package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/covey-cache/covey/blockstore"
)

// coding is how blocks lie in the cache, and how often they are looked at.
type coding struct {
	compress  blockstore.Compression
	keys      string // a file, or ""
	scrubRate int64  // bytes a second; 0 by default, negative when off
}

func (c *coding) parse(l layer, _ func(string) string) (err error) {
	if v, ok := l["compress"]; ok {
		if c.compress, err = blockstore.ParseCompression(v.words[0]); err != nil {
			return l.fault("compress", err)
		}
	}
	if v, ok := l["cache-key"]; ok {
		if c.keys, err = filepath.Abs(v.words[0]); err != nil {
			return l.fault("cache-key", err)
		}
	}
	if v, ok := l["scrub-rate"]; ok {
		if v.words[0] == "off" {
			c.scrubRate = -1
			return nil
		}
		n, err := parseSize(v.words[0])
		if err == nil && n <= 0 {
			err = fmt.Errorf("%q: say off for none", v.words[0])
		}
		if err != nil {
			return l.fault("scrub-rate", err)
		}
		c.scrubRate = n
	}
	return nil
}

// readCacheKeys reads the key file of the cache.
func readCacheKeys(file string) (*blockstore.Keys, error) {
	keys, err := blockstore.ReadKeys(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: make it with (umask 077; openssl rand -hex 32 >%s), or leave --cache-key out", err, file)
	}
	return keys, err
}
