package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// setting is one thing that an agent can be told, by the same name as a flag
// and as a key of the config file, and as COVEY_NAME in the environment.
type setting struct {
	name string
	list listKind
	help string
}

// listKind says whether a setting has one value or many, and where one text is
// cut into several.
type listKind int

const (
	single   listKind = iota
	byComma           // cut at commas, wherever it is written
	repeated          // cut at commas in the environment only: a path may have one
	byLine            // cut at newlines and ";" in the environment only: a URL may have a comma
)

var settings = []setting{
	{"state", single, "`DIR` of the agent's identity and log (default $XDG_STATE_HOME/covey or /var/lib/covey)"},
	{"cache", repeated, "`DIR[:SIZE]` of the cache; repeat it for tiers, the fastest first (default $XDG_CACHE_HOME/covey or /var/cache/covey, a tenth of the free disk)"},
	{"compress", single, "compress cached blocks: `off|auto|zstd[:LEVEL]`; auto leaves objects that do not pack as they are (default off)"},
	{"cache-key", single, "`FILE` of keys that cached blocks are encrypted with: one a line, the first writes (openssl rand -hex 32)"},
	{"scrub-rate", single, "`BYTES` a second of each tier that are checked again while the host is idle, \"off\" for none (default 8MiB)"},
	{"cache-policy", single, "what gives way when the cache is full, `epoch|lru|lfu`: see README (default epoch)"},
	{"idle-after", single, "a data set of which nothing was used for `TIME` gives way to others, or never (default 24h)"},
	{"listen", single, "`HOST:PORT` of the mesh (default 0.0.0.0:7171 with a cluster key, else 127.0.0.1:7171)"},
	{"join", byComma, "members to join, `HOST:PORT,...`; needs --cluster-key"},
	{"cluster-key", single, "`FILE` with the key of the cluster (see covey cluster init)"},
	{"member-record", single, "`FILE` with this agent's membership, in place of --cluster-key (see covey cluster issue)"},
	{"revoked", single, "`FILE` with the peer IDs, one a line, of those who are no members any more; read again when it changes"},
	{"api", single, "control socket, `unix:///PATH` (default $XDG_RUNTIME_DIR/covey/agent.sock or /run/covey/agent.sock)"},
	{"http", single, "`HOST:PORT` of metrics, health and status page, \"off\" for none (default 127.0.0.1:7172)"},
	{"mount", byLine, "mount `SOURCE=DIR`, cut at its last \"=\"; may be repeated"},
	{"data-plane", single, "how blocks travel, `tls|plain`; plain is bare TCP, for a fabric that is trusted (default tls)"},
	{"data-listen", single, "`HOST:PORT` of the plain data plane (default: the host of --listen, and its port + 2)"},
	{"mount-options", byLine, "options of the mount on DIR, `DIR=OPTION,...`: rw, allow_other, xattr, uid=N, gid=N, umask=OCTAL; may be repeated"},
	{"allow-other", single, "let other users read every mount, as their permission bits say; `true` or false (default false)"},
	{"holder", single, "a small process keeps the mounts while the agent is killed and started again: for agents that something restarts; `true` or false (default false)"},
	{"staging", single, "`SIZE` that files written to mounts may take until they are uploaded (default a quarter of the first cache)"},
	{"max-age", single, "believe a listing for `TIME` before asking the origin again; 0s asks at each open (default 1m)"},
	{"immutable", single, "no object ever changes: listings are believed for ever; `true` or false (default false)"},
	{"origin", single, "who may read the origin, `granted|strict`: with granted a read that a home has not granted in time reads it all the same; with strict it fails with EIO at its deadline (default granted)"},
	{"origin-strict", single, "the same as --origin strict; `true` or false (default false)"},
	{"profile", single, "how mounts open files, `auto|large|small`: large passes whole files through to the kernel; small has the kernel open small files of immutable data sets by itself; auto decides by the listing (default auto)"},
	{"verify-manifest", single, "`FILE` that covey prefetch --manifest wrote: what it does not list, or lists otherwise, fails with EIO"},
	{"audit", single, "compare one in `N` blocks from neighbours with the origin's; 0 for none (default 10000)"},
	{"read-timeout", single, "`TIME` that one read may wait for the mesh and the origin before it fails with EIO (default 30s)"},
	{"zone", single, "`NAME` of this host's zone"},
	{"rack", single, "`NAME` of this host's rack"},
	{"host", single, "`NAME` of this host (default: its hostname)"},
	{"log-level", single, "`LEVEL`: debug, info, warn or error (default info)"},
	{"log-format", single, "`FORMAT`: text or json (default text)"},
}

// switches are the settings that a flag without a value turns on.
var switches = []string{"immutable", "allow-other", "holder", "origin-strict"}

// value is what a setting was given, and where, for error messages.
type value struct {
	words []string
	from  string
	sets  []datasetSpec // of datasetsKey only
}

