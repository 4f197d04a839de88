package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
)

// The fixed addresses.
const (
	defaultListen         = "0.0.0.0:7171"
	defaultLoopbackListen = "127.0.0.1:7171"
	defaultHTTP           = "127.0.0.1:7172"
)

// agentConfig is what an agent is told by flags, environment and config file,
// checked, with defaults filled in and paths absolute.
type agentConfig struct {
	state      string
	cache      []cacheDir
	listen     string
	join       []string
	clusterKey string // a file, or ""
	membership
	coding     coding
	api        string // a path
	http       string // "" when off
	mounts     []mountSpec
	allowOther bool
	holder     bool
	staging    int64 // 0 for the default
	dataPlane  string
	dataListen string // "" for the default
	policy     policy
	keeping    keeping
	zone, rack string
	host       string
	logLevel   slog.Level
	logFormat  string
}

// membership is what makes an agent a member, beside the key, and others not:
// files, or "".
type membership struct{ memberRecord, revoked string }

// standalone agents have nothing that makes them members.
func (c *agentConfig) standalone() bool { return c.clusterKey == "" && c.memberRecord == "" }

// mountSpec is one value of --mount.
type mountSpec struct {
	source, dir string
	options     gateway.MountOptions
}

// loadConfig gathers a command's settings: flag over environment over file over
// default.
func (a *app) loadConfig(cmd *cobra.Command) (*agentConfig, error) {
	flags, env := flagLayer(cmd), envLayer(a.getenv)
	file := layer{}
	path := a.getenv("COVEY_CONFIG")
	if f := cmd.Flags().Lookup("config"); f != nil && f.Changed {
		path = f.Value.String()
	}
	if path != "" {
		var err error
		if file, err = fileLayer(path); err != nil {
			return nil, err
		}
	}
	return parseSettings(merged(flags, env, file), a.getenv)
}

