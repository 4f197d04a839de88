package origin

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/covey-cache/covey"
)

// location is a parsed source URL.
type location struct {
	scheme string // "s3" or "file"
	bucket string // s3
	prefix string // s3; "" or ends with "/"
	path   string // file; absolute and clean

	endpoint string // s3; canonical, "" when the URL has none
	region   string // s3; "" when the URL has none
}

// plannedSchemes are understood to be storage, and have no driver yet.
var plannedSchemes = map[string]string{
	"gs": "Google Cloud Storage", "az": "Azure Blob Storage", "hdfs": "HDFS",
}

var (
	schemeForm = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)
	// bareScheme is a URL whose "//" was forgotten. As a path it would be a
	// strange one, and the error for a missing path would mislead.
	bareScheme = regexp.MustCompile(`^(?i:(s3|gs|az|hdfs|file)):`)
	bucketForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$`)
	regionForm = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	paramForm  = regexp.MustCompile(`^[a-z_-]{1,20}$`)
	secretForm = regexp.MustCompile(`(?i)key|secret|token|credential|signature|password|x-amz`)
)

// parse takes a source apart. Its errors wrap ErrInvalid, are one line, and
// repeat no part of the input that may hold a credential.
func parse(raw string) (location, error) {
	loc, err := parseAny(raw)
	if err != nil {
		return location{}, fmt.Errorf("source %s: %w: %w", redact(raw), err, covey.ErrInvalid)
	}
	return loc, nil
}

func parseAny(raw string) (location, error) {
	if strings.ContainsRune(raw, 0) {
		return location{}, errors.New("it contains a NUL byte")
	}
	m := schemeForm.FindStringSubmatch(raw)
	if m == nil {
		return parsePath(raw)
	}
	scheme := strings.ToLower(m[1])
	if name, ok := plannedSchemes[scheme]; ok {
		return location{}, fmt.Errorf("%s is not built into this version; use s3://, file:// or a path", name)
	}
	if scheme != "s3" && scheme != "file" {
		return location{}, fmt.Errorf("unknown scheme %q; use s3://bucket/prefix, file:///path or a path", scheme)
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The reason would quote the input, which may hold a secret.
		return location{}, errors.New("malformed URL; write s3://bucket/prefix?endpoint=http://host:port&region=NAME or file:///path")
	}
	if u.User != nil {
		return location{}, errors.New("credentials do not belong in a URL; give them by environment or profile")
	}
	if u.Fragment != "" {
		return location{}, errors.New("a # must be written %23")
	}
	if scheme == "file" {
		return parseFile(u)
	}
	return parseS3(u)
}

// parsePath makes a plain path absolute. It is taken as it stands: no escapes.
func parsePath(raw string) (location, error) {
	if raw == "" {
		return location{}, errors.New("it is empty; write s3://bucket/prefix, file:///path or a path")
	}
	if m := bareScheme.FindStringSubmatch(raw); m != nil {
		return location{}, fmt.Errorf("malformed URL; write %s://", strings.ToLower(m[1]))
	}
	return fileLocation(raw)
}

func parseFile(u *url.URL) (location, error) {
	if u.Host != "" && u.Host != "localhost" {
		return location{}, errors.New("a file URL has three slashes: file:///path")
	}
	if u.RawQuery != "" {
		return location{}, errors.New("a file URL has no parameters; a ? in a path must be written %3F")
	}
	if !strings.HasPrefix(u.Path, "/") || strings.ContainsRune(u.Path, 0) {
		return location{}, errors.New("a file URL needs an absolute path: file:///path")
	}
	return fileLocation(u.Path)
}

func fileLocation(path string) (location, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return location{}, fmt.Errorf("make the path absolute: %w", err)
	}
	if len("file://")+len(abs) > covey.MaxOriginLen {
		return location{}, fmt.Errorf("the path has more than %d bytes", covey.MaxOriginLen)
	}
	return location{scheme: "file", path: abs}, nil
}

func parseS3(u *url.URL) (location, error) {
	if u.Host == "" {
		return location{}, errors.New("it names no bucket; write s3://bucket/prefix")
	}
	if !bucketForm.MatchString(u.Host) {
		return location{}, errors.New("the bucket name is malformed; it has 3 to 255 letters, digits, dots and hyphens (give a server by endpoint=)")
	}
	loc := location{scheme: "s3", bucket: u.Host}
	var err error
	if loc.prefix, err = cleanPrefix(u.Path); err != nil {
		return location{}, err
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return location{}, errors.New("malformed parameters; write ?endpoint=http://host:port&region=NAME")
	}
	for name, values := range params {
		if err := loc.set(name, values); err != nil {
			return location{}, err
		}
	}
	return loc, nil
}

func (l *location) set(name string, values []string) error {
	if len(values) != 1 {
		return errors.New("a parameter is given twice")
	}
	switch name {
	case "endpoint":
		endpoint, err := canonicalEndpoint(values[0])
		l.endpoint = endpoint
		return err
	case "region":
		l.region = values[0]
		if !regionForm.MatchString(l.region) {
			return errors.New("malformed region; write region=us-east-1")
		}
		return nil
	}
	switch {
	case secretForm.MatchString(name):
		return errors.New("credentials do not belong in a URL; give them by environment or profile")
	case paramForm.MatchString(name):
		return fmt.Errorf("unknown parameter %q; there are endpoint and region", name)
	}
	return errors.New("unknown parameter; there are endpoint and region")
}

// cleanPrefix normalises the path of a URL to a prefix. A prefix that no mount
// could show as a directory is refused here, where the reason can be told.
func cleanPrefix(path string) (string, error) {
	prefix := strings.TrimPrefix(path, "/")
	if prefix == "" {
		return "", nil
	}
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	if strings.ContainsRune(prefix, 0) || !utf8.ValidString(prefix) {
		return "", errors.New("the prefix holds a NUL byte or is not UTF-8")
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(prefix, "/"), "/") {
		if part == "" || part == "." || part == ".." {
			return "", errors.New(`the prefix has a part that is empty, "." or ".."`)
		}
	}
	if len(prefix) >= covey.MaxKeyLen {
		return "", fmt.Errorf("the prefix leaves no room for a key; keys have at most %d bytes", covey.MaxKeyLen)
	}
	return prefix, nil
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// canonicalEndpoint spells an endpoint the one way that every peer does: scheme
// and host in lower case, without the scheme's own port and a trailing slash.
func canonicalEndpoint(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("malformed endpoint; write endpoint=http://host:port")
	}
	if u.User != nil {
		return "", errors.New("credentials do not belong in an endpoint; give them by environment or profile")
	}
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if (scheme != "http" && scheme != "https") || host == "" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(u.Path, "&#?\x00") {
		return "", errors.New("malformed endpoint; write endpoint=http://host:port")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		// The addresses of cloud metadata services. No storage is there, and a
		// signed request to it would be somebody's trick.
		if addr.IsLinkLocalUnicast() {
			return "", errors.New("the endpoint is a link-local address")
		}
		host = addr.String()
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" && port != defaultPorts[scheme] {
		host += ":" + port
	}
	return scheme + "://" + host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

// redact returns what of a source may be repeated in an error: not what precedes
// an @, and no parameters. It must cope with input that is not a URL.
func redact(raw string) string {
	s, _, cut := strings.Cut(raw, "?")
	if m := schemeForm.FindString(s); m != "" {
		rest := s[len(m):]
		if i := strings.LastIndexByte(rest, '@'); i >= 0 {
			rest = rest[i+1:]
		}
		s = m + rest
	}
	if cut {
		s += "?..."
	}
	// One line, whatever was typed, and not a page of it.
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return fmt.Sprintf("%q", s)
}
