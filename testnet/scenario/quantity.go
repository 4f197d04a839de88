package scenario

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Duration is written as Go writes durations: 250ms, 1m30s.
type Duration time.Duration

// Bytes is a size: 4MiB, 10GB, 4096.
type Bytes int64

// Rate is bytes a second, written as bits or bytes: 25Gbit, 800Mbit, 3GB.
type Rate float64

// Amount is a number with a unit, or a share: 5%, 40GiB, 12.
type Amount struct {
	// Share is the value of a percentage, of 1; then N is 0.
	Share float64
	N     int64
}

// IsZero reports that nothing was said.
func (a Amount) IsZero() bool { return a == Amount{} }

// Of is the amount where the whole is n, rounded to the nearest and at least 1.
func (a Amount) Of(n int) int {
	if a.Share == 0 {
		return int(min(a.N, int64(n)))
	}
	return max(1, min(n, int(math.Round(a.Share*float64(n)))))
}

var byteUnits = map[string]float64{
	"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50,
}

var bitUnits = map[string]float64{"Kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8, "Tbit": 1e12 / 8}

// quantity splits a number from its unit.
func quantity(s string) (n float64, unit string, err error) {
	digits := strings.TrimRight(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz%")
	n, err = strconv.ParseFloat(digits, 64)
	if err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) || strings.ContainsAny(digits, "xXpP_+") {
		return 0, "", fmt.Errorf("%q is no number with a unit", s)
	}
	return n, s[len(digits):], nil
}

func parseBytes(s string) (Bytes, error) {
	n, unit, err := quantity(s)
	scale, ok := byteUnits[unit]
	if err != nil || !ok || n*scale > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is no size: write it like 4MiB or 10GB", s)
	}
	return Bytes(math.Round(n * scale)), nil
}

func parseRate(s string) (Rate, error) {
	n, unit, err := quantity(s)
	scale, ok := bitUnits[unit]
	if !ok {
		scale, ok = byteUnits[unit]
		ok = ok && unit != ""
	}
	if err != nil || !ok || n == 0 {
		return 0, fmt.Errorf("%q is no rate: write it like 25Gbit or 3GB (a second)", s)
	}
	return Rate(n * scale), nil
}

func parseAmount(s string) (Amount, error) {
	n, unit, err := quantity(s)
	if err == nil && unit == "%" {
		return Amount{Share: n / 100}, nil
	}
	b, err := parseBytes(s)
	if err != nil {
		return Amount{}, fmt.Errorf("%q is neither a number nor a share: write it like 12, 40GiB or 5%%", s)
	}
	return Amount{N: int64(b)}, nil
}

func parseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration: write it like 250ms or 1m30s", s)
	}
	return Duration(d), nil
}

// decode reads a scalar with parse, and says where it stands when it is wrong.
func decode[T any](v *T, n *yaml.Node, parse func(string) (T, error)) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: a single value is wanted", n.Line)
	}
	got, err := parse(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*v = got
	return nil
}

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error { return decode(d, n, parseDuration) }

// UnmarshalYAML reads a size.
func (b *Bytes) UnmarshalYAML(n *yaml.Node) error { return decode(b, n, parseBytes) }

// UnmarshalYAML reads a rate.
func (r *Rate) UnmarshalYAML(n *yaml.Node) error { return decode(r, n, parseRate) }

// UnmarshalYAML reads an amount.
func (a *Amount) UnmarshalYAML(n *yaml.Node) error { return decode(a, n, parseAmount) }
