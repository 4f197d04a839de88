package main

import (
	"math"
	"testing"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "7B": 7,
		"512MiB": 512 << 20, "2TiB": 2 << 40, "10GB": 10e9, "1.5GiB": 3 << 29, "0.1GB": 1e8,
		"1KiB": 1024, "1KB": 1000, "3PiB": 3 << 50, "2PB": 2e15,
		"512mib": 512 << 20, "10gb": 10e9, "007MiB": 7 << 20,
		"9223372036854775807": math.MaxInt64, "8191PiB": 8191 << 50,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "MiB", "-1", "+1", "-5GB", "1 MiB", " 1MiB", "1MiB ", "10G", "10M", "1k", "1QiB", "1MiBB", "1MiB2",
		"1.2.3GB", ".5GiB", "5.GiB", "1e3", "1e3MiB", "0x10", "1/2GiB", "1_000", "1,5GiB", "٣MiB", "1\x00MiB", "NaN", "InfGB",
		"1.5", "0.3KiB", "9223372036854775808", "8192PiB", "99999999999999999999999999999999999999PiB",
	} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestParseCacheDir(t *testing.T) {
	for text, want := range map[string]cacheDir{
		"/c":             {"/c", 0},
		"/c:512MiB":      {"/c", 512 << 20},
		"/c:4096":        {"/c", 4096},
		"/a:b/c":         {"/a:b/c", 0},
		"/a:b":           {"/a:b", 0},
		"/a:1GiB:2GiB":   {"/a:1GiB", 2 << 30},
		"/a:1GiB/c":      {"/a:1GiB/c", 0},
		"/a:1GiB/c:2GiB": {"/a:1GiB/c", 2 << 30},
		"/a:2nd:1GiB":    {"/a:2nd", 1 << 30},
		"/a/../b/:1GiB":  {"/b", 1 << 30},
	} {
		if got, err := parseCacheDir(text); err != nil || got != want {
			t.Errorf("parseCacheDir(%q) = %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":", ":1GiB", "/c:", "/c:0", "/c:0GiB", "/c:10G", "/c:12QiB", "/c:-5GB", "/c:1 GiB", "/c:1.5", "/c:99999999PiB", "relative:1GiB", "./c", "/c:10XB"} {
		if got, err := parseCacheDir(text); err == nil {
			t.Errorf("parseCacheDir(%q) = %+v, want an error", text, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512MiB", "1.5GB", "9223372036854775808", "0.0000000001PiB", "1e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err == nil && n < 0 {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
		c, err := parseCacheDir(s)
		if err == nil && (c.dir == "" || c.size < 0) {
			t.Errorf("parseCacheDir(%q) = %+v", s, c)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 29: "1.5 GiB", 5 << 50: "5.0 PiB"} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}