// parseSettings checks the settings one by one and then against each other.
func parseSettings(l layer, getenv func(string) string) (*agentConfig, error) {
	c := &agentConfig{
		clusterKey: l.one("cluster-key", ""),
		membership: membership{l.one("member-record", ""), l.one("revoked", "")},
		dataPlane:  l.one("data-plane", "tls"),
		dataListen: l.one("data-listen", ""),
		zone:       l.one("zone", ""),
		rack:       l.one("rack", ""),
		host:       l.one("host", ""),
		join:       l["join"].words,
	}
	for _, parse := range []func(layer, func(string) string) error{
		c.parsePaths, c.parseCache, c.coding.parse, c.keeping.parse, c.parseMounts, c.parseAddresses, c.parseDataPlane,
		c.parseLog, c.policy.parse,
	} {
		if err := parse(l, getenv); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *agentConfig) parseDataPlane(l layer, _ func(string) string) error {
	if c.dataPlane != "tls" && c.dataPlane != "plain" {
		return l.fault("data-plane", fmt.Errorf("%q is not known: say tls or plain", c.dataPlane))
	}
	if c.dataListen == "" {
		return nil
	}
	if c.dataPlane == "tls" {
		return l.fault("data-listen", fmt.Errorf("only the plain data plane has an address of its own: add --data-plane plain or leave it out"))
	}
	host, err := checkAddress(c.dataListen)
	if err == nil && c.standalone() && !isLoopback(host) {
		err = fmt.Errorf("%s can be reached from other hosts, and there is no key to tell members by: give --cluster-key or listen on 127.0.0.1", c.dataListen)
	}
	if err != nil {
		return l.fault("data-listen", err)
	}
	return nil
}

func (c *agentConfig) parsePaths(l layer, getenv func(string) string) error {
	state := l.one("state", "")
	if state == "" {
		var err error
		if state, err = defaultState(getenv); err != nil {
			return err
		}
	}
	var err error
	if c.state, err = filepath.Abs(state); err != nil {
		return fmt.Errorf("state directory %s: %w", state, err)
	}
	for name, file := range map[string]*string{"cluster key": &c.clusterKey, "member record": &c.memberRecord, "revoked peers": &c.revoked} {
		if *file == "" {
			continue
		}
		if *file, err = filepath.Abs(*file); err != nil {
			return fmt.Errorf("%s %s: %w", name, *file, err)
		}
	}
	if c.clusterKey != "" && c.memberRecord != "" {
		return l.fault("member-record", fmt.Errorf("the agent has a cluster key as well: give one of the two"))
	}
	if c.revoked != "" && c.clusterKey == "" {
		return l.fault("revoked", fmt.Errorf("only an agent that has the cluster key can expel others: add --cluster-key FILE or leave it out"))
	}
	c.api = defaultSocket(getenv)
	if v, ok := l["api"]; ok {
		if c.api, err = parseAPI(v.words[0]); err != nil {
			return l.fault("api", err)
		}
	}
	return nil
}

func (c *agentConfig) parseCache(l layer, getenv func(string) string) error {
	words := l["cache"].words
	if len(words) == 0 {
		dir, err := defaultCache(getenv)
		if err != nil {
			return err
		}
		c.cache = []cacheDir{{dir: dir}}
		return nil
	}
	for _, text := range words {
		tier, err := parseCacheDir(text)
		if err != nil {
			return l.fault("cache", err)
		}
		c.cache = append(c.cache, tier)
	}
	if err := checkCacheDirs(c.cache); err != nil {
		return l.fault("cache", err)
	}
	return nil
}

// checkCacheDirs checks the cache directories together: none may be another one, or
// within one; the store looks again, past symbolic links. Where the directory above
// is missing, a disk is not mounted as a rule, and a cache must not fill the disk
// that shows in its place.
func checkCacheDirs(dirs []cacheDir) error {
	for i, a := range dirs {
		for _, b := range dirs[:i] {
			switch {
			case a.dir == b.dir:
				return fmt.Errorf("%s is given twice: give each tier a directory of its own", a.dir)
			case strings.HasPrefix(a.dir, b.dir+"/"):
				return fmt.Errorf("%s is within %s: give each tier a directory of its own", a.dir, b.dir)
			case strings.HasPrefix(b.dir, a.dir+"/"):
				return fmt.Errorf("%s is within %s: give each tier a directory of its own", b.dir, a.dir)
			}
		}
	}
	for _, d := range dirs {
		up := filepath.Dir(d.dir)
		if info, err := os.Stat(up); err != nil || !info.IsDir() {
			return fmt.Errorf("%s: there is no directory %s: make it, or mount the disk that it is on", d.dir, up)
		}
	}
	return nil
}

func (c *agentConfig) parseMounts(l layer, _ func(string) string) error {
	taken := map[string]bool{}
	for _, text := range l["mount"].words {
		m, err := parseMount(text)
		if err == nil && taken[m.dir] {
			err = fmt.Errorf("%q: %s is given to two mounts", text, m.dir)
		}
		if err != nil {
			return l.fault("mount", err)
		}
		taken[m.dir] = true
		c.mounts = append(c.mounts, m)
	}
	return errors.Join(c.parseMountOptions(l), c.parseWrites(l))
}

// parseMountOptions gives the mounts their own options. A directory may have a
// "=" itself, so each is looked for as a whole.
func (c *agentConfig) parseMountOptions(l layer) error {
	for _, text := range l["mount-options"].words {
		found := false
		for i := range c.mounts {
			rest, ok := strings.CutPrefix(text, c.mounts[i].dir+"=")
			if !ok {
				continue
			}
			o, err := gateway.ParseMountOptions(rest)
			if err != nil {
				return l.fault("mount-options", err)
			}
			c.mounts[i].options, found = o, true
		}
		if !found {
			return l.fault("mount-options", fmt.Errorf("%q: write it like DIR=OPTION,... with the DIR of a mount", text))
		}
	}
	return nil
}

func (c *agentConfig) parseWrites(l layer) (err error) {
	for name, to := range map[string]*bool{"allow-other": &c.allowOther, "holder": &c.holder} {
		if v, ok := l[name]; ok {
			if *to, err = strconv.ParseBool(v.words[0]); err != nil {
				return l.fault(name, fmt.Errorf("%q is neither true nor false", v.words[0]))
			}
		}
	}
	if v, ok := l["staging"]; ok {
		if c.staging, err = parseSize(v.words[0]); err != nil || c.staging <= 0 {
			return l.fault("staging", fmt.Errorf("%q: write a size like 64GiB", v.words[0]))
		}
	}
	return nil
}

// parseMount reads SOURCE=DIR. It is cut at the last "=", since a source URL
// may have parameters.
func parseMount(s string) (mountSpec, error) {
	i := strings.LastIndexByte(s, '=')
	if i <= 0 || i == len(s)-1 {
		return mountSpec{}, fmt.Errorf("%q: write it like SOURCE=DIR", s)
	}
	source, err := absSource(s[:i])
	if err != nil {
		return mountSpec{}, err
	}
	dir, err := filepath.Abs(s[i+1:])
	if err != nil {
		return mountSpec{}, err
	}
	return mountSpec{source: source, dir: dir}, nil
}

func (c *agentConfig) parseAddresses(l layer, _ func(string) string) error {
	byDefault := defaultListen
	if c.standalone() {
		byDefault = defaultLoopbackListen
	}
	c.listen = l.one("listen", byDefault)
	host, err := checkAddress(c.listen)
	if err != nil {
		return l.fault("listen", err)
	}
	if c.standalone() && !isLoopback(host) {
		return l.fault("listen", fmt.Errorf("%s can be reached from other hosts, and there is no key to tell members by: give --cluster-key or listen on 127.0.0.1", c.listen))
	}
	if len(c.join) > 0 && c.standalone() {
		return l.fault("join", fmt.Errorf("joining needs the key of the cluster: give --cluster-key FILE"))
	}
	for _, j := range c.join {
		host, err := checkAddress(j)
		if err == nil && host == "" {
			err = fmt.Errorf("%q: the host is missing", j)
		}
		if err != nil {
			return l.fault("join", err)
		}
	}
	c.http = l.one("http", defaultHTTP)
	if c.http == "" || c.http == "off" {
		c.http = ""
		return nil
	}
	if _, err := checkAddress(c.http); err != nil {
		return l.fault("http", err)
	}
	return nil
}

// checkAddress checks HOST:PORT and returns the host.
func checkAddress(s string) (host string, err error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q: write it like HOST:PORT", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q: the port is a number from 0 to 65535", s)
	}
	return host, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

func (c *agentConfig) parseLog(l layer, _ func(string) string) error {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[l.one("log-level", "info")]
	if !ok {
		return l.fault("log-level", fmt.Errorf("%q: want debug, info, warn or error", l.one("log-level", "")))
	}
	c.logLevel = level
	c.logFormat = l.one("log-format", "text")
	if c.logFormat != "text" && c.logFormat != "json" {
		return l.fault("log-format", fmt.Errorf("%q: want text or json", c.logFormat))
	}
	return nil
}