// layer is what one place says of the settings.
type layer map[string]value

// merged returns the values of all layers; an earlier layer hides a later one
// whole, lists included.
func merged(layers ...layer) layer {
	all := layer{}
	for _, l := range layers {
		for name, v := range l {
			if _, ok := all[name]; !ok {
				all[name] = v
			}
		}
	}
	return all
}

// one returns a single value, or byDefault.
func (l layer) one(name, byDefault string) string {
	if v, ok := l[name]; ok {
		return v.words[0]
	}
	return byDefault
}

// fault returns a misuse that says where the setting was made.
func (l layer) fault(name string, err error) error {
	return misuse("%s: %w", l[name].from, err)
}

// addSettings makes a flag of each named setting, or of all.
func addSettings(cmd *cobra.Command, names ...string) {
	for _, s := range settings {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		if s.list == single {
			cmd.Flags().String(s.name, "", s.help)
			if slices.Contains(switches, s.name) {
				cmd.Flags().Lookup(s.name).NoOptDefVal = "true"
			}
		} else {
			cmd.Flags().StringArray(s.name, nil, s.help)
		}
	}
}

// flagLayer returns the settings that were given as flags.
func flagLayer(cmd *cobra.Command) layer {
	l := layer{}
	for _, s := range settings {
		f := cmd.Flags().Lookup(s.name)
		if f == nil || !f.Changed {
			continue
		}
		words := []string{f.Value.String()}
		if s.list != single {
			words, _ = cmd.Flags().GetStringArray(s.name)
		}
		l[s.name] = value{words: s.cut(words, false), from: "--" + s.name}
	}
	return l
}

// envName is the variable of a setting: cluster-key is COVEY_CLUSTER_KEY.
func (s setting) envName() string {
	return "COVEY_" + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// envLayer returns the settings of the environment. An empty variable is none.
func envLayer(getenv func(string) string) layer {
	l := layer{}
	for _, s := range settings {
		if text := getenv(s.envName()); text != "" {
			l[s.name] = value{words: s.cut([]string{text}, true), from: s.envName()}
		}
	}
	return l
}

// cut splits the texts of a list at its separators. An empty piece, as a
// trailing separator leaves, is dropped.
func (s setting) cut(texts []string, env bool) []string {
	isCut := func(rune) bool { return false }
	switch {
	case s.list == single:
		return texts
	case s.list == byComma, s.list == repeated && env:
		isCut = func(r rune) bool { return r == ',' }
	case s.list == byLine && env:
		isCut = func(r rune) bool { return r == '\n' || r == ';' }
	}
	var words []string
	for _, text := range texts {
		for _, w := range strings.FieldsFunc(text, isCut) {
			if w = strings.TrimSpace(w); w != "" {
				words = append(words, w)
			}
		}
	}
	return words
}

// maxConfig bounds the config file; a hundred mounts are a tenth of it.
const maxConfig = 1 << 20

// fileLayer reads a config file: a YAML mapping of the settings' names, a list
// where a setting is one.
func fileLayer(path string) (layer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if len(text) > maxConfig {
		return nil, misuse("config %s: larger than %d bytes", path, maxConfig)
	}
	return parseConfig(path, text)
}

func parseConfig(path string, text []byte) (layer, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF): // empty, or comments only
		return layer{}, nil
	case err != nil:
		return nil, misuse("config %s: %w", path, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, misuse("config %s: more than one document", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return layer{}, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, misuse("config %s: line %d: want a mapping of setting: value", path, root.Line)
	}
	l := layer{}
	for i := 0; i < len(root.Content); i += 2 {
		if err := l.addNode(path, root.Content[i], root.Content[i+1]); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// addNode adds one key of the config file.
func (l layer) addNode(path string, key, val *yaml.Node) error {
	if key.Value == datasetsKey {
		return l.addDatasets(path, key, val)
	}
	at := fmt.Sprintf("config %s: line %d", path, key.Line)
	s, ok := findSetting(key.Value)
	if !ok {
		return misuse("%s: unknown key %q", at, key.Value)
	}
	if _, twice := l[s.name]; twice {
		return misuse("%s: %s is given twice", at, s.name)
	}
	items := []*yaml.Node{val}
	if val.Kind == yaml.SequenceNode && s.list != single {
		items = val.Content
	}
	var words []string
	for _, item := range items {
		if item.Kind != yaml.ScalarNode {
			return misuse("%s: %s has a value of the wrong kind", at, s.name)
		}
		if item.Tag != "!!null" {
			words = append(words, item.Value)
		}
	}
	if len(words) > 0 {
		l[s.name] = value{words: s.cut(words, false), from: at + ": " + s.name}
	}
	return nil
}

func findSetting(name string) (setting, bool) {
	for _, s := range settings {
		if s.name == name {
			return s, true
		}
	}
	return setting{}, false
}
