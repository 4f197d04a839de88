package main

import (
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
)

// units are the powers that sizes are written in, largest first so that
// formatting takes the first that fits.
var units = []struct {
	name  string
	bytes int64
}{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// parseSize reads a number of bytes: 512MiB, 2TiB, 10GB, 1.5GiB, 4096. The case
// of the unit does not matter. A bare letter (10G) is refused, because half the
// world's tools mean 10^9 by it and the other half 2^30.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
	unit := s[len(digits):]
	scale := int64(0)
	if unit == "" {
		scale = 1
	}
	for _, u := range units {
		if strings.EqualFold(unit, u.name) {
			scale = u.bytes
		}
	}
	if scale == 0 {
		return 0, fmt.Errorf("size %q: unknown unit %q: write it like 512MiB, 2TiB or 10GB", s, unit)
	}
	if !plainDecimal(digits) {
		return 0, fmt.Errorf("size %q: not a number: write it like 512MiB, 2TiB or 10GB", s)
	}
	n, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, fmt.Errorf("size %q: not a number: write it like 512MiB, 2TiB or 10GB", s)
	}
	n.Mul(n, new(big.Rat).SetInt64(scale))
	if !n.IsInt() {
		return 0, fmt.Errorf("size %q: not a whole number of bytes", s)
	}
	if !n.Num().IsInt64() {
		return 0, fmt.Errorf("size %q: larger than 8 EiB", s)
	}
	return n.Num().Int64(), nil
}

// plainDecimal says whether s is digits with at most one point among them. It
// is at most 30 long, which is past every size that fits.
func plainDecimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	if len(s) > 30 || whole == "" || (point && fraction == "") {
		return false
	}
	return strings.Trim(whole+fraction, "0123456789") == ""
}

// formatSize writes a number of bytes for people, in powers of 1024.
func formatSize(n int64) string {
	for _, u := range units[:5] {
		if n >= u.bytes {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// cacheDir is one value of --cache. Size 0 means a tenth of the free disk.
type cacheDir struct {
	dir  string
	size int64
}

// parseCacheDir reads DIR[:SIZE]. The last colon ends the directory when a size
// follows it. What begins like a size and is none is refused rather than taken
// as a directory of that name; DIR:SIZE names even such a directory.
func parseCacheDir(s string) (cacheDir, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return checkCacheDir(cacheDir{dir: s}, s)
	}
	size, err := parseSize(s[i+1:])
	switch {
	case err == nil && size == 0:
		return cacheDir{}, fmt.Errorf("cache %q: the size is zero", s)
	case err == nil:
		return checkCacheDir(cacheDir{dir: s[:i], size: size}, s)
	case looksLikeSize(s[i+1:]):
		return cacheDir{}, fmt.Errorf("cache %q: %w", s, err)
	}
	return checkCacheDir(cacheDir{dir: s}, s)
}

func checkCacheDir(c cacheDir, s string) (cacheDir, error) {
	switch {
	case c.dir == "":
		return cacheDir{}, fmt.Errorf("cache %q: the directory is missing: write DIR or DIR:SIZE", s)
	case !filepath.IsAbs(c.dir):
		return cacheDir{}, fmt.Errorf("cache %q: %s is a relative path: write an absolute one, which means the same wherever the agent is started", s, c.dir)
	}
	c.dir = filepath.Clean(c.dir)
	return c, nil
}

func looksLikeSize(s string) bool {
	if strings.ContainsRune(s, '/') {
		return false
	}
	s = strings.TrimLeft(s, "+-. ")
	return s == "" || (s[0] >= '0' && s[0] <= '9')
}
